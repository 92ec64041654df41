"""When a run saves its state and when it stops: by updates, by the clock, by signals; on all processes at the same update."""

import contextlib
import os
import signal
import threading
import time

import torch
import torch.distributed

from utils.cli.errors import Stopped
from utils.model.processes import PATIENCE

RETRY = 60.0  # seconds after which a save that failed is tried again, if no other comes before
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
_SAVE, _STOP = 1, 100  # what processes tell each other; a signal's number is added to _STOP


class Signals:
    """What the processes agree on between two updates: to go on, to save, or to stop.

    Each process says after an update what it wants, and hears the largest wish that was said after the update before. So
    all of them save or stop at the same update, and none waits for another one's device: the wishes travel on the CPU
    while the next update runs. As a context it catches SIGTERM, SIGUSR1 and SIGINT.

    saves: whether the run saves states; updates, minutes: between two of them, or None.
    """

    def __init__(self, *, is_main=True, processes=1, saves=True, updates=None, minutes=None):
        self.is_main, self.saves, self.updates = is_main, saves, updates
        self.period = 60 * minutes if minutes else None
        self.group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if processes > 1 else None
        self.answer = self.work = None  # of the exchange that is under way
        self.signal = self.agreed = 0
        self.handlers = {}
        self.saved()

    def due(self, update):
        """Whether to call `stop_if_agreed`, and to save if that returns, after so many updates."""
        self._poll()
        return self.agreed > 0 or bool(self.saves and self.updates and update % self.updates == 0)

    def stop_if_agreed(self):
        """Raise Stopped where a signal came to one of the processes."""
        if self.agreed >= _STOP:
            raise Stopped(f"stopped by {signal.Signals(self.agreed - _STOP).name}")

    def stop_if_asked(self):
        """The same for long stretches without updates; all processes call it equally often."""
        self._poll()
        self.stop_if_agreed()

    def saved(self, fault=None):
        """A state was saved just now, or could not be (`fault`): restart the clock."""
        waits = [self.period] * (self.period is not None) + [RETRY] * (fault is not None)
        self.next = time.monotonic() + min(waits) if waits else None

    def settle(self):
        """Wait for the exchange that is under way, so that no process ends before it. Raises where a process was lost."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.answer.numpy()[0])

    def _poll(self):
        wish = _STOP + self.signal if self.signal else 0
        if not wish and self.is_main and self.saves and self.next and time.monotonic() >= self.next:
            wish = _SAVE
        if self.group is None:
            self.agreed = wish
            return
        self.agreed = self.settle()
        self.answer = torch.tensor([wish], dtype=torch.int32)
        self.work = torch.distributed.all_reduce(self.answer, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)

    def _on_signal(self, number, _frame):
        if number == signal.SIGINT and self.signal and time.monotonic() > self.since + 1:
            os.write(2, b"\nstopped at once; what was saved is whole\n")
            os._exit(130)
        # A launcher passes on a Ctrl-C that the terminal has sent to everyone already: within a second it is the same.
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
            if self.is_main:
                with contextlib.suppress(OSError):
                    os.write(2, f"\n{signal.Signals(number).name}: finishing this update, then saving\n".encode())

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
