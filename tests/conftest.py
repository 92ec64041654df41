"""What several tests share: the golden numbers, running the scripts as users do, and small image folders."""

import collections
import gzip
import json
import multiprocessing.forkserver
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = pathlib.Path(os.environ.get("STRATA_GOLDEN", ROOT.parent / "shared" / "golden"))
# The project, and the folders of tests, some of which use what others make.
sys.path[:0] = [str(ROOT), *(str(path) for path in sorted((ROOT / "tests").iterdir()) if path.is_dir())]
os.environ["HF_HUB_OFFLINE"] = "1"

from utils.cli.threads import spin_briefly  # noqa: E402, from the path set above

spin_briefly()  # before torch is imported: threads that spin for each other's cores take four times as long

# A model and a schedule that finish in seconds.
TINY = (
    "--model convnextv2_atto --model_kwargs depths=(1,1,2,1) dims=(8,8,16,16) --input_size 32 --epochs 2 --warmup_epochs 1 "
    "--num_workers 0 --batch_size 64 --report_to none"
).split()


def pytest_xdist_auto_num_workers(config):
    """-n auto: a worker for each core, four at most, since most tests train on two threads or two processes."""
    return min(4, os.cpu_count() or 1)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker begins a long file when the others are done."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def processes_start_clean():
    """The server that `forked` forks from keeps the environment that it starts with, so it starts before the first test."""
    import faults  # noqa: F401  says what the server imports

    multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def no_words_of_accelerate():
    """What Accelerate leaves in the environment within a test is not there for the next one, which may start a process."""
    before = {name for name in os.environ if name.startswith("ACCELERATE_")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in before]:
        del os.environ[name]


@pytest.fixture
def without_heif(monkeypatch):
    """As on a machine that lacks pillow-heif."""
    from utils.images import formats

    monkeypatch.setattr(formats, "NO_PHOTOGRAPHS", (*formats.NO_PHOTOGRAPHS, "HEIF"))
    formats.formats.cache_clear()
    yield
    formats.formats.cache_clear()


@pytest.fixture(scope="session")
def golden():
    """Reads a golden file by its path below the folder of golden numbers."""
    if not GOLDEN.is_dir():
        pytest.skip("the published code's numbers (STRATA_GOLDEN) are not on this machine")

    def read(name):
        path = GOLDEN / name
        return json.loads(gzip.open(path).read() if path.suffix == ".gz" else path.read_text())

    return read


def run(*words, processes=1, cwd=ROOT, timeout=240, env=None):
    """A script as a user runs it, alone or under torchrun; the finished process with its text."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [*start, *map(str, words)], cwd=cwd, timeout=timeout, capture_output=True, text=True, env=environment | (env or {})
    )


def forked(script, *words, processes=1, timeout=240, prepare=None):
    """As `run`, but forked from a process that has imported everything: seconds sooner. prepare: see `faults.Job`."""
    from faults import Job

    with tempfile.TemporaryDirectory() as folder:
        texts = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        for path in texts:
            path.touch()
        codes = Job(script, words, texts[0], processes, prepare, errors=str(texts[1]), threads=None).wait(timeout)
        return subprocess.CompletedProcess(words, next(filter(None, codes), 0), *(path.read_text() for path in texts))


def train(*words, **kwargs):
    """train_recognition.py with the tiny settings; later flags win. Forked, unless it is to have an environment of its own."""
    if "env" in kwargs or "cwd" in kwargs:
        return run(ROOT / "train_recognition.py", *TINY, *words, **kwargs)
    return forked("train_recognition", *TINY, *words, **kwargs)


class Batches(list):
    """A list of batches, with what the loops and `Run` ask of a Loader. updates: in an epoch."""

    def __init__(self, batches, updates):
        super().__init__(batches)
        self.updates, self.state = updates, {}

    def start(self, *_):
        pass

    def load_state_dict(self, _):
        pass


class NoImages:
    """A source of which nothing is read."""

    classes, title = [str(number) for number in range(10)], "no images"

    def __len__(self):
        return 1

    def name(self, index):
        return f"image {index}"


def begin_run(accelerator, folder, model, optimizer, loader, *words, ema=None):
    """A Run of recognition about to train on the Batches `loader`; words: flags."""
    import train_recognition
    from utils.cli.arguments import Batch
    from utils.run.run import Run

    args = train_recognition.parse_args(["--output_dir", str(folder), "--report_to", "none", "--lr", "1e-3", *map(str, words)])
    batch = Batch(8, accelerator.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index)
    run = Run(accelerator, args, batch, "train_recognition", metric=args.best_metric)
    norm = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    run.open(NoImages(), NoImages(), {}, weights="from scratch", shown=norm, groups=[{"lr_scale": 1.0}])
    run.resume(model, optimizer, ema, loader)
    return run


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def make_folder(root, classes=("cat", "dog"), per_class=4, size=(40, 30), suffix=".png", seed=0):
    """One folder per class with images of noise around a colour of the class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 100, (size[1], size[0], 3)) + np.array([50 * number, 60, 155 - 50 * number])
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}{suffix}")
    return root
