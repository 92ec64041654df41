"""Sizes that a model does not take are refused when it is built, with those that it takes."""

import pytest
import torch

from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model

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


def test_grey_images_are_read_as_rgb():
    with pytest.raises(InputError, match="in_chans=1: images are read as RGB"):
        build_model(ModelOptions(model="resnet10t", model_kwargs=[("in_chans", 1)]), CLASSES, input_size=32)
