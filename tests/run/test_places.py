"""A run that is killed, or whose disk is full for a while, at the places between which its files belong together."""

import functools
import os
import pkgutil
import resource
import signal

import pytest
from conftest import TINY, forked, lines
from safetensors.torch import load_file
from test_train_recognition import assert_same_run

from utils.run.checkpoint import find_fault, states

WORDS = [
    *TINY,
    "--epochs",
    "1",
    "--warmup_epochs",
    "0",
    "--model_ema",
    "true",
    "--export",
    "torchscript",
    "--save_ckpt_num",
    "9",
]
PLACES = {
    "scores are known": "utils.run.run:Run.score",
    "best has its weights and no card": "utils.result.card:Cards.write",
    "an epoch's pictures are drawn": "utils.pictures.gallery:Gallery.refresh",
    "the last pictures are drawn": "utils.pictures.gallery:Gallery.finish",
    "weights are exported": "utils.result.export:export_run",
    "the page is written": "utils.pictures.gallery:Gallery.write_report",
    "the run is marked as finished": "utils.run.folder:mark_finished",
}
WHOLE = (
    "best/README.md best/config.json best_ema/README.md last/README.md curves.png report.html best/model.torchscript.pt".split()
)


def found(place):
    """(module or class, name) of the function at a place."""
    module, _, path = place.partition(":")
    owner, _, name = path.rpartition(".")
    return pkgutil.resolve_name(f"{module}:{owner}" if owner else module), name


def kill(place, _rank):
    setattr(*found(place), lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def fill(place, _rank):
    """Within that function no file can become longer than 2,000 bytes, as on a full disk."""
    owner, name = found(place)
    function, limits = getattr(owner, name), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def called(*words, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            return function(*words, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    setattr(owner, name, called)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = forked("train_recognition", *WORDS, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_after_a_kill_the_same_command_goes_on_to_the_same_end(undisturbed, tmp_path, place):
    folder = tmp_path / "run"
    first = forked("train_recognition", *WORDS, "--output_dir", folder, prepare=functools.partial(kill, place))
    assert first.returncode == -signal.SIGKILL and not (folder / "finished.json").exists()
    second = forked("train_recognition", *WORDS, "--output_dir", folder)
    assert second.returncode == 0, second.stderr
    assert_same_run(undisturbed, folder)
    assert [name for name in WHOLE if not (folder / name).is_file()] == []
    for name in ("best", "best_ema", "last"):
        a, b = (load_file(path / name / "model.safetensors") for path in (undisturbed, folder))
        assert all(a[key].equal(b[key]) for key in a), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "place, missing",
    [
        ("scores are known", ["the weights for best/ could NOT be written", "the weights for best_ema/ could NOT be written"]),
        ("best has its weights and no card", ["the model card of best/ could not", "the model card of last/ could not"]),
        ("the last pictures are drawn", ["curves could not", "report could not"]),
        ("weights are exported", ["this does it again: python -c "]),
    ],
)
def test_what_a_full_disk_did_not_take_is_named_and_the_rest_is_whole(undisturbed, tmp_path, place, missing):
    folder = tmp_path / "run"
    done = forked("train_recognition", *WORDS, "--output_dir", folder, prepare=functools.partial(fill, PLACES[place]))
    assert done.returncode == 0 and (folder / "finished.json").is_file(), done.stderr
    assert bool([*folder.glob("*/model.torchscript.pt")]) == (place != "weights are exported")
    told = (folder / "warnings.txt").read_text()
    assert all(words in told for words in missing), told
    assert not list(folder.rglob("tmp-*"))
    assert lines(folder / "log.txt") == lines(undisturbed / "log.txt")
    assert find_fault(states(folder / "checkpoints")[-1]) is None
