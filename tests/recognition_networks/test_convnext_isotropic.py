"""Isotropic ConvNeXts: what they compute of published weights, their parameter groups, and what else a model is used for."""

import json

import pytest
import timm
import torch
from conftest import train
from published_convnext import Block, noisy
from safetensors.torch import save_file
from torch import nn

from optim_factory import get_parameter_groups, layer_decay_assigner
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model, open_model, timm_config
from utils.model.weights import load_weights
from utils.report.snippets import recognition_code
from utils.result.heat_maps import layer_cam

TINY = {"depth": 3, "dim": 16}


class Original(nn.Module):
    """The paper's network under the names of its published code."""

    def __init__(self, depth, dim, classes, layer_scale):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, dim, 16, 16), nn.Sequential(*(Block(dim, False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)
        for block in () if layer_scale else self.blocks:
            del block.gamma
            block.gamma = 1.0

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))


@pytest.mark.parametrize("layer_scale", [True, False])
def test_published_weights_give_the_published_outputs(tmp_path, layer_scale):
    source = noisy(Original(**TINY, classes=5, layer_scale=layer_scale))
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    name = f"convnext_isotropic_{'large' if layer_scale else 'small'}"  # as each was trained
    model = build_model(ModelOptions(name, model_kwargs=list(TINY.items())), list("abcde"), input_size=64).eval()
    lines = load_weights(model, tmp_path / "w.pth")
    assert lines[1:] == [
        "ConvNeXt checkpoint, original names",
        f"{len(source.state_dict())} tensors loaded; left out none; new none",
    ]
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(images), source(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, parameters, tensors",  # table 2 prints 22M, 87M, 306M
    [("small", 22_308_712, 150), ("base", 87_083_752, 150), ("large", 305_942_504, 330)],
)
def test_sizes(name, parameters, tensors):
    with torch.device("meta"):
        model = timm.create_model(f"convnext_isotropic_{name}")
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert (sum(sizes), len(sizes)) == (parameters, tensors)


def test_a_layer_scale_of_0_is_none_and_drop_path_grows_to_the_last_block():
    model = timm.create_model("convnext_isotropic_large", **TINY, ls_init_value=0, drop_path_rate=0.5)
    assert not [name for name, _ in model.named_parameters() if "gamma" in name]
    rates = [getattr(block.drop_path, "drop_prob", 0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    scaled = timm.create_model("convnext_isotropic_large", **TINY)
    assert all((block.gamma == 1e-6).all() for block in scaled.blocks)


def test_groups_are_the_published_ones():
    """Weight decay of all but vectors, as published; with layer decay an id per block, which it lacks for these names."""
    model = timm.create_model("convnext_isotropic_large", depth=2, dim=16, num_classes=5)
    groups = get_parameter_groups(model, 0.05, no_decay_suffixes=(".bias",))
    # stem 16x3x16x16; in each block 16x1x7x7, 64x16, 16x64; classifier 5x16
    assert [(group["weight_decay"], sum(p.numel() for p in group["params"])) for group in groups] == [
        (0.05, 12288 + 2 * (784 + 1024 + 1024) + 80),
        (0.0, 16 + 2 * (16 + 16 + 32 + 64 + 16) + 32 + 5),  # biases, layer scales and norms
    ]
    assigner = layer_decay_assigner(model, 0.5)
    scales = {name: assigner.get_scale(assigner.get_layer_id(name)) for name, _ in model.named_parameters()}
    assert scales["stem.weight"] == scales["blocks.0.gamma"] == 0.25 and scales["blocks.1.mlp.fc1.bias"] == 0.5
    assert scales["head.norm.weight"] == scales["head.fc.bias"] == 1


def test_a_runs_weights_open_again_with_heat_maps_and_checkpointing(tmp_path):
    body = list(TINY.items())
    model = build_model(ModelOptions("convnext_isotropic_small", model_kwargs=body), ["a", "b"], input_size=112).eval()
    view = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}
    config = timm_config(model, "convnext_isotropic_small", ["a", "b"], input_size=112, model_kwargs=body, **view)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(open_model(tmp_path)(images), model(images))
    assert recognition_code("hf-hub:me/it", config).startswith("import recognition_networks.convnext_isotropic  #")
    assert layer_cam(model, images, torch.tensor([0, 1])).shape == (2, 112, 112)
    with torch.no_grad():
        plain = model(images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), plain)


@pytest.mark.slow
def test_a_run_trains_it_and_its_weights_are_scored(tmp_path):
    body = "--model convnext_isotropic_small --model_kwargs depth=2 dim=16".split()
    words = "--layer_decay 0.7 --model_ema true --epochs 1 --warmup_epochs 0 --output_dir".split()
    assert train(*body, *words, str(tmp_path / "run")).returncode == 0
    assert "import recognition_networks.convnext_isotropic" in (tmp_path / "run/best/README.md").read_text()
    assert "import recognition_networks.convnext_isotropic" in (tmp_path / "run/report.html").read_text()
    scored = train(*body, "--eval", "true", "--finetune", str(tmp_path / "run/best"))
    assert scored.returncode == 0 and "convnext_isotropic_small" in scored.stdout
