"""The updates since the last look at the device: their losses, rates and gradient norms."""

import contextlib
import math
import time

import accelerate
import torch

from utils import files
from utils.model.sharding import whole
from utils.run.state import NonFiniteLoss

DEVICE = "computing on the device"  # a GPU, all that it was given: the host waits for its numbers
MOST_UNSCALED = 30  # updates in a row: a loss scaler halves its scale at each, and begins at 2**16


class Updates:
    """Keeps what each update gave, on the device. `look` reads it, logs it and checks it: one wait for the device each time.

    counters: Counters of the run, of which the sums of losses, the updates left out and the broken samples are kept here.
    skip_nonfinite: so many updates in a row may be left out because their loss or gradient is not finite. statistics: the
    floating point buffers of the model, batch norm's, which an update that is left out does not change either.
    """

    def __init__(self, accelerator, counters, log, bad_samples=None, skip_nonfinite=0, statistics=()):
        self.accelerator, self.counters, self.log, self.bad_samples = accelerator, counters, log, bad_samples
        self.scaled = accelerator.scaler is not None  # a loss scaler leaves bad updates out by itself
        self.skip_nonfinite = 0 if self.scaled else skip_nonfinite
        self.statistics = [*statistics] if self.scaled or skip_nonfinite else []
        self.before = [tensor.clone() for tensor in self.statistics]  # of the update under way
        self.losses, self.norms, self.rates, self.skipped = [], [], [], []
        self.micro_batches = 0  # of the update under way
        self.restart_clock()

    def __len__(self):
        """Updates since the last look."""
        return len(self.rates)

    def add_loss(self, loss, replaced=()):
        """The loss () of a micro-batch, on the device; replaced: per sample the broken one it stands in for, or -1."""
        self.losses.append(loss.detach())
        self.micro_batches += 1
        if self.bad_samples is not None and len(replaced):
            self.bad_samples.note(replaced)

    def accepts(self, norm):
        """Whether the update under way is to be made; the same on all processes. norm: of its gradient.

        Waits for the device where --skip_nonfinite asks for it, and is True at once otherwise.
        """
        if not self.skip_nonfinite:
            return True
        loss = self.accelerator.reduce(torch.stack(self.losses[-self.micro_batches :]).float().mean(), "mean")
        finite = math.isfinite(loss) and math.isfinite(whole(norm))
        self._lap_of_device()
        if finite:
            self.counters.skipped_in_a_row = 0
            return True
        self.counters.skipped_in_a_row += 1
        if self.counters.skipped_in_a_row > self.skip_nonfinite:
            del self.losses[-self.micro_batches :]
            if self.rates:
                self.look()
            raise NonFiniteLoss(
                f"{self.counters.skipped_in_a_row} updates in a row, up to update {self.counters.update}, have a loss or a "
                f"gradient that is not finite, and --skip_nonfinite is {self.skip_nonfinite}", self.log.folder,
            )  # fmt: skip
        self.skipped.append(self.counters.update)
        return False

    def end(self, rate, norm=None, made=True):
        """The update under way is over; its learning rate, the norm of its gradient if known, and whether it was made.

        NonFiniteLoss where a loss scaler (fp16) has left out MOST_UNSCALED updates in a row: its scale is used up.
        """
        self.rates.append(rate)
        if norm is not None:
            self.norms.append(whole(norm))
        self.micro_batches = 0
        if self.statistics:
            torch._foreach_copy_(*((self.before, self.statistics) if made else (self.statistics, self.before)))
        if not self.scaled:
            return
        self.counters.skipped_in_a_row = 0 if made else self.counters.skipped_in_a_row + 1
        if not made:
            self.skipped.append(self.counters.update)
        if self.counters.skipped_in_a_row > MOST_UNSCALED:
            raise NonFiniteLoss(
                f"fp16: {self.counters.skipped_in_a_row} updates in a row, up to update {self.counters.update}, have a loss or "
                "a gradient that is not finite at any scale", self.log.folder,
            )  # fmt: skip

    def look(self):
        """Log the updates since the last look. NonFiniteLoss names the first bad one, and the range looked at."""
        means = torch.stack(self.losses).float().view(len(self.rates), -1).mean(1)
        found = len(self.bad_samples.pending) if self.bad_samples is not None else 0
        *losses, found = self.accelerator.reduce(torch.cat([means, means.new_tensor([found])]), "mean").tolist()
        self._lap_of_device()
        first, epoch = self.counters.update - len(losses), self.counters.epoch
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
                self.counters.loss_sum += record["loss"]  # one by one, so that the sum does not depend on when we look
                self.counters.losses += 1
            else:
                bad.append(record)
        self.log.updates(records)
        if self.skipped:
            self.counters.skipped += len(self.skipped)
            which = ", ".join(map(str, self.skipped))
            self.log.warn(
                f"left out for a loss or gradient that is not finite: update {which} ({self.counters.skipped} so far)"
            )
        self.log.progress(losses[-1], self.rates[-1])
        for kept in (self.losses, self.norms, self.rates, self.skipped):
            kept.clear()
        if found:
            self._merge_bad_samples()
        if bad and not self.scaled:
            raise NonFiniteLoss(
                f"the loss is {bad[0]['loss']} at update {bad[0]['update']} (epoch {epoch}), seen on looking at the updates "
                f"{first} to {self.counters.update - 1}", self.log.folder,
            )  # fmt: skip
        return records[-1]

    def _merge_bad_samples(self):
        for line in self.bad_samples.merge(accelerate.utils.gather_object([self.bad_samples.pending])):
            self.log.warn(line)
        self.counters.bad_samples = self.bad_samples.indices
        if self.log.folder:
            self.bad_samples.write(self.log.folder / "bad_samples.txt")
        self.bad_samples.check()

    # --- seconds of each part of an update

    def restart_clock(self):
        self.first, self.seconds, self.since = self.counters.update, {}, time.perf_counter()

    def lap(self, part):
        """The time since the last lap went into this part of the step, by the host's clock.

        A GPU computes while the host goes on: the time of its forward and backward passes is that of DEVICE, where the host
        waits for its losses.
        """
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now

    def _lap_of_device(self):
        if self.accelerator.device.type != "cpu":
            self.lap(DEVICE)

    def write_seconds(self):
        """The seconds of each part of an update of this epoch, in timing.json."""
        updates = self.counters.update - self.first
        if self.log.folder and updates:
            with contextlib.suppress(OSError):
                files.write_json(
                    self.log.folder / "timing.json", {part: total / updates for part, total in self.seconds.items()}
                )
