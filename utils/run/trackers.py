"""Points, settings and pictures of a run for TensorBoard, Weights & Biases and the other trackers that Accelerate knows.

A tracker that Accelerate does not know is a class and a line in TRACKERS. The class is an accelerate.tracking.GeneralTracker,
made on every process as Class(folder, update) and started on the main one. docs/ADDING.md adds one.

log.txt and updates.txt stay the source of truth: a tracker that fails is left out, and the training goes on.
"""

import hashlib
import math
import numbers
import os
import pathlib

from utils.cli.errors import InputError, did_you_mean, first_line
from utils.cli.registry import load

TRACKERS = {}  # {word of --report_to: "module:class"}
PROJECT = "strata"  # the project of the runs; the environment's WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME win over it


def check(names, default=False, say=print):
    """The names of the trackers to start, checked before training.

    names: list of str, the words of --report_to; "none" alone gives []. default: the user did not choose, so that a library
    that is missing is said in a note. Raises InputError for an unknown tracker, with the nearest, and for a library to install.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted({*LoggerType.list(), *TRACKERS} - {"all"})
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in ("none", *known):
            hint = did_you_mean(name, known) or f"; expected none, {', '.join(known)}"
            raise InputError(f"--report_to {name}: no such tracker{hint}")
    if "none" in names:
        if len(names) > 1:
            raise InputError(f"--report_to {' '.join(names)}: 'none' stands alone; leave it out, or the others")
        return []
    installed = [*map(str, get_available_trackers()), *TRACKERS]
    missing = [name for name in names if name not in installed]
    if missing and not default:
        raise InputError(f"--report_to {missing[0]}: it is not installed; `pip install {missing[0]}`, or leave it out")
    for name in missing:
        say(f"note: {name} is not installed, so nothing is reported to it; `pip install {name}` changes that")
    return [name for name in names if name in installed]


class Trackers:
    """The trackers of a run. Only the main process has any; one that raises is warned of once, and left out."""

    def __init__(self, accelerator, names, folder, config, update, say=print, metric=None):
        """Start the trackers `names`, which are as `check` returns them.

        folder: of the run; TensorBoard's and wandb's files go below it. config: dict of settings, nested ones too.
        update: number of updates that were done before; 0: a new run. Points are numbered by update from 0, as in
        updates.txt, so the first one of a resumed run has this number. say: takes a line of warning. metric: the point by which
        TensorBoard's table of settings compares runs.
        """
        self.accelerator, self.say = accelerator, say
        accelerator.project_configuration.logging_dir = str(folder)
        started = []
        for name in names:
            accelerator.log_with, accelerator.trackers = [name], []  # one by one: a failure must not take the others along
            try:
                _start(accelerator, name, pathlib.Path(folder), _flat(config), update, metric)
                started += accelerator.trackers  # none on other processes than the main one
            except Exception as error:  # of many libraries, of the network, of a disk
                self._leave_out(name, error)
        accelerator.log_with, accelerator.trackers = list(names), started

    def log(self, values, update):
        """Send the finite numbers among `values`, a dict, as points at the number `update`, from 0; the rest is dropped."""
        points = {key: float(value) for key, value in values.items() if _is_point(value)}
        if points:
            self._each(lambda tracker: tracker.log(points, step=update))

    def pictures(self, paths, update):
        """Send PNG files, under their names, to the trackers that take images."""
        if not any(hasattr(tracker, "log_images") for tracker in self.accelerator.trackers):
            return
        from PIL import Image

        for path in map(pathlib.Path, paths):
            try:
                with Image.open(path) as file:
                    image = file.convert("RGB")
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                self.say(f"warning: {path} is not sent to the trackers: {first_line(error)}")
                continue
            self._each(lambda tracker, name=path.stem, image=image: _send_image(tracker, name, image, update))

    def finish(self):
        """Write and send what waits. Nothing is sent after this."""
        self._each(lambda tracker: tracker.finish())
        self.accelerator.trackers = []

    def _each(self, act):
        for tracker in list(self.accelerator.trackers):
            try:
                act(tracker)
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                self._leave_out(tracker.name, error)

    def _leave_out(self, name, error):
        reason = first_line(error)
        self.say(f"warning: {name} failed ({type(error).__name__}: {reason}) and is left out from here on; training goes on")


def _start(accelerator, name, folder, config, update, metric):
    # A folder is one run, which whoever resumes it finds again, also from another working directory.
    digest = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:16]
    title = f"{folder.resolve().name}-{digest[:6]}"
    project, options, store = PROJECT, {}, True
    if name in TRACKERS:
        accelerator.log_with = [load(TRACKERS[name])(folder, update)]
    elif name == "tensorboard":
        project = "tensorboard"  # Accelerate's name of the folder
        options = {"purge_step": update}  # hides the points from that number on, which were sent before the run was resumed
        store = False  # by Accelerate, in a folder of its own: a second line of the table, without a score
    elif name == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        options = {"dir": str(folder), "id": digest, "name": folder.resolve().name, "resume": "allow"}
    elif name == "trackio":
        options = {"name": title, "resume": "allow" if update else "never"}
    elif name == "mlflow":
        options = {"run_name": title, "run_id": _mlflow_run(title) if update and accelerator.is_main_process else None}
        store = options["run_id"] is None  # mlflow refuses to change settings
    accelerator.init_trackers(project, config if store else None, {name: options})
    if name == "tensorboard" and update == 0 and accelerator.trackers:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(config, {metric: 0} if metric else {})[:2]:  # the table's columns, and the line of this run
            accelerator.trackers[0].writer.file_writer.add_summary(summary)


def _mlflow_run(title):
    """The id of mlflow's last run of that name, or None."""
    import mlflow

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    runs = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.`mlflow.runName` = '{title}'",
        max_results=1,
        output_format="list",
    )
    return runs[0].info.run_id if runs else None


def _send_image(tracker, name, image, update):
    """Send a PIL image (RGB) as the tracker's library expects it; Accelerate hands on what it is given."""
    if tracker.name == "tensorboard":
        import numpy as np

        tracker.log_images({name: np.asarray(image)[None]}, step=update, dataformats="NHWC")  # (1, H, W, 3) uint8
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({name: image}, step=update)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: [image]}, step=update)


def _is_point(value):
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _flat(config, prefix=""):
    """{"a": {"b": None}} as {"a.b": "None"}: trackers take bool, int, float and str."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
