"""benchmarks/gpu.py on a CPU, in small: each part writes its rows, what has no time left is named, and the tables are those of
RESULTS.md. And neither it nor the scripts need the library `datasets` before they read through it."""

import json
import subprocess
import sys
import time
import types

import pytest
import timm
import torch
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_kernels
import gpu_runs

NO_DATASETS = "import sys; sys.modules['datasets'] = None; sys.path.insert(0, 'benchmarks'); import "


def test_nothing_imports_datasets_before_it_is_used():
    names = "train_recognition, train_segmentation, gpu, gpu_runs, gpu_kernels"
    done = subprocess.run([sys.executable, "-c", NO_DATASETS + names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rows_of(folder, part):
    return json.loads((folder / f"{part}.json").read_text())["rows"]


def test_operators_against_what_they_need(tmp_path):
    gpu.main(["--small", "--here", "--only", "kernels", "--out", str(tmp_path)])
    rows = {(row["operator"], row["stage"]): row for row in rows_of(tmp_path, "kernels")}
    assert len(rows) == 2 + 2 * 9
    depthwise = rows["depthwise 7 x 7", "1: 1 x 8 x 8 x 8"]
    assert depthwise["GFLOP"] * 1e9 == 3 * 2 * 49 * 2 * 8 * 8 * 8  # forward, both gradients; two for each product and sum
    assert depthwise["GB"] * 1e9 == 5 * 2 * (2 * 8 * 8 * 8) + 3 * 4 * (49 * 8 + 8)
    assert all(row["ms"] > row["least ms"] > 0 for row in rows.values() if "least ms" in row)
    assert {"memory", "arithmetic"} >= {row["bound"] for row in rows.values() if "bound" in row}
    assert "| GRN (V2) | 2: 1 x 16 x 4 x 4 |" in (tmp_path / "tables.md").read_text()


def test_the_loop_beside_the_bare_step_and_timms(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runs, "SMALL_JOBS", gpu_runs.SMALL_JOBS[:1])
    monkeypatch.setattr(gpu_runs, "COMPILED", (False,))
    gpu.main(["--small", "--here", "--only", "speed", "--minutes", "30", "--out", str(tmp_path)])
    rows = rows_of(tmp_path, "speed")
    assert len(rows) == 1 and was_measured(rows[0])


def was_measured(row):
    figures = [row[name] for name in ("loop", "bare", "timm", "loop / bare", "loop / timm")]
    return "why" not in row and min(figures) > 0 and row["share of peak"] is None and 0.01 < row["GFLOP"] < 0.05


def test_operations_are_those_of_the_papers():
    """ConvNeXt, table 1: 4.5 G multiplications with their additions in the forward pass of convnext_tiny at 224 pixels."""
    model = timm.create_model("convnext_tiny")
    assert gpu_kernels.training_flops(model, torch.zeros(1, 3, 224, 224)) == pytest.approx(3 * 2 * 4.47e9, rel=0.01)


def test_what_the_time_does_not_do_for_is_named(tmp_path):
    gpu.main(["--small", "--here", "--only", "speed", "--minutes", "0.1", "--out", str(tmp_path)])
    assert {row["why"] for row in rows_of(tmp_path, "speed")} == {"no time left"}


def test_a_fault_in_a_row_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runs, "SMALL_JOBS", [("no model", "recognition", "--model no_such_model", 64, 4)])
    gpu.main(["--small", "--here", "--only", "speed", "--minutes", "30", "--out", str(tmp_path)])
    rows = rows_of(tmp_path, "speed")
    assert len(rows) == 2 and all("InputError: " in row["why"] for row in rows)


def test_a_part_is_ended_with_all_of_its_own_when_its_time_is_over(tmp_path, monkeypatch, capsys):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import subprocess, time\nsubprocess.Popen(['sleep', '77.77'])\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "__file__", str(sleeper))
    start = time.monotonic()
    gpu.run_apart("speed", types.SimpleNamespace(out=tmp_path, workers=1, small=True), 3.0)
    assert time.monotonic() - start < 20 and "ended after 3 s" in capsys.readouterr().out
    assert subprocess.run(["pgrep", "-f", "^sleep 77.77"], capture_output=True).returncode == 1


def test_the_most_that_a_card_can_do_is_found_by_its_name(monkeypatch):
    device = types.SimpleNamespace(type="cuda")
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "Tesla T4": None}
    for name, peak in names.items():
        monkeypatch.setattr(gpu_runs.torch.cuda, "get_device_name", lambda device, name=name: name)
        assert gpu_runs.peak_of(device) == peak


def test_tables_are_those_of_the_results():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for made in (gpu.tests_table, gpu.speed_table, gpu.loader_table, gpu.kernels_table):
        assert made([]).splitlines()[0] in results
    row = {"model": "resnet50", "pixels": 224, "batch": 256, "compile": True, "loop": 2000.0, "share of peak": 0.31}
    assert "| resnet50, compile | 224 | 256 | 2000 |  |  |  |  | 31.0 % |  |" in gpu.speed_table([row])
    text = gpu.loader_table([{"augmentation": "crop and flip", "workers": 16, "rate": 3000.0}], [row])
    assert "| crop and flip | 16 | 3000 | 2000 (resnet50) | 1.5 |" in text


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    done = run(ROOT / "benchmarks" / "gpu.py", "--small", "--minutes", 8, "--out", tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(f"{part}: done" in done.stdout for part in gpu.SHARES)
    assert len(rows_of(tmp_path, "speed")) == 4 and all(map(was_measured, rows_of(tmp_path, "speed")))
    assert len(rows_of(tmp_path, "loader")) == 2 and all(row["outcome"] == "passed" for row in rows_of(tmp_path, "tests"))
    assert len(rows_of(tmp_path, "tests")) == 3
