"""What is set and read of OpenMP before torch is imported."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from utils.cli import threads

OPENMP = ("OMP_NUM_THREADS", "KMP_BLOCKTIME", *threads.WAITING)
CHILD = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.cli.threads import user_chose_threads as f; print(f())"
# A launcher exports what it chose to the processes that it starts, as torchrun and `accelerate launch` do.
LAUNCHER = f"""
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
subprocess.run([sys.executable, "-c", {CHILD!r}], env=os.environ | {{MARK: "x"}})
"""


@pytest.fixture
def openmp(monkeypatch):
    """Sets the given variables, and takes out the others of OpenMP's."""

    def set_variables(chosen):
        for name in OPENMP:
            monkeypatch.setenv(name, chosen[name]) if name in chosen else monkeypatch.delenv(name, raising=False)

    set_variables({})
    return set_variables


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "200"}])
def test_threads_stop_spinning_where_there_is_no_gpu_and_the_user_did_not_choose(openmp, monkeypatch, tmp_path, chosen):
    monkeypatch.setattr(threads, "GPUS", (str(tmp_path / "nvidia[0-9]*"),))
    threads.spin_briefly()
    assert {name: os.environ.get(name) for name in threads.WAITING} == threads.WAITING
    openmp(chosen)
    threads.spin_briefly()
    assert {name: os.environ[name] for name in OPENMP if name in os.environ} == chosen
    openmp({})
    (tmp_path / "nvidia0").touch()
    threads.spin_briefly()
    assert not set(threads.WAITING) & set(os.environ)


@pytest.mark.parametrize("asked, seen", [("true", ""), ("1", ""), ("no", "3"), (None, "3")])
def test_a_script_that_is_to_run_on_the_cpu_sees_no_gpu(asked, seen, monkeypatch):
    """Before torch is imported, at which it stops here."""
    code = (
        "import os, sys; sys.modules['torch'] = None; sys.argv = ['train_recognition.py']\n__file__ = 'train_recognition.py'\n"
    )
    monkeypatch.setenv(threads.ON_CPU, asked) if asked else monkeypatch.delenv(threads.ON_CPU, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    code += "import utils.cli.first\nprint('GPUs:' + os.environ['CUDA_VISIBLE_DEVICES'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"GPUs:{seen}", done.stderr


def test_a_script_sets_it_before_torch_is_imported_and_nothing_else_does():
    """A script is what runs as __main__; it stops here at torch, which is no module."""
    code = "import os, sys; sys.modules['torch'] = None; sys.argv = ['train_recognition.py']\n"
    end = f"print({{name: os.environ.get(name) for name in {tuple(threads.WAITING)}}})"
    environment = {name: text for name, text in os.environ.items() if name not in OPENMP}
    script = f"__file__ = 'train_recognition.py'\nimport utils.cli.first\n{end}"
    as_script, imported = (
        subprocess.run([sys.executable, "-c", code + text], cwd=ROOT, env=environment, capture_output=True, text=True)
        for text in (script, f"import utils.cli.first\n{end}")
    )
    no_gpu = not any(threads.glob.glob(path) for path in threads.GPUS)
    expected = threads.WAITING if no_gpu else dict.fromkeys(threads.WAITING)
    assert as_script.stdout.splitlines()[-1] == str(expected), as_script.stderr
    assert imported.stdout.splitlines() == [str(dict.fromkeys(threads.WAITING))], imported.stderr


def chosen(program, **environment):
    """What the processes of this program print, each of them: whether the user chose the number of threads."""
    clean = {name: text for name, text in os.environ.items() if name not in {*OPENMP, *threads.LAUNCHERS}}
    done = subprocess.run(program, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (said,) = set(re.findall("True|False", done.stdout))  # two may write on one line
    return said == "True"


def test_a_number_of_threads_of_the_users_is_told_from_a_launchers():
    python = [sys.executable, "-c", CHILD]
    assert not chosen(python) and chosen(python, OMP_NUM_THREADS="1")
    for mark in threads.LAUNCHERS:
        launcher = [sys.executable, "-c", LAUNCHER.replace("MARK", repr(mark))]
        assert not chosen(launcher) and chosen(launcher, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_the_launchers_export_what_they_are_known_by():
    child, bins = ["--no_python", sys.executable, "-c", CHILD], os.path.dirname(sys.executable)
    for launcher in (["torchrun", "--standalone", "--nproc_per_node", "2"], ["accelerate", "launch", "--num_processes", "1"]):
        command = [os.path.join(bins, launcher[0]), *launcher[1:], *child]
        assert not chosen(command) and chosen(command, OMP_NUM_THREADS="1")
