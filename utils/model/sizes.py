"""Whether a model takes images of a size: a forward pass on the meta device tells before anything is written."""

import torch

from segmentation_networks.network import build_network
from utils.cli.errors import InputError, first_line

TRIES = 10  # other sizes that are tried, the nearest first, and last the one that timm gives the model


def check_crop(network, options, crop_size, eval_mode, say=print):
    """The evaluation mode: `eval_mode`, or "slide" in place of "whole" where the network takes crops only, which is said.

    network: SegmentationNetwork of these `options` of build_network. crop_size: pixels. Raises InputError, with the nearest
    sizes that it takes, if it takes no such crops.
    """
    name = f"backbone {options['backbone']}"
    check_size(network, crop_size, name, lambda size: build_network(**options, input_size=size), "--crop_size")
    if eval_mode != "whole" or all(_fault(network, size) is None for size in _other_images(crop_size)):
        return eval_mode
    say(f"--eval_mode slide: {name} takes images of {crop_size} pixels only, so that whole ones are looked at in windows")
    return "slide"


def _other_images(crop_size):
    """Sizes (H, W) of whole images, as an evaluation pads them."""
    return [(-(-(crop_size + more) // 32) * 32, -(-(crop_size + 2 * more) // 32) * 32) for more in (32, 64)]


def channels_of(model):
    """Channels of the images that a model of ours takes, 3 where nothing says it."""
    return getattr(getattr(model, "network", model), "in_chans", 3)


def check_batch_of_one(model, size, images):
    """Raise InputError if `model` cannot train on `images` per batch of `size` pixels: one, where batch norm sees one value."""
    if images > 1:
        return
    error = _fault(model, size, training=True)
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        raise InputError("--batch_size 1: batch norm has a single value per channel there, of which nothing is left; give 2")


def check_size(model, size, name, build, flag="--input_size"):
    """Raise InputError, with the nearest sizes that it takes, if `model` takes no images of `size` pixels.

    name: for the message. build: a function of a size that makes such a model for it.
    """
    error = _fault(model, size)
    if error is None:
        return
    taken = []
    own = (getattr(getattr(model, "backbone", model), "pretrained_cfg", None) or {}).get("input_size", (3, size, size))[-1]
    for other in [*_near(size), own]:
        if len(taken) < 2 and (not taken or (other < size) != (taken[0] < size)):
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                try:
                    works = _fault(build(other), other) is None
                except Exception:  # it cannot even be made
                    continue
            taken += [other] * works
    sizes = " or ".join(map(str, sorted(taken)))
    hint = f"; it takes {sizes}" if taken else "; take another model or size"
    reason = f" ({first_line(error)})" if str(error) else ""
    raise InputError(f"{flag} {size}: {name} does not take images of this size{reason}{hint}")


def _fault(model, size, training=False):
    """What a forward pass of one image raises, or None. Random numbers and the model's mode stay as they were.

    size: pixels, or (H, W). training: in training mode, on the meta device only, so that no statistic changes.
    """
    channels = channels_of(model)
    before, sides = model.training, size if isinstance(size, tuple) else (size, size)
    tensors = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                torch.func.functional_call(model, tensors, torch.zeros(1, channels, *sides, device="meta"))
            except Exception:
                if training:
                    raise
                device = next(model.parameters()).device
                model(torch.zeros(1, channels, *sides, device=device))  # what is no parameter may lie elsewhere than on meta
    except Exception as error:  # timm's models stumble over sizes in many ways
        return error
    finally:
        model.train(before)
    return None


def _near(size):
    """Sizes that patches of usual sides divide, the nearest to `size` first."""
    sizes = {side * count for side in (14, 16, 32) for count in range(1, size // side + 8)} - {size}
    return sorted(sizes, key=lambda other: (abs(other - size), other))[:TRIES]
