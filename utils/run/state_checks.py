"""Whether a saved state fits a run: asked of the whole state before any of it is put into place."""

import math

import torch

from utils.model import sharding
from utils.model.weights import check_fit


def check_counters(state, new):
    """ValueError where what state.json holds is of another kind than what a run begins with, `new`."""
    for name, usual in (new | {"settings": {}}).items():
        found = state[name]
        fits = isinstance(found, int | float if isinstance(usual, float) else type(usual)) and not isinstance(found, bool)
        if not fits or (isinstance(usual, int) and not 0 <= found < 2**53):
            raise ValueError(f"{name} is {found}")
    if not all(type(index) is int for index in state["bad_samples"]):
        raise ValueError(f"bad_samples is {state['bad_samples']}")
    for name, value in {**state["best"], **(state["scaler"] or {})}.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value}")


def check_tensors(what, found, wanted):
    """InputError for what is missing, unexpected or of another shape or kind."""
    fits = {
        name: tensor.shape == wanted[name].shape and tensor.is_floating_point() == wanted[name].is_floating_point()
        for name, tensor in found.items()
        if name in wanted
    }
    check_fit(
        what, [name for name in wanted if name not in found], [name for name in found if name not in wanted],
        [name for name, fit in fits.items() if not fit],
    )  # fmt: skip


def check_optimizer(found, optimizer):
    """ValueError where `found`, a saved state, has other groups than `optimizer`, options of other kinds, or other sizes."""
    for saved, now in zip(found["param_groups"], sharding.optimizer_state(optimizer)["param_groups"], strict=True):
        if saved["params"] != now["params"]:
            raise ValueError("the parameter groups are others")
        wrong = [name for name in now if name in saved and not _alike(saved[name], now[name])]
        if wrong:
            raise ValueError(f"{wrong[0]} of a parameter group is {saved[wrong[0]]}")
    parameters = sharding.parameters(optimizer)
    for number, moments in found["state"].items():
        for name, value in moments.items():
            if name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer") and value is not None and value.ndim:
                fits = value.shape == parameters[number].shape
            else:
                fits = type(number) is int and (name != "step" or not torch.is_tensor(value) or value.numel() == 1)
            if not fits or not _is_plain(value):
                raise ValueError(f"{name} of parameter {number} does not fit it")


def _is_plain(value):
    """Whether this is a number, an ordinary real tensor, None, or a list or dict of such."""
    if isinstance(value, list | tuple | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    if torch.is_tensor(value):
        plain = type(value) is torch.Tensor and value.layout == torch.strided and value.device.type == "cpu"
        return plain and not value.is_complex() and not value.is_quantized
    return value is None or isinstance(value, int | float)


def _alike(a, b):
    """Whether both are numbers, both lists of as many that are alike, or of one type; a switch may be None."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isfinite(a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return b is None or type(a) is type(b) or (a is None and isinstance(b, bool))
