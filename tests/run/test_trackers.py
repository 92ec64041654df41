"""Trackers: what TensorBoard, wandb, trackio and mlflow hold after a run, a resumed one too, and that none stops a training."""

import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys

import accelerate
import numpy as np
import pytest
from accelerate import tracking
from conftest import ROOT, run
from PIL import Image

from utils.cli.errors import InputError
from utils.run.trackers import TRACKERS, Trackers, check

CONFIG = {"lr": 0.1, "model": "resnet18", "seed": None, "ema": True, "size": [32, 32], "settings": {"classes": 10}}


@pytest.fixture
def accelerator():
    return accelerate.Accelerator(cpu=True)


def needs(library):
    return pytest.mark.skipif(not importlib.util.find_spec(library), reason=f"{library} is not installed")


def read(folder):
    """What TensorBoard shows of the events in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def points(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


# --- which ones


def test_names_are_checked_before_training():
    assert check(["none"]) == check([]) == []
    assert check(["tensorboard", "tensorboard"]) == ["tensorboard"]
    with pytest.raises(InputError, match=r"^--report_to tensorbord: no such tracker, did you mean tensorboard\?$"):
        check(["tensorbord"])
    with pytest.raises(InputError, match=r"--report_to qqq: no such tracker; expected none, aim, .*tensorboard.*wandb"):
        check(["qqq"])
    with pytest.raises(InputError, match="'none' stands alone"):
        check(["wandb", "none"])


def test_a_missing_library_is_an_error_and_a_note_where_it_is_only_the_default(monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    notes = []
    with pytest.raises(InputError, match="--report_to tensorboard: it is not installed; `pip install tensorboard`"):
        check(["tensorboard"])
    assert check(["tensorboard"], default=True, say=notes.append) == []
    assert len(notes) == 1 and "pip install tensorboard" in notes[0]


class Own(tracking.GeneralTracker):
    """A tracker that Accelerate does not know."""

    name, requires_logging_directory = "own", False

    def __init__(self, folder, update):
        super().__init__()
        self.folder, self.seen = folder, [update]

    @property
    def tracker(self):
        return self.seen

    def store_init_configuration(self, values):
        self.seen.append(values["lr"])

    def log(self, values, step=None, **_):
        self.seen.append((step, values))


def test_a_tracker_of_ones_own(tmp_path, accelerator, monkeypatch):
    monkeypatch.setitem(TRACKERS, "own", f"{__name__}:Own")
    assert check(["own", "tensorboard"]) == ["own", "tensorboard"]
    with pytest.raises(InputError, match="--report_to onw: no such tracker, did you mean own"):
        check(["onw"])
    trackers = Trackers(accelerator, ["own", "tensorboard"], tmp_path, CONFIG, 7)
    own = accelerator.get_tracker("own", unwrap=True)
    trackers.log({"loss": 0.5, "x": math.nan}, 7)
    trackers.finish()
    assert own == [7, 0.1, (7, {"loss": 0.5})] and points(tmp_path / "tensorboard", "loss") == [(7, 0.5)]


# --- TensorBoard


def test_tensorboard_holds_scalars_settings_and_pictures(tmp_path, accelerator):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(picture).save(tmp_path / "curves.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said = []
    trackers = Trackers(accelerator, ["tensorboard"], tmp_path, CONFIG, 0, said.append, "best_test_acc1")
    trackers.log({"loss": np.float32(0.5), "epoch": 1, "iou": [1.0], "lr": None, "x": math.nan, "y": math.inf, "z": "text"}, 3)
    trackers.pictures([tmp_path / "broken.png", tmp_path / "curves.png"], 3)
    trackers.log({"loss": 0.25}, 4)
    trackers.finish()
    trackers.log({"loss": 0.125}, 5)  # nothing is sent any more, and nothing breaks

    assert len(said) == 1 and "broken.png" in said[0]
    events = read(tmp_path / "tensorboard")
    assert sorted(events.Tags()["scalars"]) == ["epoch", "loss"]
    assert points(tmp_path / "tensorboard", "loss") == [(3, 0.5), (4, 0.25)]
    (image,) = events.Images("curves")
    assert (image.step, image.width, image.height) == (3, 30, 20)
    settings, compared_by = settings_in(tmp_path / "tensorboard")
    assert settings == {"lr": 0.1, "model": "resnet18", "seed": "None", "ema": True, "size": "[32, 32]", "settings.classes": 10}
    assert compared_by == ["best_test_acc1"] and not any(path.is_dir() for path in (tmp_path / "tensorboard").iterdir())


def settings_in(folder):
    """The hyper-parameters in the table's line of a run, and the score that it is compared by."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    metadata, content = read(folder).summary_metadata, {}
    for part in ("session_start_info", "experiment"):
        data = plugin_data_pb2.HParamsPluginData()
        data.ParseFromString(metadata[f"_hparams_/{part}"].plugin_data.content)
        content[part] = getattr(data, part)
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in content["session_start_info"].hparams.items()}
    return values, [info.name.tag for info in content["experiment"].metric_infos]


def test_a_resumed_run_continues_its_curve(tmp_path, accelerator):
    for start, end, value in ((0, 10, 1.0), (5, 12, 2.0)):
        trackers = Trackers(accelerator, ["tensorboard"], tmp_path, CONFIG, start)
        for update in range(start, end):
            trackers.log({"loss": value}, update)
        trackers.finish()
    assert points(tmp_path / "tensorboard", "loss") == [(i, 1.0) for i in range(5)] + [(i, 2.0) for i in range(5, 12)]
    assert settings_in(tmp_path / "tensorboard")[0]["lr"] == 0.1  # of the first start
    assert len([path for path in (tmp_path / "tensorboard").rglob("*") if path.is_file()]) == 2  # one file for each start


@pytest.mark.slow
def test_two_processes_write_one_file(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import accelerate; from utils.run.trackers import Trackers\n"
        "accelerator = accelerate.Accelerator(cpu=True); assert accelerator.num_processes == 2\n"
        f"trackers = Trackers(accelerator, ['tensorboard'], {str(tmp_path / 'run')!r}, {{'lr': 0.1}}, 0)\n"
        "trackers.log({'loss': 1.0}, 0); trackers.finish(); accelerator.wait_for_everyone()\n"
    )
    done = run(script, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1
    assert points(tmp_path / "run" / "tensorboard", "loss") == [(0, 1.0)]


# --- failures


def test_no_trackers_do_nothing(tmp_path, accelerator):
    trackers = Trackers(accelerator, [], tmp_path, CONFIG, 0)
    trackers.log({"loss": 1.0}, 0)
    trackers.pictures([tmp_path / "none.png"], 0)
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


class Raises(tracking.GeneralTracker):
    name, requires_logging_directory, tracker = "raises", False, None

    def __init__(self, at):
        super().__init__()
        self.calls = 0
        setattr(self, at, self.fail)

    def fail(self, *args, **kwargs):
        self.calls += 1
        raise ConnectionError("the service\nis away")


@pytest.mark.parametrize("at", ["log", "log_images", "finish"])
def test_a_tracker_that_raises_is_said_once_and_left_out(tmp_path, accelerator, at):
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    said = []
    trackers = Trackers(accelerator, ["tensorboard"], tmp_path, CONFIG, 0, said.append)
    bad = Raises(at)
    accelerator.trackers.insert(0, bad)
    for update in range(3):
        trackers.log({"loss": 1.0}, update)
        trackers.pictures([tmp_path / "curves.png"], update)
    trackers.finish()
    assert said == ["warning: raises failed (ConnectionError: the service) and is left out from here on; training goes on"]
    assert bad.calls == 1
    assert len(points(tmp_path / "tensorboard", "loss")) == len(read(tmp_path / "tensorboard").Images("curves")) == 3


def test_one_that_cannot_start_leaves_the_others(tmp_path, accelerator):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said = []
    trackers = Trackers(accelerator, ["tensorboard"], tmp_path, CONFIG, 0, said.append)
    trackers.log({"loss": 1.0}, 0)
    trackers.finish()
    assert len(said) == 1 and said[0].startswith("warning: tensorboard failed (")


# --- the others, in a process of their own: they keep threads, and settings of the environment

CALL = """
import json, sys
import accelerate
from utils.run.trackers import Trackers
name, folder, start, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
said = []
trackers = Trackers(accelerate.Accelerator(cpu=True), [name], folder, {"lr": 0.1, "a": {"b": None}}, start, said.append)
for update in range(start, end):
    trackers.log({"loss": 1.0 + update}, update)
trackers.pictures([folder + "/curves.png"], end - 1)
left = len(trackers.accelerator.trackers)
trackers.finish()
json.dump({"said": said, "left": left}, open(folder + "/said.json", "w"))
"""


def report(name, folder, start, end, env):
    Image.new("RGB", (8, 8)).save(folder / "curves.png")
    words = [sys.executable, "-c", CALL, name, str(folder), str(start), str(end)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "said.json").read_text()) == {"said": [], "left": 1}


@pytest.mark.slow
@needs("wandb")
def test_wandb_offline_is_one_run_below_the_folder(tmp_path):
    for start, end in ((0, 3), (3, 5)):
        report("wandb", tmp_path, start, end, {"WANDB_MODE": "offline"})
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2 and len({name.rpartition("-")[2] for name in runs}) == 1  # two parts of one run id
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))


@pytest.mark.slow
@needs("trackio")
def test_trackio_continues_its_run(tmp_path):
    for start, end in ((0, 3), (3, 5)):
        report("trackio", tmp_path, start, end, {"TRACKIO_DIR": str(tmp_path / "trackio")})
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, step from metrics order by step").fetchall()
    assert len({name for name, _ in rows}) == 1 and [step for _, step in rows] == [0, 1, 2, 3, 4]


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_continues_its_run(tmp_path):
    env = {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for start, end in ((0, 3), (3, 5)):
        report("mlflow", tmp_path, start, end, env)
    (path,) = (tmp_path / "mlruns").glob("*/*/metrics/loss")
    assert [int(line.split()[2]) for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
