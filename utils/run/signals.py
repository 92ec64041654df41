"""When a run saves its state, and when it stops: by updates, by the clock, and by signals, on all processes alike."""

import gc
import os
import signal
import threading
import time

import torch
import torch.distributed

from utils.cli.errors import InputError, Stopped

RETRY = 60.0  # seconds after which a save that failed is tried again, if no other comes before
LAST_BATCHES = 15  # seconds that a loader worker goes on after SIGTERM, for the update under way
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
_SAVE, _STOP = 1, 100  # what processes tell each other; a signal's number is added to _STOP


class SavePoints:
    """Between two updates, all processes ask `due` and get the same answer, one call later than one of them wished.

    So no process saves, or stops, an update before the others, and none waits for the others' devices: the wishes go
    round on the CPU while the next update runs. save: () -> fault or None, called by all; None never saves. folder: of the
    run. updates, minutes: between saves. Use it as a context: on Stopped it saves and completes the message.
    """

    def __init__(self, save, folder, *, is_main=True, processes=1, updates=None, minutes=None):
        self._save, self.folder, self.is_main, self.updates = save, folder, is_main, updates
        self.period = 60 * minutes if minutes else None
        self.group = torch.distributed.new_group(backend="gloo") if processes > 1 else None
        self.answer = self.work = None  # of the exchange that is under way
        self.signal = self.agreed = 0
        self.fault = None  # of the last save
        self._restart_clock()

    def due(self, update):
        """Whether to save after `update` updates, or to stop (which `act` does)."""
        return self._poll() or bool(self._save and self.updates and update % self.updates == 0)

    def act(self):
        """Save, or raise Stopped where a signal asked for it; leaving the context saves then."""
        self.stop_if_asked(poll=False)
        self.save()

    def stop_if_asked(self, poll=True):
        """Raise Stopped where a signal came to one of the processes. For long stretches without updates."""
        if poll:
            self._poll()
        if self.agreed >= _STOP:
            raise Stopped(f"stopped by {signal.Signals(self.agreed - _STOP).name}")

    def save(self):
        if self._save:
            self.fault = self._save()
            self._restart_clock()

    def _restart_clock(self):
        waits = [self.period] * (self.period is not None) + [RETRY] * (self.fault is not None)
        self.next = time.monotonic() + min(waits) if waits else None

    def _poll(self):
        wish = _STOP + self.signal if self.signal else 0
        if not wish and self.is_main and self._save and self.next and time.monotonic() >= self.next:
            wish = _SAVE
        self.agreed = self._exchange(wish)
        return self.agreed > 0

    def _exchange(self, wish):
        """The largest wish of all processes at the call before this one; alone, one's own."""
        if self.group is None:
            return wish
        agreed = self._wait()
        self.answer = torch.tensor([wish], dtype=torch.int32)
        self.work = torch.distributed.all_reduce(self.answer, torch.distributed.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed

    def _wait(self):
        if self.work is None:
            return 0
        self.work.wait()  # raises where a process was lost
        self.work = None
        return int(self.answer.numpy()[0])

    # --- signals

    def _on_signal(self, number, _frame):
        if number == signal.SIGINT and self.signal and time.monotonic() > self.since + 1:
            os.write(2, b"\nstopped at once; what was saved is whole\n")
            os._exit(130)
        # A launcher passes on a Ctrl-C that the terminal has sent to everyone already: within a second it is the same.
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
            if self.is_main:
                os.write(2, f"\n{signal.Signals(number).name}: finishing this update, then saving\n".encode())

    def __enter__(self):
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind, error, _traceback):
        try:
            if kind is None or kind is Stopped:
                self._wait()
            if kind is Stopped:
                if self._save is None:
                    raise InputError(f"{error}; nothing was saved, as --save_ckpt is false")
                self.save()
                if self.fault:
                    raise InputError(f"{error}; the state could not be saved ({self.fault})")
                raise Stopped(f"{error}; saved in {self.folder}: the same command with --output_dir {self.folder} goes on")
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)


def in_worker(_worker):
    """A loader worker leaves signals and memory to the process that it belongs to.

    Launchers send SIGTERM to a process and its workers alike, and a worker that ends at once would take the process with it
    before it has saved. So it works on for a while, then ends as if it had been asked to; a second SIGTERM ends it at once.
    """
    gc.freeze()  # the collector would write to every object there is, and each worker would end with its own copy of all
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(LAST_BATCHES)
