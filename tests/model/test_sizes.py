"""Sizes that a model does not take are refused when it is built, with those that it takes."""

import pytest
import torch

from segmentation_networks.network import build_network
from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model
from utils.model.sizes import check_batch_of_one, check_crop

CLASSES = ["a", "b"]


@pytest.mark.parametrize(
    "name, size, near",
    [("test_vit", 100, "96 or 112"), ("halonet26t", 224, "252")],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_size_that_does_not_divide_is_refused_with_its_neighbours(name, size, near, device):
    with (
        pytest.raises(InputError, match=rf"^--input_size {size}: {name} does not take [^\n]+; it takes {near}$"),
        torch.device(device),
    ):
        build_model(ModelOptions(model=name), CLASSES, input_size=size)


def test_the_check_leaves_random_numbers_and_mode_alone():
    torch.manual_seed(0)
    model = build_model(ModelOptions(model="test_vit"), CLASSES, input_size=96)
    found, weights = torch.rand(1), model.state_dict()
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=2, img_size=96)
    assert torch.equal(torch.rand(1), found) and model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())


def test_channels_are_named_by_their_flag():
    with pytest.raises(InputError, match="in_chans=1: give --in_chans"):
        build_model(ModelOptions(model="resnet10t", model_kwargs=[("in_chans", 1)]), CLASSES, input_size=32)


def crop_options(backbone):
    return {"backbone": backbone, "head": "fcn", "classes": 2, "head_kwargs": {"channels": 8}}


@pytest.mark.parametrize("backbone, size, near", [("efficientformer_l1", 64, "224"), ("inception_v4", 64, "80")])
def test_a_crop_that_the_backbone_does_not_take_is_refused(backbone, size, near):
    options = crop_options(backbone)
    with torch.device("meta"):
        network = build_network(**options, input_size=size)
        with pytest.raises(
            InputError, match=rf"^--crop_size {size}: backbone {backbone} does not take [^\n]+; it takes {near}"
        ):
            check_crop(network, options, size, "whole")


@pytest.mark.parametrize(
    "backbone, mode", [("test_vit_relpos", "slide"), ("tnt_s_patch16_224", "slide"), ("resnet10t", "whole")]
)
def test_whole_images_are_looked_at_in_windows_where_the_backbone_has_one_size(backbone, mode):
    options, said = crop_options(backbone), []
    with torch.device("meta"):
        network = build_network(**options, input_size=64)
    assert check_crop(network, options, 64, "whole", said.append) == mode
    assert check_crop(network, options, 64, "crop", said.append) == "crop"
    assert [line.split(":")[0] for line in said] == ["--eval_mode slide"] * (mode == "slide")


@pytest.mark.parametrize("backbone", ["nest_tiny", "pit_xs_224", "shvit_s1", "efficientvit_m0"])
def test_a_backbone_of_fewer_maps_is_refused_in_words(backbone):
    with torch.device("meta"), pytest.raises(InputError, match=f"backbone {backbone} gives no four feature maps; take another"):
        build_network(**crop_options(backbone), input_size=64)


def test_a_batch_of_one_whose_norm_sees_one_value_is_refused():
    model = build_model(ModelOptions(model="resnet10t"), CLASSES, input_size=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="^--batch_size 1: batch norm has a single value per channel there[^\n]+; give 2$"):
        check_batch_of_one(model, 32, 1)
    check_batch_of_one(model, 32, 2)
    check_batch_of_one(model, 64, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
