"""timm models as the flags ask for them, and the config.json that opens them again."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model, timm_config

VIEW = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}


def build(name, classes=("a", "b"), input_size=32, **options):
    return build_model(ModelOptions(model=name, **options), list(classes), input_size=input_size)


def test_flags_take_effect():
    body = [("depths", (1, 1, 1, 1)), ("dims", (8, 8, 8, 8))]  # pairs, as the flag gives them
    torch.manual_seed(0)
    plain = build("convnext_atto", model_kwargs=body)
    torch.manual_seed(0)
    changed = build("convnext_atto", model_kwargs=body, drop_path=0.2, layer_scale_init_value=0.5, head_init_scale=0.25)
    assert changed.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    assert (changed.stages[0].blocks[0].gamma == 0.5).all()
    assert torch.equal(changed.head.fc.weight, 0.25 * plain.head.fc.weight) and plain.head.fc.weight.shape == (2, 8)
    small = [("layers", (1, 1, 1, 1)), ("channels", (8, 8, 8, 8))]
    last = build("resnet18", model_kwargs=small, last_gamma=True, drop_block=0.1).layer4[0]
    assert not last.bn2.weight.any() and last.drop_block.drop_prob == 0.1


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("convnext_aato", {}, "unknown model 'convnext_aato', did you mean convnext_atto"),
        ("resnet18", {"layer_scale_init_value": 0.1}, "--model resnet18 does not take one of the flags"),
        (
            "convnext_atto",
            {"layer_scale_init_value": 0},
            "it means no layer scale, and convnext_atto always has one",
        ),
        ("resnet18", {"model_kwargs": [("checkpoint_path", "w.pth")]}, "checkpoint_path: not an option of a model"),
        ("resnet18", {"model_kwargs": [("channels", ())]}, "--model resnet18 cannot be made"),
        ("resnet18", {"model_kwargs": [("global_pool", "")]}, "global_pool=: every class has one logit for an image"),
        ("convnext_atto", {"model_kwargs": [("num_classes", 0)]}, "num_classes=0: every class has one logit for an image"),
    ],
)
def test_what_a_model_does_not_take_is_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["convnextv2_atto", "vit_tiny_patch16_224"])  # the second is made for one size of images
def test_timm_opens_what_the_config_describes(tmp_path, name):
    body = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)} if name == "convnextv2_atto" else {"depth": 1, "embed_dim": 12}
    model = build(name, input_size=64, model_kwargs=body).eval()
    config = timm_config(model, name, ["a", "b"], input_size=64, model_kwargs=body, **VIEW)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(opened(images), model(images))
    assert tuple(timm.data.resolve_model_data_config(opened)["input_size"]) == (3, 64, 64)
