"""What a user can put right is one line and an exit code; anything else keeps its traceback."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from utils.cli.errors import InputError, choose_one, did_you_mean, input_errors, one_line


def end_of(statement, **environment):
    """(exit code, last line of stderr) of a script whose main is this statement."""
    program = (
        f"from utils.cli.errors import *\ndef main(args):\n    {statement}\nrun_script('x.py', main, None)\nprint('after')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | environment
    )
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr else done.stdout.strip()


@pytest.mark.parametrize(
    ("statement", "code", "line"),
    [
        ("pass", 0, "after"),
        ("raise InputError('no\\nsuch')", 1, r"x.py: error: no\nsuch"),
        ("raise Stopped('stopped at update 3')", 75, "x.py: stopped at update 3"),
        ("raise KeyboardInterrupt", 130, "x.py: interrupted; what was saved is whole"),
        ("raise RuntimeError('DataLoader worker (pid 3) is killed by signal: Killed. ')", 1, "try fewer --num_workers"),
        ("raise RuntimeError('put_ does not have a deterministic implementation, but')", 1, "--deterministic: put_ has no"),
        ("raise RuntimeError('bug')", 1, "RuntimeError: bug"),
        ("raise ValueError('bug')", 1, "ValueError: bug"),
    ],
)
def test_how_a_script_ends(statement, code, line):
    ended, said = end_of(statement)
    assert ended == code and line in said


def test_how_one_of_several_processes_ends():
    lost = "raise RuntimeError('Connection closed by peer [127.0.0.1]:29500')"
    assert end_of(lost, WORLD_SIZE="2", RANK="0")[1].endswith("the same command goes on from the last state")
    assert end_of(lost)[1].startswith("RuntimeError")  # alone, nobody can be lost
    assert end_of("raise Stopped('stopped')", WORLD_SIZE="2", RANK="1") == (75, "")  # the other one says so


def test_the_nearest_name_is_offered():
    assert did_you_mean("resnet5", ["resnet50", "vit"]) == ", did you mean resnet50?" and did_you_mean("q", ["resnet50"]) == ""
    choose_one("vit", ["resnet50", "vit"], "model")
    with pytest.raises(InputError, match=r"^unknown model 'resnet5', did you mean resnet50\?$"):
        choose_one("resnet5", ["resnet50", "vit"], "model")


def test_errors_of_a_library_become_the_users():
    for error in (ValueError("a\nb"), AssertionError("a\nb"), RuntimeError("a\nb")):
        with pytest.raises(InputError, match="^--aa x: a$"), input_errors("--aa x: "):
            raise error
    with pytest.raises(InputError, match="^mine$"), input_errors("--aa x: "):
        raise InputError("mine")
    with pytest.raises(KeyError), input_errors():
        raise KeyError("a bug")


def test_no_message_breaks_its_line_or_steers_the_terminal():
    assert str(InputError("a\nb\r\x1b[2J\u202e\udcff\x85c")) == "a\\nb\\r\\x1b[2J\\u202e\\udcff\\x85c"
    assert str(InputError("Zoë/猫 🐈.jpg: no image")) == "Zoë/猫 🐈.jpg: no image"
    assert len(one_line("x" * 10**6)) < 2100


class Raising(torch.utils.data.Dataset):
    def __getitem__(self, index):
        raise InputError("row\n3 is no image")

    def __len__(self):
        return 1


def test_an_error_of_a_loader_worker_is_one_line_too():
    with pytest.raises(InputError) as error:
        list(torch.utils.data.DataLoader(Raising(), num_workers=1))
    assert str(error.value) == "row\\n3 is no image"
