"""The page about a machine: what is there, what to change, and no secrets."""

import argparse

import torch
from conftest import ROOT, run

from utils import doctor, machine

SHORT = argparse.Namespace(seconds=0.01)


def test_the_page_tells_what_to_change_and_no_secrets(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("HF_ENDPOINT", "https://anna:hunter2@mirror/?token=hunter2")
    monkeypatch.setattr(machine, "shared_memory", lambda: 64 << 20)
    monkeypatch.setattr(machine, "open_files", lambda: 64)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: argparse.Namespace(free=1 << 30))
    doctor.main(SHORT)
    page, advice = capsys.readouterr().out.split("what to change")
    assert all(
        part in page for part in (torch.__version__.partition("+")[0], "float32", "images/s", "https://mirror/?token=hidden")
    )
    assert "docker run --shm-size 8g" in advice and "ulimit -n 4096" in advice and "1.0 GiB free: make room" in advice
    assert "hunter2" not in page + advice


def test_a_device_that_does_not_work_is_part_of_the_page(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution")

    monkeypatch.setattr(doctor, "_training", broken)
    doctor.main(SHORT)
    page, advice = capsys.readouterr().out.split("what to change")
    assert "does not work: RuntimeError: CUDA error: no kernel image is available" in page and "cpu does not train" in advice


def test_the_command():
    done = run("-m", "utils.doctor", "--seconds", "0.01", cwd=ROOT)
    assert done.returncode == 0 and "what to change" in done.stdout and done.stderr == ""
