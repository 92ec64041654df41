"""The benchmarks follow the code: each can be imported, and the one that runs the scripts' own loops runs."""

import ast
import importlib
import re
import runpy
import sys

import pytest
from conftest import ROOT, TINY, run

from utils.run import results

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])  # as where it is started
    monkeypatch.delitem(sys.modules, "data", raising=False)
    runpy.run_path(str(path), run_name="imported")
    for node in ast.walk(ast.parse(path.read_text())):  # those within functions too
        if isinstance(node, ast.ImportFrom) and (ROOT / node.module.split(".")[0]).exists():
            names = {
                alias.name for alias in node.names if not (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()
            }
            assert names <= set(dir(importlib.import_module(node.module)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["recognition", "segmentation"])
def test_the_loop_is_measured_against_the_bare_step(task):
    smallest = ["--size", 32, "--batch", 2, "--updates", 1, "--rounds", 1, "--ema", "on"]
    done = run("benchmarks/step.py", "--task", task, *smallest)
    assert re.search(r"EMA on: bare step [\d.]+ images/s, the loop [\d.]+, ratio [\d.]+$", done.stdout.strip()), done.stderr


def test_what_the_pictures_cost_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import pictures

    monkeypatch.setattr(results, "Gallery", results.Gallery)  # which it replaces by its own
    monkeypatch.setattr(sys, "argv", ["pictures.py", *TINY, "--epochs", "1", "--warmup_epochs", "0"])
    pictures.main()
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"drawing while training: [\d.]+ s of [\d.]+ s, [\d.]+ %, in 0 rounds; after it [\d.]+ s", line)
    assert float(line.split()[-2]) > 0
