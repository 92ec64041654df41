"""Runs of the scripts that can be killed often: each is forked from a process that has imported everything already."""

import importlib
import multiprocessing
import os
import pathlib
import sys
import time

import torch
from conftest import free_port

SCRIPTS = ("train_recognition", "train_segmentation")
_context = multiprocessing.get_context("forkserver")
_PICTURES = ["matplotlib.font_manager", "matplotlib.style", "matplotlib.backends.backend_agg"]
_context.set_forkserver_preload(["faults", "sklearn.datasets", "torch.distributed.fsdp", *_PICTURES, *SCRIPTS])


class Job:
    """All processes of one start of a script. Their text goes to `text`, a file; ends with `codes`, one per process."""

    def __init__(self, script, words, text, processes=1, prepare=None, errors=None, threads=1):
        """prepare: a function of a test module, called in each process before the script's main. errors: a file of its own.

        threads: 1, since with tiny models more only wait for each other; None: as many as the script takes by itself.
        """
        self.text, port = pathlib.Path(text), free_port()
        self.parts = [
            _context.Process(
                target=_run, args=(script, [*map(str, words)], str(text), rank, processes, port, prepare, errors, threads)
            )
            for rank in range(processes)
        ]
        for part in self.parts:
            part.start()

    def alive(self):
        return any(part.is_alive() for part in self.parts)

    def kill(self):
        for part in self.parts:
            part.kill()
        return self.wait()

    def signal(self, number):
        for part in self.parts:
            if part.is_alive():
                os.kill(part.pid, number)

    def wait(self, timeout=120):
        """Exit codes, negative for a signal's number; kills what has not ended in time."""
        deadline = time.monotonic() + timeout
        for part in self.parts:
            part.join(max(0.0, deadline - time.monotonic()))
        if self.alive():
            for part in self.parts:
                part.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.text.read_text()}")
        return [part.exitcode for part in self.parts]

    def wait_until(self, condition, timeout=120):
        """Poll `condition()` closely until it holds; False if the job ends before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if condition():
                return True
            if not self.alive():
                return False
            time.sleep(0.002)
        raise TimeoutError(self.text.read_text())


def _run(script, words, text, rank, processes, port, prepare, errors, threads):
    """What each process does; runs in the child."""
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a run of its own
    for number, path in ((1, text), (2, errors or text)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if processes > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    module = importlib.import_module(script)
    from utils.model import processes as processes_of_a_run

    if threads:
        processes_of_a_run.use_all_cores = lambda: torch.set_num_threads(threads) or threads
    if prepare:
        prepare(rank)
    sys.argv = [f"{script}.py", *words]
    from utils.cli.errors import run_script

    run_script(f"{script}.py", module.main, module.parse_args(words))
