"""What the folder of a run holds, as far as it can be read: damaged files and lines are left out. Standard library only."""

import dataclasses
import json
import math
import pathlib

from utils.cli.errors import InputError
from utils.report.scores import BEST_BY, is_better

LARGEST_COUNT, LARGEST_NUMBER = 10**12, 1e100  # of epochs, updates, and scores; more is a damaged line


@dataclasses.dataclass
class RunFiles:
    """A run as its files tell it."""

    folder: pathlib.Path
    args: dict  # every flag
    settings: dict  # what decides the result, with total_batch, train_images and the like
    command: list  # words of the command line, the script first
    commit: str
    versions: dict
    epochs: list  # records of log.txt, one an epoch
    finished: bool
    metric: str  # the score that decides, such as test_acc1
    best: tuple | None  # (value, epoch from 1, or None where the log is gone)
    best_ema: tuple | None  # the same for the average of the weights
    data: str
    title: str
    segments: bool
    several: bool  # labels an image, --task multilabel

    def series(self, key):
        """[(epoch from 1, value)] of the epochs that have a number of this name."""
        values = ((record["epoch"] + 1, number(record.get(key))) for record in self.epochs)
        return [(epoch, value) for epoch, value in values if value is not None]


def read_run(folder):
    """The `RunFiles` in a folder. Raises InputError where there is no run."""
    folder = pathlib.Path(folder)
    if not any((folder / name).is_file() for name in ("args.json", "log.txt", "evaluation.json")):
        found = "found neither args.json nor log.txt" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {found}; expected the --output_dir of a run")
    record = read_json(folder / "args.json", dict) or read_json(folder / "evaluation.json", dict)  # of an evaluation alone
    args, settings, versions = (of_type(record.get(key), dict) for key in ("args", "settings", "versions"))
    epochs = read_records(folder / "log.txt", "epoch")
    segments = "backbone" in args or any(BEST_BY["segmentation"] in record for record in epochs)
    metric = (
        f"test_{args['best_metric']}" if args.get("best_metric") else BEST_BY["segmentation" if segments else "recognition"]
    )
    data = args.get("dataset") or args.get("data_path") or args.get("data_set")
    data = data or f"built-in {'scenes' if segments else 'digits'}" * bool(args)
    model = " on ".join(str(args[key]) for key in ("model", "backbone") if args.get(key))
    return RunFiles(
        folder=folder, args=args, settings=settings, command=[str(word) for word in of_type(record.get("command"), list)],
        commit=of_type(record.get("commit"), str), versions=versions, epochs=epochs,
        finished=(folder / "finished.json").is_file(), metric=metric, best=_best(folder, epochs, metric),
        best_ema=_best(folder, epochs, metric, "_ema"), data=data,
        title=", ".join(str(part) for part in (model, data) if part) or folder.resolve().name,
        segments=segments, several=args.get("task") == "multilabel",
    )  # fmt: skip


def _best(folder, epochs, metric, suffix=""):
    """(value, epoch from 1 or None) of the best of a score, or None.

    finished.json knows the value and evaluation.json the epoch, also where the log begins after it, as of a run that was
    resumed into a new folder. Where they do not tell, it is the best of log.txt, and of equal ones that of the lower loss.
    """
    name, best = metric.removeprefix("test_"), (None, None, math.nan)
    for record in epochs:
        value, loss = number(record.get(f"{metric}{suffix}")), number(record.get(f"test_loss{suffix}"))
        loss = math.nan if loss is None else loss
        if value is not None and is_better(name, value, best[0], loss, best[2]):
            best = value, record["epoch"] + 1, loss
    shown, kept = read_json(folder / "evaluation.json", dict), read_json(folder / "finished.json", dict).get(metric + suffix)
    if shown.get("weights") == f"best{suffix}" and shown.get("metric") == name and is_count(shown.get("epoch")):
        value = number(of_type(shown.get("scores"), dict).get(name))
        best = best if value is None else (value, shown["epoch"])
    value = best[0] if number(kept) is None else number(kept)
    return None if value is None else (value, best[1] if value == best[0] else None)


def read_records(path, *counts):
    """The lines of log.txt or updates.txt that are whole, as dicts: those in which `counts`, such as "epoch", are counts."""
    records = (parse(line, dict) for line in read_text(path).splitlines())
    return [record for record in records if all(is_count(record.get(name)) for name in counts)]


def read_json(path, kind):
    """The content of a JSON file if it is of the type `kind`, or an empty one."""
    return parse(read_text(path), kind)


def read_text(path):
    """The content of a text file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse(text, kind):
    """The value that JSON holds if it is of the type `kind`, or an empty one."""
    try:
        return of_type(json.loads(text), kind)
    except (ValueError, RecursionError):
        return kind()


def of_type(value, kind):
    return value if isinstance(value, kind) else kind()


def is_count(value):
    return type(value) is int and 0 <= value < LARGEST_COUNT


def number(value):
    """`value` as float where it is a finite int or float that a picture has room for, else None."""
    return float(value) if type(value) in (int, float) and -LARGEST_NUMBER < value < LARGEST_NUMBER else None
