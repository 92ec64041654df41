"""What a run goes through on machines that are taken away: kills at any moment, signals, lost processes, full disks."""

import collections
import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, forked, free_port, lines, make_folder, run
from faults import Job
from safetensors.torch import load_file
from test_train_recognition import EVERYTHING, assert_same_run
from test_train_segmentation import EVERYTHING as EVERYTHING_OF_MASKS
from test_train_segmentation import TINY as TINY_MASKS
from test_train_segmentation import data  # noqa: F401, a fixture

from utils import files
from utils.data.loaders import LAST_BATCHES
from utils.run.checkpoint import find_fault, states
from utils.run.folder import _fresh_name

STOPPED = 75


@pytest.fixture(scope="module")
def commands(data):  # noqa: F811
    """(script, processes) -> its words: with mixup, EMA, accumulation, drop path and loader workers."""
    often = ["--save_ckpt_updates", "3", "--save_ckpt_num", "2"]
    masks = [*TINY_MASKS, *EVERYTHING_OF_MASKS, *often, "--data_path", str(data), "--epochs", "10", "--num_workers", "1"]
    return {
        ("train_recognition", 1): [*TINY, *EVERYTHING, *often],
        ("train_recognition", 2): [*TINY, *EVERYTHING, *often, "--batch_size", "16"],
        ("train_segmentation", 1): masks,
        ("train_segmentation", 2): [*masks, "--batch_size", "2"],
    }


@pytest.fixture(scope="module")
def uninterrupted(commands, tmp_path_factory):
    """(script, processes) -> folder of a run that nobody disturbed."""
    done = {}

    def folder(key):
        if key not in done:
            done[key] = tmp_path_factory.mktemp("uninterrupted") / "run"
            job = Job(key[0], [*commands[key], "--output_dir", done[key]], done[key].with_name("text"), key[1])
            assert set(job.wait()) == {0}, job.text.read_text()
        return done[key]

    return folder


def slow_writes(_rank):
    """Make the time in which a state is being written long enough to be hit."""
    flush = files.flush
    files.flush = lambda path: (time.sleep(0.01 * ("checkpoints" in str(path))), flush(path))


def moment(folder):
    """What the run in `folder` was doing, from what it had left there when it was killed."""
    written = [path.name for path in (folder / "checkpoints").glob("tmp-*")]
    if written:
        return "while a state was written"
    updates = folder / "updates.txt"
    if not updates.exists() or not states(folder / "checkpoints"):
        return "before the first state"
    return "between two states"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "processes", "kills"),
    [("train_recognition", 1, 15), ("train_recognition", 2, 15), ("train_segmentation", 1, 15), ("train_segmentation", 2, 15)],
)
def test_killed_at_random_moments(commands, uninterrupted, tmp_path, capsys, script, processes, kills):
    key, rng, moments, finished = (script, processes), random.Random(0), collections.Counter(), 0
    expected = uninterrupted(key)
    while sum(moments.values()) < kills:
        folder = tmp_path / f"run{finished}"
        words = [*commands[key], "--output_dir", folder]
        job = Job(script, words, tmp_path / "text", processes, slow_writes)
        if rng.random() < 0.4:  # aim at the writing of a state, some states later
            count = rng.randrange(4)
            seen = set()
            job.wait_until(
                lambda: len(seen.update(p.name for p in (folder / "checkpoints").glob("tmp-*")) or seen) > count  # noqa: B023
            )
            time.sleep(rng.random() * 0.08)
        else:
            time.sleep(0.3 + 1.2 * rng.random())
        if set(job.kill()) == {-signal.SIGKILL}:
            moments[moment(folder)] += 1
        finished += (folder / "finished.json").exists()
    if not (folder / "finished.json").exists():
        job = Job(script, words, tmp_path / "text", processes)
        assert set(job.wait()) == {0}, job.text.read_text()
        finished += 1
    for number in range(finished):
        assert_same_run(expected, tmp_path / f"run{number}")
    with capsys.disabled():
        print(f"\n  {script}, {processes} process(es): killed {dict(moments)}, in {finished} runs")
    assert moments["while a state was written"] >= 2 and len(moments) >= 2


# --- the end


@pytest.mark.slow
def test_a_run_ends_when_it_is_done(tmp_path):
    """Loader workers outlive a SIGTERM, which Python sends them when their process ends."""
    make_folder(tmp_path / "data" / "train", per_class=20)
    make_folder(tmp_path / "data" / "val", per_class=6, seed=1)
    words = [*TINY, "--data_path", tmp_path / "data", "--batch_size", 8, "--num_workers", 2, "--output_dir", tmp_path / "a b"]
    done = run(ROOT / "train_recognition.py", *words)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert time.time() - (tmp_path / "a b" / "finished.json").stat().st_mtime < LAST_BATCHES
    *_, last = done.stdout.splitlines()  # and its last line can be pasted
    command = shlex.split(last[last.index("python ") :])
    assert command[1] == str(ROOT / "train_recognition.py") and pathlib.Path(command[-1], "model.safetensors").is_file()


# --- signals


def wait_for_states(job, folder, count):
    assert job.wait_until(lambda: len(states(folder / "checkpoints")) >= count), job.text.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "processes", "number"),
    [
        ("train_recognition", 1, signal.SIGTERM),
        ("train_recognition", 2, signal.SIGUSR1),
        pytest.param("train_segmentation", 1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("train_segmentation", 2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(commands, uninterrupted, tmp_path, script, processes, number):
    folder = tmp_path / "run"
    words = [*commands[script, processes], "--output_dir", folder]
    job = Job(script, words, tmp_path / "text", processes)
    wait_for_states(job, folder, 2)
    os.kill(job.parts[-1].pid, number)  # one of them hears it, and all stop at the same update
    assert set(job.wait()) == {STOPPED}, job.text.read_text()
    text = job.text.read_text()
    assert text.count(f"{script}.py: stopped by {signal.Signals(number).name}; saved in {folder}: the same command") == 1
    saved = json.loads((states(folder / "checkpoints")[-1] / "state.json").read_text())
    assert len(lines(folder / "updates.txt")) == saved["update"] > 3
    job = Job(script, words, tmp_path / "text2", processes)
    assert set(job.wait()) == {0} and f"after {saved['update']} updates" in job.text.read_text()
    assert_same_run(uninterrupted((script, processes)), folder)


def a_signal_in_the_evaluation(rank):
    from utils.run.signals import Signals

    asked = Signals.stop_if_asked

    def stop_if_asked(self):
        if rank == 0 and not self.signal:
            os.kill(os.getpid(), signal.SIGTERM)
        asked(self)

    Signals.stop_if_asked = stop_if_asked


@pytest.mark.slow
def test_a_signal_is_heard_within_an_evaluation(commands, uninterrupted, tmp_path):
    folder, key = tmp_path / "run", ("train_recognition", 1)
    words = [*commands[key], "--output_dir", folder]
    job = Job(key[0], words, tmp_path / "text", prepare=a_signal_in_the_evaluation)
    assert job.wait() == [STOPPED]
    assert len(lines(folder / "updates.txt")) == 22 and not (folder / "log.txt").exists()
    assert Job(key[0], words, tmp_path / "text").wait() == [0]
    assert_same_run(uninterrupted(key), folder)


def very_slow_writes(_rank):
    flush = files.flush
    files.flush = lambda path: (time.sleep("checkpoints" in str(path)), flush(path))  # of states, not of single files


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_a_double_one_of_the_launcher_does_not(commands, uninterrupted, tmp_path):
    folder, key = tmp_path / "run", ("train_recognition", 1)
    words = [*commands[key], "--output_dir", folder]
    job = Job(key[0], words, tmp_path / "text", prepare=very_slow_writes)
    assert job.wait_until(lambda: list((folder / "checkpoints").glob("tmp-*")))
    job.signal(signal.SIGINT)
    time.sleep(0.2)
    job.signal(signal.SIGINT)  # torchrun passes on what the terminal has sent already
    time.sleep(1.2)
    assert job.alive()
    job.signal(signal.SIGINT)
    start = time.monotonic()
    assert job.wait() == [130] and time.monotonic() - start < 2
    assert "stopped at once" in job.text.read_text()
    assert Job(key[0], words, tmp_path / "text").wait() == [0]
    assert_same_run(uninterrupted(key), folder)


@pytest.mark.slow
def test_minutes_between_states(commands, tmp_path):
    words = [*commands["train_recognition", 2], "--save_ckpt_updates", "1000", "--save_ckpt_num", "100", "--output_dir",
             tmp_path / "run", "--save_ckpt_minutes", "0.003"]  # fmt: skip
    job = Job("train_recognition", words, tmp_path / "text", 2)
    assert job.wait() == [0, 0], job.text.read_text()
    assert len(states(tmp_path / "run" / "checkpoints")) > 4


# --- disks


@pytest.mark.slow
@pytest.mark.parametrize("mended", [True, False])
def test_a_full_disk(commands, uninterrupted, tmp_path, mended):
    """The kernel refuses to write more than 60,000 bytes into a file, as it refuses on a full disk."""
    folder, key = tmp_path / "run", ("train_recognition", 1)
    words = [*commands[key], "--num_workers", "0", "--output_dir", folder]
    job = Job(key[0], words, tmp_path / "text")
    wait_for_states(job, folder, 2)
    pid, limits = job.parts[0].pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (60_000, limits[1]))
    assert job.wait_until(lambda: "could NOT be saved" in job.text.read_text())
    assert all(find_fault(path) is None for path in states(folder / "checkpoints"))
    if mended:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        assert job.wait() == [0], job.text.read_text()
    else:
        assert job.wait() == [1]
        assert "trained to the end, but the last save failed" in job.text.read_text()
        assert not list(folder.rglob("tmp-*")) and not (folder / "finished.json").exists()
        assert [find_fault(path) for path in states(folder / "checkpoints")] == [None, None]
        assert Job(key[0], words, tmp_path / "text").wait() == [0]
    assert "could NOT be saved" in (folder / "warnings.txt").read_text()
    assert_same_run(uninterrupted(key), folder)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_for_a_while(commands, uninterrupted, tmp_path):
    folder, key = tmp_path / "run", ("train_recognition", 1)
    job = Job(key[0], [*commands[key], "--output_dir", folder], tmp_path / "text")
    wait_for_states(job, folder, 2)
    (folder / "checkpoints").rename(folder / "elsewhere")
    (folder / "checkpoints").write_text("in the way")
    assert job.wait_until(lambda: "could NOT be saved" in job.text.read_text())
    (folder / "checkpoints").unlink()
    (folder / "elsewhere").rename(folder / "checkpoints")
    assert job.wait() == [0], job.text.read_text()
    assert_same_run(uninterrupted(key), folder)


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(commands, tmp_path):
    words = [*commands["train_recognition", 1], "--output_dir", tmp_path / "run"]
    job = Job("train_recognition", words, tmp_path / "text")
    wait_for_states(job, tmp_path / "run", 1)
    second = Job("train_recognition", words, tmp_path / "text2")
    assert (
        second.wait() == [1] and f"another process is training there (process {job.parts[0].pid} on " in second.text.read_text()
    )
    assert job.wait() == [0]


def test_runs_that_begin_at_the_same_moment_have_folders_of_their_own_or_one_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = list(pool.map(_fresh_name, ["x"] * 16))
    assert len(set(names)) == 16 and all(name.is_dir() for name in names)
    words = [*TINY, "--epochs", "1", "--warmup_epochs", "0", "--output_dir", tmp_path / "run"]
    jobs = [Job("train_recognition", [*words, "--seed", seed], tmp_path / f"text{seed}") for seed in range(2)]
    assert sorted(job.wait()[0] for job in jobs) == [0, 1]
    texts = [job.text.read_text() for job in jobs]
    assert sum("another process is training there" in text or "holds a " in text for text in texts) == 1
    assert json.loads((tmp_path / "run" / "args.json").read_text())["args"]["seed"] == ("done in" in texts[1])


def remove_the_folder_after_the_fifth_update(_rank):
    from utils.run.run import Run

    end, count = Run.end_update, itertools.count(1)

    def end_update(self, *words):
        end(self, *words)
        if next(count) == 5:
            shutil.rmtree(self.folder)

    Run.end_update = end_update


@pytest.mark.slow
def test_a_folder_that_is_removed_is_made_again_and_can_be_gone_on_with(tmp_path):
    words = [*TINY, "--save_ckpt_updates", "4", "--save_ckpt_num", "20", "--output_dir", tmp_path / "run"]
    job = Job("train_recognition", words, tmp_path / "text", prepare=remove_the_folder_after_the_fifth_update)
    assert job.wait() == [0] and f"{tmp_path / 'run'} was removed: it is made again" in job.text.read_text()
    (tmp_path / "run" / "finished.json").unlink()
    shutil.rmtree(states(tmp_path / "run" / "checkpoints")[-1])
    job = Job("train_recognition", words, tmp_path / "text2")
    assert job.wait() == [0] and "resumed: " in job.text.read_text()


# --- processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(tmp_path, processes):
    words = [*TINY, "--total_batch_size", "64", "--batch_size", "32", "--aa", "rand-m5", "--hflip", "0.5", "--opt", "sgd",
             "--save_ckpt_updates", "5", "--save_ckpt_num", "100", "--log_every", "5"]  # fmt: skip
    before, after = processes
    job = Job("train_recognition", [*words, "--output_dir", tmp_path / "a"], tmp_path / "text", before)
    assert set(job.wait()) == {0}, job.text.read_text()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in states(tmp_path / "b" / "checkpoints")[3:]:
        shutil.rmtree(path)
    (tmp_path / "b" / "finished.json").unlink()
    job = Job("train_recognition", [*words, "--output_dir", tmp_path / "b"], tmp_path / "text", after)
    assert set(job.wait()) == {0}
    text = job.text.read_text()
    assert "after 15 updates" in text
    assert f"goes on with batch size 32 x update_freq {2 // after} x {after} processes: order and augmentation" in text
    a, b = ([record["loss"] for record in lines(tmp_path / name / "updates.txt")] for name in "ab")
    assert len(a) == 44 and a == pytest.approx(b, abs=1e-4) and a[:15] == b[:15]


def children(pid):
    """Process ids of the children of `pid`."""
    return [
        int(child) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "restarts"), [("torchrun", 0), ("torchrun", 1), ("accelerate", 0), ("accelerate", 1)])
def test_one_of_two_processes_is_killed(commands, uninterrupted, tmp_path, launcher, restarts):
    """The other ends with a message, soon; with --max_restarts the launcher brings the run back, without --output_dir too."""
    key = ("train_recognition", 2)
    start = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()],
        "accelerate": ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs" / "cpu_2.yaml",
                       "--main_process_port", free_port()],
    }[launcher]  # fmt: skip
    command = [sys.executable, *start, "--max_restarts", restarts, ROOT / "train_recognition.py", *commands[key]]
    with open(tmp_path / "text", "w") as text:
        run = subprocess.Popen([str(word) for word in command], cwd=tmp_path, stdout=text, stderr=text)
    checkpoints = "output/train_recognition/*/checkpoints/update_*"
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob(checkpoints))) < 2:
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "text").read_text()
        time.sleep(0.01)
    victim, *_ = [pid for pid in children(run.pid) if b"train_recognition" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    code = run.wait(timeout=180)
    text = (tmp_path / "text").read_text()
    if restarts:
        assert code == 0, text
        (folder,) = (tmp_path / "output" / "train_recognition").iterdir()
        assert "resumed: " in text
        assert_same_run(uninterrupted(key), folder)
    else:
        assert code == 1 and time.monotonic() - killed < 60
        assert "error: a process of this run was lost" in text


# --- losses that are no numbers


def bad_losses_of_rank_1(rank):
    """A loss that is no number in the updates 7 and 8, on the last of two processes."""
    from utils.losses.recognition import CrossEntropy

    forward, calls = CrossEntropy.forward, itertools.count()

    def sometimes_bad(self, logits, target):
        loss = forward(self, logits, target)
        return loss * float("nan") if next(calls) // 2 in (7, 8) and rank == 1 else loss

    CrossEntropy.forward = sometimes_bad


def bad_features(rank):
    """Images that are no numbers in update 2, of which batch norm takes statistics."""
    from timm.models.resnet import ResNet

    forward, calls = ResNet.forward, itertools.count()

    def sometimes_bad(self, images):
        return forward(self, images * float("nan") if self.training and next(calls) == 2 else images)

    ResNet.forward = sometimes_bad


def test_an_update_that_is_left_out_leaves_no_statistics_of_batch_norm(tmp_path):
    for split in ("train", "val"):
        make_folder(tmp_path / "data" / split, per_class=32)
    words = f"--model test_resnet --input_size 32 --batch_size 16 --epochs 1 --warmup_epochs 0 --data_path {tmp_path / 'data'}"
    words = f"{words} --report_to none --num_workers 0 --skip_nonfinite 1 --output_dir {tmp_path / 'run'}".split()
    done = forked("train_recognition", *words, prepare=bad_features)
    assert done.returncode == 0, done.stderr
    assert [record["update"] for record in lines(tmp_path / "run" / "updates.txt") if record.get("skipped")] == [2]
    weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert "bn1.running_var" in str(weights.keys()) and all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("tolerated", [0, 1, 2])
def test_updates_without_a_finite_loss_are_left_out_or_stop_the_run(commands, tmp_path, tolerated):
    unmixed = " ".join(commands["train_recognition", 2]).replace("--mixup 0.8 --cutmix 1.0 --mixup_mode elem", "").split()
    words = [*unmixed, "--skip_nonfinite", tolerated, "--output_dir", tmp_path / "run"]
    job = Job("train_recognition", words, tmp_path / "text", 2, prepare=bad_losses_of_rank_1)
    codes, text = job.wait(), job.text.read_text()
    records = lines(tmp_path / "run" / "updates.txt")
    if tolerated == 2:
        assert codes == [0, 0], text
        assert [record["update"] for record in records if record.get("skipped")] == [7, 8]
        assert [record["loss"] is None for record in records] == [i in (7, 8) for i in range(44)]
        log = lines(tmp_path / "run" / "log.txt")
        assert [record["skipped_updates"] for record in log] == [2, 2]
        counted = [record["loss"] for record in records[:22] if record["loss"] is not None]
        assert log[0]["train_loss"] == pytest.approx(sum(counted) / 20)
        assert "update 7, 8 (2 so far)" in (tmp_path / "run" / "warnings.txt").read_text()
        weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    else:
        assert codes == [1, 1]
        last = states(tmp_path / "run" / "checkpoints")[-1]
        assert last.name == "update_00000006" and find_fault(last) is None and f"the last good checkpoint is {last}" in text
        what = (
            "the loss is nan at update 7" if not tolerated else "2 updates in a row, up to update 8, have a loss or a gradient"
        )
        assert what in text
        assert not (tmp_path / "run" / "best").exists()


# --- broken samples


def broken_photographs(root):
    """40 training photographs, 2 of them broken, and 8 whole ones to validate on; the names of the broken ones."""
    from conftest import make_folder

    make_folder(root / "train", ("cat", "dog"), 20, suffix=".jpg")
    make_folder(root / "val", ("cat", "dog"), 4, suffix=".jpg", seed=1)
    cut, empty = root / "train" / "dog" / "5.jpg", root / "train" / "cat" / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    empty.write_bytes(b"")
    return [str(empty), str(cut)]


@pytest.mark.slow
def test_broken_photographs_are_replaced_named_and_limited(tmp_path):
    broken = broken_photographs(tmp_path / "photos")
    words = [*TINY, "--data_path", tmp_path / "photos", "--batch_size", 8, "--max_bad_samples", 0.1, "--hflip", 0.5]
    runs = {}
    for name, processes, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 1)):
        folder = tmp_path / name
        here = ["--num_workers", workers, "--batch_size", 8 // processes, "--output_dir", folder]
        job = Job("train_recognition", [*words, *here], tmp_path / "text", processes)
        assert set(job.wait()) == {0}, job.text.read_text()
        log = lines(folder / "log.txt")
        assert [record["bad_samples"] for record in log] == [2, 2]
        assert (folder / "bad_samples.txt").read_text().splitlines() == broken
        assert all(f"warning: broken image, replaced: {name}" in job.text.read_text() for name in broken)
        runs[name] = [record["loss"] for record in lines(folder / "updates.txt")]
    assert runs["a"] == runs["b"] and runs["a"] == pytest.approx(runs["c"], abs=1e-4)

    job = Job("train_recognition", [*words, "--max_bad_samples", 0.01, "--output_dir", tmp_path / "d"], tmp_path / "text2")
    assert job.wait() == [1] and "2 of 40 training images (5 %) are broken" in job.text.read_text()
    job = Job("train_recognition", [*words, "--check_data", "--output_dir", tmp_path / "e"], tmp_path / "text3")
    assert job.wait() == [0] and (tmp_path / "e" / "check_data.txt").read_text().count("\n") == 2
    val = tmp_path / "photos" / "val" / "cat" / "1.jpg"
    val.write_bytes(val.read_bytes()[:-200])
    job = Job("train_recognition", [*words, "--output_dir", tmp_path / "f"], tmp_path / "text4")
    assert job.wait() == [1] and f"{val} cannot be read" in job.text.read_text()


def test_broken_masks_are_never_replaced(data, commands, tmp_path):  # noqa: F811
    shutil.copytree(data, tmp_path / "data")
    image, mask = (tmp_path / "data" / kind / "train" / "3.png" for kind in ("images", "masks"))
    image.write_bytes(image.read_bytes()[:-100])
    words = [*TINY_MASKS, "--data_path", tmp_path / "data", "--max_bad_samples", "0.05"]
    job = Job("train_segmentation", [*words, "--output_dir", tmp_path / "a"], tmp_path / "text")
    assert job.wait() == [0] and (tmp_path / "a" / "bad_samples.txt").read_text() == f"{image}\n"
    mask.write_bytes(mask.read_bytes()[:60])
    for more in ([], ["--check_data"]):
        job = Job("train_segmentation", [*words, *more, "--output_dir", tmp_path / "b"], tmp_path / "text")
        assert job.wait() == [1] and str(mask) in job.text.read_text()
