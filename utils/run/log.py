"""What a run leaves to read: args.json, log.txt (one line an epoch), updates.txt (an update), warnings.txt, the console."""

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time

from tqdm import tqdm


class RunLog:
    """Files and console of a run. Only the main process writes; with `folder` None nothing is written to disk."""

    def __init__(self, folder, is_main=True):
        self.folder = pathlib.Path(folder) if folder and is_main else None
        self.is_main, self.bar = is_main, None
        self.trackers, self.last_update = None, 0  # Trackers, if there are any; the update that was logged last
        self.waiting, self.fault = {}, None  # lines not on the disk yet, by file; what is wrong with the disk
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def say(self, text):
        if self.is_main:
            with contextlib.suppress(OSError):  # output that goes to a full disk, or to a terminal that was closed
                tqdm.write(text) if self.bar else print(text, flush=True)

    def warn(self, text):
        """Say something that should not be overlooked, and keep it in warnings.txt."""
        self.say(f"warning: {text}")
        self._append("warnings.txt", [text.replace("\n", " ")])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind and self.trackers:  # what waits there would be lost
            self.trackers.finish()

    def epoch(self, record):
        """Append a record to log.txt."""
        self._append("log.txt", [json.dumps(_finite(record))])
        if self.trackers:
            self.trackers.log(record, self.last_update)

    def updates(self, records):
        """Append the records of some updates to updates.txt."""
        self._append("updates.txt", [json.dumps(_finite(record)) for record in records])
        if self.trackers:
            self.last_update = records[-1]["update"]
            self.trackers.log({name: records[-1].get(name) for name in ("loss", "lr", "grad_norm")}, self.last_update)

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
                with open(path, "a", encoding="utf-8") as file:
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
        self.title, self.first, self.done, self.total = f"epoch {epoch + 1}/{epochs}", first_update, first_update, updates
        self.images, self.start = images_per_update, time.perf_counter()
        if self.is_main and sys.stderr.isatty():
            self.bar = tqdm(total=updates, initial=first_update, desc=self.title, unit="update", leave=False)

    def advance(self):
        """One more update is done. Cheap: nothing is read from the device."""
        self.done += 1
        if self.bar:
            self.bar.update()

    def progress(self, loss, lr):
        """Show the last loss and rate; the end of the epoch has a line of its own."""
        if self.bar:
            self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {self._speed():.0f} images/s")
        elif self.done < self.total:
            left = (self.total - self.done) * self.images / self._speed()
            self.say(
                f"{self.title}, update {self.done}/{self.total}: loss {loss:.4f}, lr {lr:.2e}, "
                f"{self._speed():.0f} images/s, {clock(left)} left"
            )

    def end_epoch(self):
        """Images per second of the epoch that ends."""
        if self.bar:
            self.bar.close()
            self.bar = None
        return self._speed()

    def _speed(self):
        return (self.done - self.first) * self.images / max(time.perf_counter() - self.start, 1e-9)


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
    aside = path.with_name(f"tmp-{path.name}")
    aside.write_text("".join(kept))
    aside.replace(path)


def versions():
    """Python and the libraries that a result depends on, by name."""
    names = ("torch", "torchvision", "timm", "accelerate", "datasets", "safetensors", "numpy", "pillow", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit():
    """The commit of this checkout, "+" if files were changed since, or None outside of git."""
    root = pathlib.Path(__file__).resolve().parent.parent
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + "+" * bool(changed)


def write_json(path, value):
    """Replace a JSON file in one step."""
    path = pathlib.Path(path)
    aside = path.with_name(f"tmp-{path.name}")
    aside.write_text(json.dumps(value, indent=1))
    os.replace(aside, path)
