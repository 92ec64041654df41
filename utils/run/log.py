"""What a run leaves to read: args.json, log.txt (one line an epoch), updates.txt (an update), warnings.txt, the console."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time

from tqdm import tqdm

from utils import files


class RunLog:
    """Console and files of a run. Only the main process writes; before `open` nothing is written to disk."""

    def __init__(self, is_main=True):
        self.is_main, self.folder, self.bar = is_main, None, None
        self.waiting, self.fault = {}, None  # lines not on the disk yet, by file; what is wrong with the disk

    def open(self, folder):
        """From here on the files of `folder`, which is there, are written too."""
        self.folder = pathlib.Path(folder) if self.is_main else None

    def say(self, text):
        if self.is_main:
            with contextlib.suppress(OSError):  # output that goes to a full disk, or to a terminal that was closed
                tqdm.write(text) if self.bar else print(text, flush=True)

    def warn(self, text):
        """Say something that should not be overlooked, and keep it in warnings.txt."""
        self.say(f"warning: {text}")
        self._append("warnings.txt", [text.replace("\n", " ")])

    def epoch(self, record):
        """Append a record to log.txt."""
        self._append("log.txt", [json.dumps(_finite(record))])

    def updates(self, records):
        """Append the records of some updates to updates.txt."""
        self._append("updates.txt", [json.dumps(_finite(record)) for record in records])

    def _append(self, name, lines):
        """Write whole lines or none; on a full disk they wait in memory for the next time."""
        if self.folder is None:
            return
        self.waiting.setdefault(name, []).extend(line + "\n" for line in lines)
        fault = self._write(name)
        if fault and not self.fault:
            self.say(f"warning: {fault}; what was to be logged is kept in memory and written as soon as that can be done")
        self.fault = fault

    def _write(self, name):
        path, lines = self.folder / name, self.waiting[name]
        try:
            size = path.stat().st_size if path.exists() else 0
            try:
                with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(lines)
            except OSError:
                os.truncate(path, size)
                raise
        except OSError as error:
            return f"{path} cannot be written ({error.strerror})"
        lines.clear()
        return None

    def flush(self):
        """Everything logged is on the disk after this, or OSError: a state must not be ahead of the log."""
        for name in self.waiting:
            if self.waiting[name] and (fault := self._write(name)):
                raise OSError(fault)
            if (self.folder / name).exists():  # not where somebody removed it
                with open(self.folder / name, "rb") as file:
                    os.fsync(file.fileno())
        self.fault = None

    def cut(self, epoch, update):
        """Take back what was logged after the state that a run resumes from, so that nothing stands there twice."""
        if self.folder:
            _keep_lines(self.folder / "log.txt", lambda record: record["epoch"] < epoch)
            _keep_lines(self.folder / "updates.txt", lambda record: record["update"] < update)

    # --- progress of an epoch: a bar on a terminal, plain lines elsewhere

    def start_epoch(self, epoch, epochs, first_update, updates, images_per_update):
        """An epoch of so many updates begins, at `first_update` of it."""
        self.title, self.first, self.done, self.total = f"epoch {epoch + 1}/{epochs}", first_update, first_update, updates
        self.images, self.start = images_per_update, time.perf_counter()
        self.now = self.start
        if self.is_main and sys.stderr.isatty():
            self.bar = tqdm(total=updates, initial=first_update, desc=self.title, unit="update", leave=False)

    def advance(self):
        """One more update is done. Cheap: nothing is read from the device."""
        self.done, self.now = self.done + 1, time.perf_counter()
        if self.bar:
            self.bar.update()

    def end_updates(self):
        """The last update of the epoch is done and looked at."""
        self.now = time.perf_counter()
        if self.bar:
            self.bar.close()
            self.bar = None

    def progress(self, loss, lr):
        """Show the last loss and rate; the end of the epoch has a line of its own."""
        if self.bar:
            self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {self.images_per_second():.0f} images/s")
        elif self.done < self.total:
            left = (self.total - self.done) * self.images / self.images_per_second()
            self.say(
                f"{self.title}, update {self.done}/{self.total}: loss {loss:.4f}, lr {lr:.2e}, "
                f"{self.images_per_second():.0f} images/s, {clock(left)} left in it"
            )

    def images_per_second(self):
        """Speed of this epoch's training so far, its evaluation left out."""
        return (self.done - self.first) * self.images / max(self.now - self.start, 1e-9)


def clock(seconds):
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _finite(value):
    """`value` with null for what JSON has no number for: the IoU of a class that does not occur, a loss that is NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_lines(path, keep):
    """Rewrite a file of JSON lines with those to keep; a line cut short by a crash goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if keep(json.loads(line)):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    files.write_text(path, "".join(kept))
