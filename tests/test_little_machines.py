"""Machines with little: shared memory, open files, memory, outputs that take nothing, loader workers that are lost."""

import itertools
import os
import resource
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, lines, train

from utils import machine
from utils.cli.explain import explain


def little_shared_memory(_rank):
    machine.shared_memory = lambda: 3 << 20


def few_files(_rank):
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 56))


FEW = ("--epochs", 1, "--warmup_epochs", 0, "--batch_size", 256)


@pytest.fixture(scope="module")
def losses_without_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(*FEW, "--output_dir", folder).returncode == 0
    return [record["loss"] for record in lines(folder / "updates.txt")]


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "said"), [(little_shared_memory, "docker run --shm-size"), (few_files, "`ulimit -n`")])
def test_fewer_workers_than_asked_for_train_the_same(losses_without_workers, tmp_path, prepare, said):
    done = train(*FEW, "--num_workers", 3, "--output_dir", tmp_path, prepare=prepare)
    assert done.returncode == 0, done.stderr
    assert "instead of 3: " in done.stdout and said in done.stdout
    assert [record["loss"] for record in lines(tmp_path / "updates.txt")] == losses_without_workers


def test_shared_memory_that_is_missing_or_not_to_be_written(monkeypatch):
    monkeypatch.setattr(machine, "SHARED", "/nowhere")
    assert machine.shared_memory() is None
    monkeypatch.setattr(machine, "SHARED", "/dev")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert machine.shared_memory() == 0
    said, samples = [], [(bytes(0), machine.torch.zeros(3, 4, 4, dtype=machine.torch.uint8))]
    assert machine.workers_that_fit(4, samples, 8, say=said.append) == 0 and "0 MiB free" in said[0]


# --- memory


class Flags:
    batch_size, update_freq, grad_checkpointing, input_size = 64, None, False, 224


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                      "30064771072 bytes. Error code 12"), "asked for 28.00 GiB; "),
        (RuntimeError("CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity"), "asked for 0.50 GiB; "),
        (MemoryError("Unable to allocate 28.0 GiB for an array with shape (1,)"), "asked for 28.00 GiB; "),
        (RuntimeError("could not create a primitive"), ""), (RuntimeError("std::bad_alloc"), ""), (MemoryError(), ""),
        (OSError(12, "Cannot allocate memory"), ""),
    ],
)  # fmt: skip
def test_what_was_asked_for_and_what_helps(error, asked):
    said = explain(error, Flags())
    assert said.startswith(f"out of memory: {asked}peak ") and "\n" not in said
    assert "--batch_size 32 --update_freq 2 learns from as many images" in said and "--input_size, now 224" in said


def one_gibibyte_more(_rank):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)


def test_a_batch_that_does_not_fit_ends_in_one_line(tmp_path):
    done = train("--input_size", 1024, "--batch_size", 256, "--output_dir", tmp_path / "run", prepare=one_gibibyte_more)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: out of memory: asked for " in done.stderr and "--batch_size 128 --update_freq 2" in done.stderr


# --- loader workers that are lost


def kill_a_worker(after):
    """Kill one of the loader workers after so many updates, each time it is asked for again."""
    import multiprocessing

    from utils.run.run import Run

    end, count = Run.end_update, itertools.count(1)

    def end_update(self, *words):
        end(self, *words)
        if next(count) == after:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    Run.end_update = end_update


def kill_early(_rank):
    kill_a_worker(3)


def kill_before_the_evaluation(_rank):
    kill_a_worker(22)


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [kill_early, kill_before_the_evaluation])
def test_a_lost_worker_is_one_line_and_the_same_command_goes_on(tmp_path, prepare):
    words = ["--num_workers", 2, "--save_ckpt_updates", 2, "--output_dir", tmp_path]
    done = train(*words, prepare=prepare)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: a loader worker was lost") == 1 and "the same command goes on" in done.stderr
    if prepare is kill_early:
        done = train(*words, "--num_workers", 0)
        assert done.returncode == 0 and "resumed: " in done.stdout, done.stderr


# --- disks


def hardly_any_disk(_rank):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_was_full_from_the_start_leaves_nothing_to_go_on_with(tmp_path):
    done = train("--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "run", prepare=hardly_any_disk)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "make room and run the same command with another --output_dir: no state" in done.stderr


# --- compilers


def no_compiler(_rank):
    os.environ.update(PATH="/nowhere", CXX="/nowhere/g++", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--opt", "kron"], ["--torchcompile"]])
def test_what_compiles_says_so_where_nothing_can_be_compiled(tmp_path, words):
    done = train(*words, "--output_dir", tmp_path / "run", prepare=no_compiler)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {' '.join(words)} compiles, which fails here (" in done.stderr and "such as g++" in done.stderr


# --- outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "code", "words"),
    [(">/dev/full", 1, "No space left"), ("| head -c 10", 1, "nobody reads any more"), (">&- 2>&-", 0, "")],
)
def test_outputs_that_take_nothing_end_in_a_line_or_do_not_matter(redirected, code, words):
    command = f"{sys.executable} {ROOT / 'train_recognition.py'} --dry_run {redirected}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and "Traceback" not in done.stderr and words in done.stderr, done.stderr


def closed(_rank):
    for number in (0, 1, 2):
        os.close(number)


@pytest.mark.slow
def test_a_run_whose_outputs_are_closed_leaves_whole_files(tmp_path):
    assert train("--output_dir", tmp_path, "--epochs", 1, "--warmup_epochs", 0, prepare=closed).returncode == 0
    assert [record["epoch"] for record in lines(tmp_path / "log.txt")] == [0]
    assert len(lines(tmp_path / "updates.txt")) == 22


# --- folders


@pytest.mark.parametrize("name", ["args.json", "log.txt", ".lock", "warnings.txt", "finished.json"])
def test_a_pipe_in_the_folder_of_a_run_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    done = train("--output_dir", tmp_path, timeout=60)
    assert done.returncode == 1 and f"holds {name}, which is no file" in done.stderr


def test_names_that_no_disk_takes_or_no_encoding_has(tmp_path):
    for name in ("x" * 300, "/".join(["y" * 200] * 30)):
        done = train("--output_dir", tmp_path / name)
        assert done.returncode == 1 and "cannot be written (File name too long)" in done.stderr
        assert "Traceback" not in done.stderr
    done = train("--output_dir", os.fsdecode(bytes(tmp_path) + b"/a\xff\x1b[2J"))
    assert done.returncode == 1 and "/a\\udcff\\x1b[2J: its name is no UTF-8" in done.stderr and not list(tmp_path.iterdir())
