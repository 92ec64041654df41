"""Everything that a run needs to go on, saved and put back; what its losses say; and the weights it leaves for others.

Random states are not among it: the numbers are keyed by seed and update (see sampling.py).
"""

import contextlib
import math
import os
import pathlib
import time

import accelerate
import torch

from utils.cli.errors import InputError, first_line, one_line
from utils.model import sharding
from utils.run import checkpoint
from utils.run import folder as run_folder
from utils.run import log as run_log
from utils.run.state_checks import check_counters, check_optimizer, check_tensors


class NonFiniteLoss(InputError):
    """The loss, or a weight, is no number any more. `folder`: of the run, to name its last good state."""

    def __init__(self, what, folder):
        good = checkpoint.states(pathlib.Path(folder, "checkpoints")) if folder else []
        last = good[-1] if good else "none yet"
        super().__init__(f"{what}; the last good checkpoint is {last}; try a smaller --lr or --clip_grad 1")


class Watch:
    """The losses since the last look, still on the device, and the broken samples of this process.

    A look averages the losses over the processes, writes updates.txt, and checks them: one sync every so many updates.
    state: the run's counters, of which "loss_sum", "skipped" and "bad_samples" are kept here. bad_samples: BadSamples or
    None. skip_nonfinite: so many updates in a row may be left out because their loss or gradient is no number.
    """

    def __init__(self, accelerator, state, log, bad_samples=None, skip_nonfinite=0):
        self.accelerator, self.state, self.log, self.bad_samples = accelerator, state, log, bad_samples
        self.scaled = accelerator.scaler is not None  # a loss scaler leaves bad updates out by itself
        self.skip_nonfinite = 0 if self.scaled else skip_nonfinite
        self.losses, self.norms, self.rates, self.skipped = [], [], [], []
        self.first, self.times, self.since = state["update"], {}, time.perf_counter()

    def lap(self, part):
        """The time since the last lap went into this part of the step; on a GPU, what the host waited for there."""
        now = time.perf_counter()
        self.times[part] = self.times.get(part, 0.0) + now - self.since
        self.since = now

    def finish(self):
        """The end of an epoch: look at the last updates, and leave the seconds of each part of an update in timing.json."""
        if self.rates:
            self.look()
        updates = self.state["update"] - self.first
        if self.log.folder and updates:
            with contextlib.suppress(OSError):
                seconds = {part: total / updates for part, total in self.times.items()}
                run_log.write_json(self.log.folder / "timing.json", seconds)

    def __len__(self):
        """Updates since the last look."""
        return len(self.rates)

    def step(self, loss, replaced=()):
        """One micro-batch: its loss (), on the device; replaced: per sample the broken one it stands in for, or -1."""
        self.losses.append(loss.detach())
        if self.bad_samples is not None and len(replaced):
            self.bad_samples.note(replaced)

    def leaves_out(self, steps, norm):
        """Whether the update of the last `steps` micro-batches is to be left out; the same on all processes.

        norm: of its gradients. Looks at the device, which only --skip_nonfinite pays for.
        """
        loss = self.accelerator.reduce(torch.stack(self.losses[-steps:]).float().mean(), "mean")
        if math.isfinite(loss) and math.isfinite(sharding.whole(norm)):
            self.state["skipped_in_a_row"] = 0
            return False
        self.state["skipped_in_a_row"] += 1
        if self.state["skipped_in_a_row"] > self.skip_nonfinite:
            del self.losses[-steps:]
            if self.rates:
                self.look()
            raise NonFiniteLoss(
                f"{self.state['skipped_in_a_row']} updates in a row, up to update {self.state['update']}, have a loss or a "
                f"gradient that is no number, and --skip_nonfinite is {self.skip_nonfinite}", self.log.folder,
            )  # fmt: skip
        self.skipped.append(self.state["update"])
        return True

    def end_update(self, rate, norm=None):
        """The update of state["update"] is done; its learning rate and, if known, the norm of its gradients."""
        self.rates.append(rate)
        if norm is not None:
            self.norms.append(sharding.whole(norm))

    def look(self):
        """Log the updates since the last look. NonFiniteLoss names the first bad one, and the range looked at."""
        means = torch.stack(self.losses).float().view(len(self.rates), -1).mean(1)
        found = len(self.bad_samples.pending) if self.bad_samples is not None else 0
        *losses, found = self.accelerator.reduce(torch.cat([means, means.new_tensor([found])]), "mean").tolist()
        first, epoch = self.state["update"] - len(losses), self.state["epoch"]
        records = [
            {"update": first + i, "epoch": epoch, "loss": loss, "lr": rate}
            for i, (loss, rate) in enumerate(zip(losses, self.rates, strict=True))
        ]
        if self.norms:
            norms = torch.stack([torch.as_tensor(norm, device=means.device) for norm in self.norms]).tolist()
            for record, norm in zip(records, norms, strict=True):
                record["grad_norm"] = norm
        bad = []
        for record in records:
            if record["update"] in self.skipped:
                record["skipped"] = True
            elif math.isfinite(record["loss"]):
                self.state["loss_sum"] += record["loss"]  # one by one, so that the sum does not depend on when we look
                self.state["losses"] += 1
            else:
                bad.append(record)
        self.log.updates(records)
        if self.skipped:
            self.state["skipped"] += len(self.skipped)
            which = ", ".join(map(str, self.skipped))
            self.log.warn(f"left out for a loss or gradient that is no number: update {which} ({self.state['skipped']} so far)")
        self.log.progress(losses[-1], self.rates[-1])
        for kept in (self.losses, self.norms, self.rates, self.skipped):
            kept.clear()
        if found:
            self._merge_bad_samples()
        if bad and not self.scaled:
            raise NonFiniteLoss(
                f"the loss is {bad[0]['loss']} at update {bad[0]['update']} (epoch {epoch}), seen on looking at the updates "
                f"{first} to {self.state['update'] - 1}", self.log.folder,
            )  # fmt: skip

    def _merge_bad_samples(self):
        for line in self.bad_samples.merge(accelerate.utils.gather_object([self.bad_samples.pending])):
            self.log.warn(line)
        self.state["bad_samples"] = self.bad_samples.indices
        if self.log.folder:
            self.bad_samples.write(self.log.folder / "bad_samples.txt")
        self.bad_samples.check()


def new_state(share):
    """The counters of a run that begins. share: how its batch is shared out, in words."""
    counters = {"epoch": 0, "update": 0, "loss_sum": 0.0, "losses": 0, "skipped": 0, "skipped_in_a_row": 0}
    return {**counters, "best": {}, "bad_samples": [], "stream": {}, "share": share}


def keep_best(best, name, value, keep):
    """If `value` is the best of its name so far, `keep()` the weights, and note it unless that failed; whether that was so."""
    improved = value > best.get(name, -1.0) and keep() is None
    if improved:
        best[name] = value
    return improved


def save(accelerator, log, folder, model, optimizer, ema, state, settings, keep, stream=None):
    """Save the state of a run below `folder`/checkpoints; all processes call it together and learn what went wrong, or None.

    model: as it was before `prepare`; optimizer: as `prepare` returned it; ema may be None; state: counters; settings: what
    decides the result; stream: StreamLoader of the training data, if that is one. A full disk is warned of; older states
    are whole then. Raises NonFiniteLoss, and saves nothing, where a weight is not finite.
    """
    weights, averaged = sharding.gather(model.state_dict()), ema and sharding.gather(ema.state_dict())
    optimizer_state = sharding.optimizer_state(optimizer.optimizer)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise NonFiniteLoss(f"the weights are not finite any more after update {state['update'] - 1}", folder)
    fault = [None]
    if accelerator.is_main_process:
        scaler = accelerator.scaler and accelerator.scaler.state_dict()
        state["stream"] = stream.state_dict() if stream else {}
        content = {**state, "settings": settings, "scaler": scaler}
        path = os.path.join(folder, "checkpoints")
        try:
            log.flush()
            checkpoint.save_state(path, state["update"], weights, optimizer_state, averaged, content, keep)
        except OSError as error:
            fault = [str(error)]
            log.warn(f"the state after update {state['update']} could NOT be saved: {error}; older ones are whole; training "
                     "goes on and tries again")  # fmt: skip
    accelerate.utils.broadcast_object_list(fault)
    return fault[0]


def load(path, accelerator, model, optimizer, ema, settings, share, say):
    """Put the state at `path` into place; returns its counters. Raises InputError where it does not fit."""
    weights, optimizer_state, averaged, state = checkpoint.load_state(path)
    try:  # all of it is checked before anything is put into place
        check_counters(state, new_state(share))
        check_tensors("its weights", weights, model.state_dict())
        check_optimizer(optimizer_state, optimizer.optimizer)
        if ema:
            check_tensors("its average", averaged or weights, ema.state_dict())
    except InputError as error:
        raise InputError(f"--resume {path} does not fit this run: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"--resume {path} is not a state of this project's: {first_line(error)}") from None
    if differ := run_folder.differences(state.pop("settings"), settings):
        say(f"note: this state was saved with other settings: {differ}")
    if state["share"] != share:
        say(f"note: saved with {one_line(state['share'])}, goes on with {share}: order and augmentation of the data stay; "
            "mixup, dropout, drop path and batch norm see other batches, and sums differ by rounding")  # fmt: skip
        state["share"] = share
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


def export(accelerator, log, model, config, output_dir, name):
    """Write the weights that `model` holds now, and `config`, to output_dir/name; all processes call it together.

    Returns what went wrong, or None: a full disk is warned of, and what was there before stays.
    """
    weights, fault = sharding.gather(model.state_dict()), [None]
    if accelerator.is_main_process:
        try:
            checkpoint.export_weights(os.path.join(output_dir, name), weights, config)
        except OSError as error:
            fault = [str(error)]
            log.warn(f"the weights for {name}/ could NOT be written: {error}; the ones before stay")
    accelerate.utils.broadcast_object_list(fault)
    return fault[0]


def end(accelerator, log, folder, best, fault):
    """Mark the run as finished. fault: of its last save or of last/; then InputError says how to get it whole."""
    if accelerator.is_main_process and not fault:
        try:
            log.flush()
            run_folder.mark_finished(folder, best)
        except OSError as error:
            fault = str(error)
    if fault:
        raise InputError(
            f"trained to the end, but the last save failed: {fault}; make room and run the same command with --output_dir "
            f"{folder}, which goes on from the last whole state"
        )
