"""Whether a model takes images of a size: a forward pass on the meta device tells before anything is written."""

import torch

from utils.cli.errors import InputError, first_line

TRIES = 10  # other sizes that are tried, the nearest first, and last the one that timm gives the model


def check_size(model, size, name, build):
    """Raise InputError, with the nearest sizes that it takes, if `model` takes no images of `size` pixels.

    name: for the message. build: a function of a size that makes such a model for it.
    """
    error = _fault(model, size)
    if error is None:
        return
    taken = []
    own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, size, size))[-1]
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
    raise InputError(f"--input_size {size}: {name} does not take images of this size{reason}{hint}")


def _fault(model, size):
    """What a forward pass of one image raises, or None. Random numbers and the model's mode stay as they were."""
    training = model.training
    tensors = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                torch.func.functional_call(model, tensors, torch.zeros(1, 3, size, size, device="meta"))
            except Exception:
                device = next(model.parameters()).device
                model(torch.zeros(1, 3, size, size, device=device))  # what is no parameter may lie elsewhere than on meta
    except Exception as error:  # timm's models stumble over sizes in many ways
        return error
    finally:
        model.train(training)
    return None


def _near(size):
    """Sizes that patches of usual sides divide, the nearest to `size` first."""
    sizes = {side * count for side in (14, 16, 32) for count in range(1, size // side + 8)} - {size}
    return sorted(sizes, key=lambda other: (abs(other - size), other))[:TRIES]
