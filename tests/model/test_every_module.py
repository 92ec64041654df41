"""One model of each module of timm, as classifier or as backbone: it runs, or is refused in one line that says what to do."""

import pytest
import timm
import torch

from segmentation_networks.network import build_network
from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.processes import fit_to_hardware
from utils.model.recognition import build_model
from utils.model.sizes import check_batch_of_one, check_crop

SMALL = "test_ atto femto pico nano xxs xxtiny _m0 _s0 xs mini tiny s12 _b0 18 26 small".split()
SLOW = {"sequencer"}  # its recurrent layers take a minute on the meta device
ITEMS = {"gemma4_vit"}  # asks tensors for their values, which those on the meta device do not have
SIZES = (64, 224)


def small_model(module):
    names = timm.list_models(module=module)
    return min(names, key=lambda name: (min([i for i, word in enumerate(SMALL) if word in name], default=99), len(name), name))


def runs_or_says_why_not(build, check, checkpointing, size):
    """Train on two images and on one, and look at a larger one if that is what evaluation does."""
    try:
        model = build()
        mode = check(model)
        model = fit_to_hardware(model, grad_checkpointing=checkpointing).train()
        found = model(torch.zeros(2, 3, size, size))
        (found["logits"] if isinstance(found, dict) else found).sum().backward()
        check_batch_of_one(model, size, 1)
        model(torch.zeros(1, 3, size, size))
        if mode == "whole":
            model.eval()(torch.zeros(1, 3, size + 32, 2 * size))
    except InputError as error:
        assert "\n" not in str(error) and any(word in str(error) for word in ("take", "leave", "give"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "module"), enumerate(sorted({*timm.list_modules()} - SLOW - ITEMS)))
def test_of_each_module_a_model_runs_or_is_refused_before_training(number, module):
    """Every second module as classifier, the others as backbone: all as both would take minutes."""
    name = small_model(module)
    size = SIZES[len(module) % 2]
    options = {"backbone": name, "head": "fcn", "classes": 3, "head_kwargs": {"channels": 8}}
    with torch.device("meta"):
        if number % 2:
            runs_or_says_why_not(
                lambda: build_model(ModelOptions(model=name), ["a", "b"], input_size=size), lambda _: None, True, size
            )
        else:
            runs_or_says_why_not(
                lambda: build_network(**options, input_size=size),
                lambda network: check_crop(network, options, size, "whole", lambda line: None),
                False, size,
            )  # fmt: skip
