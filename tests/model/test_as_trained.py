"""What weights say of how they were trained: timm's numbers for names of timm's, folders and the licence; files say nothing."""

import json

import pytest
import timm
import torch
from timm.data import resolve_data_config

from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.as_trained import as_trained
from utils.model.recognition import build_model
from utils.result.export import open_result

NAMES = (
    "vit_base_patch16_224.augreg2_in21k_ft_in1k vit_base_patch32_clip_256.datacompxl vit_base_patch16_siglip_224.webli "
    "vit_small_patch16_dinov3.lvd1689m beit_base_patch16_224.in22k_ft_in22k_in1k beitv2_base_patch16_224.in1k_ft_in22k_in1k "
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k convnext_tiny.in12k_ft_in1k_384 convnextv2_atto.fcmae_ft_in1k "
    "inception_v3.tv_in1k dpn68.mx_in1k vit_small_patch14_dinov2.lvd142m resnet50.a1_in1k"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_timms(name):
    wanted = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    for start in (as_trained(None, name), as_trained(f"timm/{name}"), as_trained(f"hf-hub:timm/{name}")):
        found = start.images
        assert (3, found["input_size"], found["input_size"]) == tuple(wanted["input_size"])
        assert tuple(found["mean"]) == tuple(wanted["mean"]) and tuple(found["std"]) == tuple(wanted["std"])
        assert (found["crop_pct"], found["crop_mode"]) == (wanted["crop_pct"], wanted["crop_mode"])
        assert found["eval_interpolation"] == wanted["interpolation"]
        assert start.license == timm.get_pretrained_cfg(name).license


def test_one_line_says_it():
    assert str(as_trained(None, "vit_base_patch32_clip_256.datacompxl")) == (
        "as the weights were trained: 256 pixels, crop 1.0, mean of CLIP, licence apache-2.0"
    )
    assert str(as_trained(None, "convnextv2_atto.fcmae_ft_in1k")).endswith("mean of ImageNet, licence cc-by-nc-4.0")


def test_a_folder_says_it_and_a_file_does_not(tmp_path):
    cfg = {"input_size": [3, 40, 40], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop_pct": 0.8, "crop_mode": "border"}
    config = {"architecture": "resnet10t", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": cfg}
    config |= {"model_args": {"stem_width": 16}, "tta_flip": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    for source in (tmp_path, str(tmp_path), f"local-dir:{tmp_path}"):
        start = as_trained(source)
        assert start.classes == ["cat", "dog"] and start.license == "cc-by-4.0" and start.images["crop_mode"] == "border"
        assert start.evaluation == {"model": "resnet10t", "model_kwargs": [("stem_width", 16)], "tta_flip": True}
    (tmp_path / "model.safetensors").touch()
    assert as_trained(tmp_path / "model.safetensors") is None
    assert as_trained("https://example.org/weights.pth") is None
    assert as_trained("hf-hub:nobody/nothing") is None  # it cannot be asked: the machine is offline
    odd = [{"architecture": "hf-hub:some/one"}, {"label_names": [1, 2]}, {"model_args": 3}]
    wrong = {
        "mean": [0.5],
        "std": [0.2, 0, 0.2],
        "input_size": [3, 0, 0],
        "crop_pct": 1.5,
        "crop_mode": "odd",
        "interpolation": "x",
    }
    for change in (*odd, *({"pretrained_cfg": cfg | {name: value}} for name, value in wrong.items())):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match="describes no model as timm does"):
            as_trained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext"}))  # of Transformers
    assert as_trained(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [("resnet10t", {}, 64), ("test_vit", {"img_size": 64}, 64), ("mobilenetv3_small_050", {"in_chans": 1}, 64)],
)
def test_a_folder_that_timm_wrote_is_opened_and_its_model_is_built_again(tmp_path, name, kwargs, size):
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    channels = kwargs.get("in_chans", 3)
    images = torch.rand(2, channels, size, size)
    opened, facts = open_result(tmp_path)
    assert torch.equal(opened(images), model(images)) and facts["classes"] == ["a", "b", "c"]
    start = as_trained(tmp_path)
    options = ModelOptions(name, model_kwargs=start.evaluation["model_kwargs"], in_chans=start.evaluation.get("in_chans"))
    built = build_model(options, start.classes, input_size=size).eval()  # as --eval and --predict build it
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(images), model(images))
    assert build_model(options, start.classes, input_size=96).eval()(torch.rand(1, channels, 96, 96)).shape == (1, 3)
