"""Everything that a run needs to go on, saved and put back; and the weights it leaves for others.

Random states are not among it: the numbers are keyed by seed and update (see sampling.py).
"""

import math
import os
import pathlib

import torch

from utils import checkpoint, run_folder, sharding
from utils.arguments import InputError, first_line


class NonFiniteLoss(InputError):
    """The loss, or a weight, is no number any more. `folder`: of the run, to name its last good state."""

    def __init__(self, what, folder):
        good = checkpoint.states(pathlib.Path(folder, "checkpoints")) if folder else []
        last = good[-1] if good else "none yet"
        super().__init__(f"{what}; the last good checkpoint is {last}; try a smaller --lr or --clip_grad 1")


def log_updates(log, state, losses, rates, norms, scaled):
    """Append the last updates to updates.txt; returns the sum of their losses.

    losses, rates: floats, one per update up to state["update"]; norms: of the gradients, empty without clipping;
    scaled: whether a loss scaler skips bad updates. Otherwise NonFiniteLoss names the first update with a bad loss.
    """
    first = state["update"] - len(rates)
    records = [
        {"update": first + i, "epoch": state["epoch"], "loss": loss, "lr": lr}
        for i, (loss, lr) in enumerate(zip(losses, rates, strict=True))
    ]
    for record, norm in zip(records, norms, strict=False):
        record["grad_norm"] = float(norm)
    log.updates(records)
    bad = next((record for record in records if not math.isfinite(record["loss"])), None)
    if bad and not scaled:
        where = f"at update {bad['update']} (epoch {state['epoch']})"
        raise NonFiniteLoss(f"the loss is {bad['loss']} {where}", log.folder)
    return sum(losses)


def improves(best, name, value):
    """Whether `value` is the best of its name so far; if so it is noted."""
    if value <= best.get(name, -1.0):
        return False
    best[name] = value
    return True


def save(accelerator, folder, model, optimizer, ema, state, settings, keep):
    """Save the state of a run below `folder`/checkpoints; all processes call it together.

    model: as it was before `prepare`; optimizer: as `prepare` returned it; ema may be None; state: counters;
    settings: what decides the result. Raises NonFiniteLoss, and saves nothing, where a weight is not finite.
    """
    weights, averaged = sharding.gather(model.state_dict()), ema and sharding.gather(ema.state_dict())
    optimizer_state = sharding.gather(optimizer.optimizer.state_dict())
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise NonFiniteLoss(f"the weights are not finite any more after update {state['update'] - 1}", folder)
    if accelerator.is_main_process:
        scaler = accelerator.scaler and accelerator.scaler.state_dict()
        content = {**state, "settings": settings, "scaler": scaler}
        path = os.path.join(folder, "checkpoints")
        checkpoint.save_state(path, state["update"], weights, optimizer_state, averaged, content, keep)
    accelerator.wait_for_everyone()


def load(path, accelerator, model, optimizer, ema, settings, say):
    """Put the state at `path` into place; returns its counters. Raises InputError where it does not fit."""
    weights, optimizer_state, averaged, state = checkpoint.load_state(path)
    if differ := run_folder.differences(state.pop("settings"), settings):
        say(f"note: this state was saved with other settings: {differ}")
    try:
        sharding.load_model(model, weights)
        sharding.load_optimizer(optimizer.optimizer, optimizer_state)
        if ema:
            ema.load_state_dict(averaged or weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"--resume {path} does not fit this run: {first_line(error)}") from None
    scaler = state.pop("scaler")
    if accelerator.scaler and scaler:
        accelerator.scaler.load_state_dict(scaler)
    say(f"resumed: {path}, epoch {state['epoch'] + 1}, after {state['update']} updates")
    return state


def export(accelerator, model, config, output_dir, name):
    """Write the weights that `model` holds now, and `config`, to output_dir/name; all processes call it together."""
    weights = sharding.gather(model.state_dict())
    if accelerator.is_main_process:
        checkpoint.export_weights(os.path.join(output_dir, name), weights, config)
