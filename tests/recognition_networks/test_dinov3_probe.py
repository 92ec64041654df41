"""The probe of DINOv3: what its classifier sees, the weights that it takes, and that nothing else learns."""

import json

import pytest
import timm
import torch
from conftest import train
from safetensors.torch import load_file, save_file

from utils.cli.recognition_flags import ModelOptions
from utils.model.processes import fit_to_hardware
from utils.model.recognition import build_model, open_model, timm_config
from utils.model.weights import load_weights

NAME = "vit_small_patch16_dinov3_probe"
TINY = {"depth": 2, "embed_dim": 24, "num_heads": 2}


def build(**options):
    return build_model(ModelOptions(NAME, model_kwargs=list(TINY.items()), **options), list("abc"), input_size=32)


def test_the_classifier_sees_the_class_token_and_the_mean_of_the_patches():
    model = build().eval()
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.3) and not model.head.bias.any()
    images = torch.randn(2, 3, 32, 48)  # 2 x 3 patches
    tokens = model.forward_features(images)  # the class token, four registers, the patches
    assert tokens.shape == (2, 1 + 4 + 6, 24)
    seen = torch.stack([torch.cat([row[0], row[5:].sum(0) / 6]) for row in tokens])
    torch.testing.assert_close(model(images), seen @ model.head.weight.T)


@pytest.mark.parametrize("size, width, parameters", [("small", 384, 22_355_944), ("7b", 4096, 6_724_223_976)])
def test_sizes(size, width, parameters):
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch16_dinov3_probe", num_classes=1000)
    assert model.head.in_features == 2 * width and sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.pretrained_cfg["hf_hub_id"] == f"timm/vit_{size}_patch16_dinov3.lvd1689m"


def test_timms_weights_go_in_whichever_way_they_come(tmp_path):
    body = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **TINY)
    save_file(body.state_dict(), tmp_path / "model.safetensors")
    fetched = timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")}, num_classes=3, **TINY
    )
    given = build()
    assert load_weights(given, tmp_path / "model.safetensors")[-1].endswith("new 2 (head.bias, head.weight)")
    for model in (fetched, given):
        ours = model.state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in body.state_dict().items())
        assert set(ours) - set(body.state_dict()) == {"head.weight", "head.bias"}


def test_its_weights_open_again(tmp_path):
    model = build().eval()
    view = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}
    config = timm_config(model, NAME, list("abc"), input_size=32, model_kwargs=list(TINY.items()), **view)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert config["module"] == "recognition_networks.dinov3_probe" and torch.equal(open_model(tmp_path)(images), model(images))


@pytest.mark.parametrize("name", [NAME, "convnext_atto", "resnet18"])
def test_all_but_the_classifier_is_frozen_in_evaluation_mode(name):
    body = {NAME: TINY, "convnext_atto": {"depths": (1,) * 4, "dims": (8,) * 4}, "resnet18": {"channels": (8,) * 4}}[name]
    kwargs = [*body.items(), ("drop_rate", 0.5)]
    model = build_model(ModelOptions(name, model_kwargs=kwargs, drop_path=0.5), list("abc"), input_size=32)
    model = fit_to_hardware(model, freeze="backbone").train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert {parameter.shape for parameter in model.parameters() if parameter.grad is not None} == {
        model.get_classifier().weight.shape,
        (3,),
    }
    holders = {id(model), id(getattr(model, "head", None)), id(model.get_classifier())}
    training = [name for name, part in model.named_modules() if part.training and id(part) not in holders]
    assert all("drop" in name for name in training), training  # dropout before the classifier is its own
    assert model.get_classifier().training


@pytest.mark.slow
def test_a_run_changes_the_classifier_alone(tmp_path):
    save_file(timm.create_model("vit_small_patch16_dinov3", num_classes=0, **TINY).state_dict(), tmp_path / "body.safetensors")
    words = f"--model {NAME} --model_kwargs depth=2 embed_dim=24 num_heads=2 --freeze backbone --opt momentum --epochs 1"
    words += f" --warmup_epochs 0 --finetune {tmp_path / 'body.safetensors'} --output_dir {tmp_path / 'run'}"
    done = train(*words.split())
    assert done.returncode == 0, done.stderr
    start, end = load_file(tmp_path / "body.safetensors"), load_file(tmp_path / "run/best/model.safetensors")
    assert all(torch.equal(end[name], tensor) for name, tensor in start.items()) and end["head.weight"].shape == (10, 48)
