"""Isotropic ConvNeXt against its published formula, with the names, sizes and files that timm and the published code have."""

import functools
import json

import pytest
import timm
import torch
from conftest import train
from safetensors.torch import load_file
from torch.nn import functional as F

from utils.model.layouts import to_timm
from utils.model.recognition import open_model
from utils.model.weights import load_weights
from utils.report.snippets import recognition_code
from utils.result.heat_maps import layer_cam

SMALL = {"depth": 2, "dim": 16, "num_classes": 5}


def published_weights(scale):
    """A state dict under the published names, of 2 blocks 16 wide and 5 classes. scale: whether blocks have a layer scale."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    shapes = {"stem.weight": (16, 3, 16, 16), "stem.bias": (16,), "norm.weight": (16,), "norm.bias": (16,),
              "head.weight": (5, 16), "head.bias": (5,)}  # fmt: skip
    for block in ("blocks.0.", "blocks.1."):
        shapes |= {f"{block}dwconv.weight": (16, 1, 7, 7), f"{block}dwconv.bias": (16,), f"{block}norm.weight": (16,),
                   f"{block}norm.bias": (16,), f"{block}pwconv1.weight": (64, 16), f"{block}pwconv1.bias": (64,),
                   f"{block}pwconv2.weight": (16, 64), f"{block}pwconv2.bias": (16,)}  # fmt: skip
        shapes |= {f"{block}gamma": (16,)} if scale else {}
    return {name: draw(shape) * 0.2 for name, shape in shapes.items()}


def published_logits(w, x):
    """Patches; x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x))))) of each block; the norm of the mean; the head."""
    x = F.conv2d(x, w["stem.weight"], w["stem.bias"], stride=16)
    for i in range(2):
        b = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in w.items()}
        y = F.conv2d(x, b["dwconv.weight"], b["dwconv.bias"], padding=3, groups=16).permute(0, 2, 3, 1)
        y = F.layer_norm(y, (16,), b["norm.weight"], b["norm.bias"], 1e-6)
        y = F.linear(F.gelu(F.linear(y, b["pwconv1.weight"], b["pwconv1.bias"])), b["pwconv2.weight"], b["pwconv2.bias"])
        x = x + (y * b["gamma"] if "gamma" in b else y).permute(0, 3, 1, 2)
    return F.linear(
        F.layer_norm(x.mean((2, 3)), (16,), w["norm.weight"], w["norm.bias"], 1e-6), w["head.weight"], w["head.bias"]
    )


@pytest.mark.parametrize("scale", [False, True])
def test_logits_are_those_of_the_published_formula_by_published_weights(tmp_path, scale):
    weights, images = published_weights(scale), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.save({"model": weights}, tmp_path / "iso.pth")
    model = timm.create_model("convnext_isotropic_small", ls_init_value=0.5 if scale else 0, **SMALL).eval()
    assert "left out none; new none" in load_weights(model, tmp_path / "iso.pth")[2]
    with torch.no_grad():
        torch.testing.assert_close(model(images), published_logits(weights, images), atol=1e-5, rtol=1e-5)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.train()(images), published_logits(weights, images), atol=1e-5, rtol=1e-5)
    maps = layer_cam(model.eval(), images, torch.tensor([0, 1]))
    assert maps.shape == (2, 64, 64) and maps.amax((1, 2)).tolist() == [1.0, 1.0]


def test_parameters_are_the_published_ones(golden):
    models = {entry["config"]["model"]: entry for entry in golden("1_param_groups/names_to_timm.json.gz")["models"]}
    models = {name: dict(entry["original"]) for name, entry in models.items() if "isotropic" in name}
    assert models
    for name, shapes in models.items():
        with torch.device("meta"):
            model = timm.create_model(name, ls_init_value=1e-6 if "blocks.0.gamma" in shapes else 0)
            tensors, _, left_out = to_timm({name: torch.empty(shape) for name, shape in shapes.items()}, model)
        assert not left_out
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in model.named_parameters()}


def test_blocks_are_left_out_in_proportion_and_none_has_a_scale_unless_asked():
    model = timm.create_model("convnext_isotropic_small", drop_path_rate=0.3, **SMALL | {"depth": 4})
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3]) and model.blocks[0].gamma is None
    assert model.stem.weight.std().item() == pytest.approx(0.02, rel=0.1) and not model.stem.bias.any()
    with torch.device("meta"):
        assert timm.create_model("convnext_isotropic_large").blocks[35].gamma is not None


def test_a_run_goes_from_training_to_the_page(tmp_path):
    words = ["--model", "convnext_isotropic_small", "--model_kwargs", "depth=2", "dim=16", "--layer_scale_init_value", 0,
             "--layer_decay", 0.5, "--epochs", 1, "--warmup_epochs", 0]  # fmt: skip
    done = train(*words, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "run" / "report.html").read_text()
    weights = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert not [name for name in weights if "gamma" in name] and "blocks.1.conv_dw.weight" in weights
    reopened = open_model(tmp_path / "run" / "best").state_dict()
    assert all(torch.equal(reopened[name], tensor) for name, tensor in weights.items())
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["architecture"] == "convnext_isotropic_small"
    code = recognition_code("local-dir:RUN/best", config)
    assert (
        code.splitlines()[1] == "import recognition_networks.convnext_isotropic  # of Strata" and code.splitlines()[1] in table
    )
    groups = json.loads((tmp_path / "run" / "args.json").read_text())
    assert groups["args"]["layer_decay"] == 0.5


def test_no_scale_is_refused_where_timm_has_one(tmp_path):
    done = train(
        "--model", "convnext_atto", "--model_kwargs", "depths=(1,1,1,1)", "dims=(8,8,8,8)", "--layer_scale_init_value", 0
    )
    assert done.returncode == 1 and "--layer_scale_init_value 0: as published it means no layer scale" in done.stderr
