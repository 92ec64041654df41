"""Everything that a run needs to go on: saved together, checked together, put back together.

Random states are not among it: random numbers are keyed by seed, update and sample (utils/data/sampling.py).
"""

import dataclasses
import math
import os
import pathlib

import accelerate
import torch

from utils.cli.errors import InputError, first_line, one_line
from utils.model import sharding
from utils.model.weights import check_fit
from utils.run import checkpoint, folder


@dataclasses.dataclass
class Counters:
    """How far a run has come. epoch, update: numbers of the ones under way, from 0."""

    epoch: int = 0
    update: int = 0
    loss_sum: float = 0.0  # of this epoch's updates
    losses: int = 0
    skipped: int = 0  # updates that were left out
    skipped_in_a_row: int = 0
    best: dict = dataclasses.field(default_factory=dict)  # highest score by name
    best_loss: dict = dataclasses.field(default_factory=dict)  # validation loss of these weights
    waited: int = 0  # evaluations since the last of them
    bad_samples: list = dataclasses.field(default_factory=list)  # indices of broken training samples
    stream: dict = dataclasses.field(default_factory=dict)  # where reading a stream of data can begin
    batch: str = ""  # how an update is shared out, in words
    updates_per_epoch: int = 0
    batch_total: int = 0  # images per update

    def forget_others(self, saved, settings):
        """Leave out what holds by the settings that the state was `saved` with, and not by those that it goes on with."""
        other = {key for key in ("best_metric", "val_data", "data") if key in saved and saved[key] != settings.get(key)}
        if other & {"best_metric", "val_data"}:  # a score by another measure, or of other images
            self.best, self.best_loss, self.waited = {}, {}, 0
        if "data" in other:
            self.bad_samples = []  # numbers of other images

    def move_to(self, updates_per_epoch, batch_total):
        """Count in updates of another size: the position is the epoch and the images seen in it.

        Raises ValueError where these are no whole number of updates, or the epoch had another number of images.
        """
        if (self.updates_per_epoch, self.batch_total) == (updates_per_epoch, batch_total):
            return
        seen = (self.update - self.epoch * self.updates_per_epoch) * self.batch_total  # images, in the epoch under way
        updates, rest = divmod(seen, batch_total)
        whole = self.updates_per_epoch * self.batch_total // batch_total == updates_per_epoch
        if seen and not rest and self.batch_total == batch_total:
            raise ValueError(
                f"it was saved within an epoch of {self.updates_per_epoch} updates, and the data has {updates_per_epoch} now; "
                "a state from the end of an epoch can go on with other data"
            )
        if seen and (rest or not whole):
            raise ValueError(
                f"it was saved within an epoch, after {self.update - self.epoch * self.updates_per_epoch} of "
                f"{self.updates_per_epoch} updates of {self.batch_total} images, which are no whole number of updates of "
                f"{batch_total} images; take a state from the end of an epoch, or the batch it was saved with"
            )
        self.update = self.epoch * updates_per_epoch + updates
        self.updates_per_epoch, self.batch_total = updates_per_epoch, batch_total


class NonFiniteLoss(InputError):
    """The loss, or a weight, is not finite any more. run_folder: whose last good state the message names."""

    def __init__(self, what, run_folder):
        good = checkpoint.states(pathlib.Path(run_folder, "checkpoints")) if run_folder else []
        last = good[-1] if good else "none yet"
        super().__init__(f"{what}; the last good checkpoint is {last}; try a smaller --lr or --clip_grad 1")


def save(accelerator, log, run_folder, model, optimizer, ema, counters, settings, keep, config=None):
    """Save a state below `run_folder`/checkpoints. All processes call it together and learn what went wrong, or None.

    model: as it was before `prepare`; optimizer: as `prepare` returned it; ema may be None; settings: what decides the
    result; keep: number of states; config: for config.json of the state. A full disk is warned of; older states are whole
    then. Raises NonFiniteLoss, and saves nothing, where a weight is not finite.
    """
    weights, averaged = sharding.gather(model.state_dict()), ema and sharding.gather(ema.state_dict())
    optimizer_state = sharding.optimizer_state(optimizer.optimizer)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise NonFiniteLoss(f"the weights are not finite any more after update {counters.update - 1}", run_folder)
    fault = [None]
    if accelerator.is_main_process:
        scaler = accelerator.scaler and accelerator.scaler.state_dict()
        content = {**dataclasses.asdict(counters), "settings": settings, "scaler": scaler}
        path = os.path.join(run_folder, "checkpoints")
        try:
            if folder.put_back(run_folder):
                log.warn(f"{run_folder} was removed: it is made again, without what it held; training goes on")
            log.flush()
            checkpoint.save_state(path, counters.update, weights, optimizer_state, averaged, content, keep, config)
        except OSError as error:
            fault = [str(error)]
            log.warn(f"the state after update {counters.update} could NOT be saved: {error}; older ones are whole; training "
                     "goes on and tries again")  # fmt: skip
    accelerate.utils.broadcast_object_list(fault)
    return fault[0]


def load(path, accelerator, model, optimizer, ema, settings, batch, updates_per_epoch, say):
    """Put the state at `path` into place; returns its Counters, which count in updates of the Batch `batch`.

    Raises InputError where it does not fit.
    """
    weights, optimizer_state, averaged, state = checkpoint.load_state(path)
    try:  # all of it is checked before anything is put into place
        state = {"waited": 0, "best_loss": {}} | state  # states of before --patience, and of before ties, have none
        check_counters(state, dataclasses.asdict(Counters()))
        check_tensors("its weights", weights, model.state_dict())
        check_optimizer(optimizer_state, optimizer.optimizer)
        if ema:
            check_tensors("its average", averaged or weights, ema.state_dict())
        scaler, saved = state.pop("scaler"), state.pop("settings")
        counters = Counters(**state)
    except InputError as error:
        raise InputError(f"--resume {path} does not fit this run: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"--resume {path} is not a state of this project's: {first_line(error)}") from None
    if "classes" in saved and saved["classes"] != settings.get("classes"):  # an output would mean another class
        differ = folder.differences({"classes": saved["classes"]}, {"classes": settings.get("classes")})
        raise InputError(f"--resume {path}: {differ}; expected the same names in the same order: name the folders as they "
                         "were, or start from these weights with --finetune")  # fmt: skip
    if differ := folder.differences(saved, settings):
        say(f"note: this state was saved with other settings: {differ}")
    counters.forget_others(saved, settings)
    try:
        counters.move_to(updates_per_epoch, batch.total)
    except ValueError as error:
        raise InputError(f"--resume {path}: {error}") from None
    if counters.batch != str(batch):
        say(f"note: saved with {one_line(counters.batch)}, goes on with {batch}: order and augmentation of the data stay; "
            "mixup, dropout, drop path and batch norm see other batches, and sums differ by rounding")  # fmt: skip
        counters.batch = str(batch)
    try:
        sharding.load_model(model, weights)
        sharding.load_optimizer(optimizer.optimizer, optimizer_state)
        if ema:
            ema.load_state_dict(averaged or weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"--resume {path} does not fit this run: {first_line(error)}") from None
    if accelerator.scaler and scaler:
        accelerator.scaler.load_state_dict(scaler)
    say(f"resumed: {path}, epoch {counters.epoch + 1}, after {counters.update} updates")
    return counters


def load_weights_of(path, model):
    """Put the weights of the state at `path` into `model`, to evaluate it; returns those of its average, or None."""
    checkpoint.check(path)
    weights, _, averaged, _ = checkpoint.load_state(path)
    for tensors in (weights, averaged or weights):
        check_tensors(f"--resume {path}", tensors, model.state_dict())
    model.load_state_dict(weights)
    return averaged


def export(accelerator, log, model, config, run_folder, name):
    """Write the weights that `model` holds now, and `config`, to run_folder/name; all processes call it together.

    Returns what went wrong, or None: a full disk is warned of, and what was there before stays.
    """
    weights, fault = sharding.gather(model.state_dict()), [None]
    if accelerator.is_main_process:
        try:
            checkpoint.export_weights(os.path.join(run_folder, name), weights, config)
        except OSError as error:
            fault = [str(error)]
            log.warn(f"the weights for {name}/ could NOT be written: {error}; the ones before stay")
    accelerate.utils.broadcast_object_list(fault)
    return fault[0]


# --- whether a saved state fits a run: asked of the whole state before any of it is put into place


def check_counters(state, new):
    """ValueError where what state.json holds is of another kind than what a run begins with, `new`."""
    for name, usual in (new | {"settings": {}}).items():
        found = state[name]
        fits = isinstance(found, int | float if isinstance(usual, float) else type(usual)) and not isinstance(found, bool)
        if not fits or (isinstance(usual, int) and not 0 <= found < 2**53):
            raise ValueError(f"{name} is {found}")
    if not all(type(index) is int for index in state["bad_samples"]):
        raise ValueError(f"bad_samples is {state['bad_samples']}")
    for name, value in {**state["best"], **state["best_loss"], **(state["scaler"] or {})}.items():
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
