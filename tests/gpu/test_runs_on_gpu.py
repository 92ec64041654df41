"""The scripts on a GPU: each way to run trains, evaluates and goes on; losses are the CPU's; equal bits where asked for."""

import functools
import math
import re
import time

import on_device
import pytest
import torch
from conftest import ROOT, forked, lines, run
from on_device import SAVES, SCRIPTS, WORDS, alone, go_back, losses, on, saved, sharded_alone
from safetensors.torch import load_file
from sharded_on_cpu import ENVIRONMENT

from utils.run.checkpoint import states

data, start = on_device.data, on_device.start  # fixtures

CHECKPOINTING = "--grad_checkpointing true"
EMA = "--model_ema true --model_ema_decay 0.9"
# (script, flags, precision)
WAYS = {
    f"{script}-{name}": (script, flags.split(), precision)
    for script in SCRIPTS
    for name, (flags, precision) in {
        "float32": (EMA, "no"),
        "bf16": ("--num_workers 2", "bf16"),
        "fp16": ("--clip_grad 1", "fp16"),
        "channels_last": ("--channels_last true --cudnn_benchmark true", "no"),
        "checkpointing": (f"{CHECKPOINTING} --drop_path 0.1", "no"),
        "bf16-channels_last-checkpointing": (f"--channels_last true {CHECKPOINTING} {EMA}", "bf16"),
        "fp16-channels_last-checkpointing": (f"--channels_last true {CHECKPOINTING} --batch_size 8 --update_freq 2", "fp16"),
        "bf16-channels_last-compile": ("--channels_last true --torchcompile true", "bf16"),
        "all": (f"--channels_last true --torchcompile true {CHECKPOINTING} --clip_grad 1 {EMA}", "bf16"),
    }.items()
}
ON_CPU = ("recognition-bf16-channels_last-checkpointing", "segmentation-float32")
WAYS["recognition-compile"] = ("recognition", ["--torchcompile", "true"], "no")


@on(WAYS, slow=ON_CPU)
def test_it_trains_evaluates_and_goes_on(device, case, tmp_path, start):
    script, flags, precision = case
    folder, flags = tmp_path / "run", [*flags, *SAVES]
    text = start(device, script, *flags, "--output_dir", folder, precision=precision)
    assert ("one cuda" if device == "cuda" else "CPU threads") in text and f"precision {precision}" in text
    first, log = losses(folder), lines(folder / "log.txt")
    assert len(first) == 12 and all(map(math.isfinite, first)) and sum(first[-3:]) < sum(first[:3])

    metric, name = ("test_acc1", "top-1") if script == "recognition" else ("test_miou", "mIoU")
    state = states(folder / "checkpoints")[-1]
    found = start(device, script, *flags, "--eval", "true", "--resume", state, precision=precision)
    assert float(re.search(rf"result: {name} ([\d.]+)", found)[1]) == pytest.approx(log[-1][metric], abs=5)
    assert ("result of the EMA" in found) == ("--model_ema" in flags)

    assert (saved(folder)["scaler"] is not None) == (precision == "fp16")
    go_back(folder)
    assert "resumed: " in start(device, script, *flags, "--output_dir", folder, precision=precision)
    assert losses(folder)[:4] == first[:4] and losses(folder) == pytest.approx(first, rel=0.05)


BITS = {
    "recognition": ("recognition", ["--drop_path", "0.2", "--mixup", "0.8", "--model_ema", "true"]),
    "recognition-batch_norm": ("recognition", ["--model", "resnet18", "--model_kwargs", "channels=(8,16,16,16)"]),
    "segmentation": ("segmentation", ["--model", "fcn", "--dropout", "0.1", "--drop_path", "0.2"]),
    "segmentation-pooling": ("segmentation", ["--model", "upernet"]),
}


@on(BITS, cpu=("recognition",))
def test_a_deterministic_run_goes_on_to_the_bit(device, case, tmp_path, start):
    script, flags = case
    folder, found = tmp_path / "run", []
    for _ in range(2):
        start(device, script, *flags, *SAVES, "--deterministic", "true", "--output_dir", folder)
        found.append((losses(folder), load_file(folder / "last" / "model.safetensors")))
        go_back(folder)
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=0)


# (script, flags, precision, largest relative difference)
AS_ON_CPU = {
    "recognition-float32": ("recognition", "--tf32 false --mixup 0.8 --cutmix 1", "no", 1e-3),
    "recognition-tf32-channels_last": ("recognition", "--channels_last true", "no", 1e-2),
    "recognition-bf16": ("recognition", "--model_ema true", "bf16", 3e-2),
    "recognition-fp16": ("recognition", "--clip_grad 1", "fp16", 1e-2),
    "segmentation-float32": ("segmentation", "--tf32 false --aux true", "no", 1e-3),
    "segmentation-bf16-channels_last": ("segmentation", "--channels_last true", "bf16", 3e-2),
}


@on(AS_ON_CPU, cpu=("recognition-tf32-channels_last",))
def test_twenty_updates_have_the_losses_of_a_plain_run_on_the_cpu(device, case, tmp_path, start, monkeypatch):
    script, flags, precision, tolerance = case
    # From its usual first scale the loss scaler leaves updates out, which the CPU makes.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=256.0))
    found = []
    for where, words, kind in ((device, flags.split(), precision), ("cpu", plain(flags), "no")):
        folder = tmp_path / str(len(found))
        words = [*words, "--batch_size", 8, "--disable_eval", "true", "--save_ckpt", "false"]
        start(where, script, *words, "--output_dir", folder, precision=kind)
        assert not any("skipped" in record for record in lines(folder / "updates.txt"))
        found.append(losses(folder)[:20])
    assert len(found[0]) == 20 and found[0] == pytest.approx(found[1], rel=tolerance)


def plain(flags):
    """The flags that change what is computed."""
    return flags.replace("--channels_last true", "").split()


@on({"recognition": "recognition", "segmentation": "segmentation"}, cpu=("segmentation",))
def test_use_amp_is_bf16_and_a_model_of_the_gpu_predicts(device, case, tmp_path, start, data):
    text = start(device, case, "--use_amp", "true", "--epochs", 1, "--output_dir", tmp_path / "run")
    assert "precision bf16" in text
    images = next(data[case].glob("val/red")) if case == "recognition" else data[case] / "images" / "val"
    words = ["--predict", images, "--finetune", tmp_path / "run" / "last", "--output_dir", tmp_path / "out"]
    start(device, case, *words, trains=False)
    assert list((tmp_path / "out").rglob("*.csv" if case == "recognition" else "*.png"))


@on({"recognition": "recognition", "segmentation": "segmentation"}, slow=("recognition",))
def test_fsdp2_on_one_process_has_the_losses_of_an_ordinary_run(device, case, tmp_path, start, data):
    start(device, case, "--output_dir", tmp_path / "plain")
    script = SCRIPTS[case].__name__
    words = [*WORDS[case], *SAVES, "--data_path", data[case], "--output_dir", tmp_path / "sharded"]
    for _ in range(2):  # from the start, then from a state
        if device == "cuda":
            done = run(ROOT / f"{script}.py", *words, env=ENVIRONMENT | alone())
        else:
            done = forked(script, *words, prepare=sharded_alone)
        assert done.returncode == 0, done.stderr[-2000:]
        assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)
        go_back(tmp_path / "sharded")


@on({"recognition": "recognition"}, slow=("recognition",))
def test_two_processes_on_the_cpu_see_no_gpu(device, case, tmp_path, data):
    words = [*WORDS[case], "--data_path", data[case], "--output_dir", tmp_path / "run"]
    done = run(ROOT / f"train_{case}.py", *words, processes=2, env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"processes: 2, each with \d+ CPU threads", done.stdout) and len(losses(tmp_path / "run")) == 6


@on({"recognition": "recognition"})
def test_two_processes_with_one_gpu_are_told_so(device, case, tmp_path, data):
    words = [*WORDS[case], "--data_path", data[case], "--output_dir", tmp_path / "run"]
    done = run(ROOT / f"train_{case}.py", *words, processes=2, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.returncode == 1 and "two processes have one GPU" in done.stderr, done.stderr[-2000:]


@on({"recognition": "recognition"}, slow=("recognition",))
def test_a_command_ends_when_its_run_is_done(device, case, tmp_path, data):
    words = [*WORDS[case], "--data_path", data[case], "--num_workers", 4, "--output_dir", tmp_path / "run"]
    done = run(ROOT / f"train_{case}.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.time() - (tmp_path / "run" / "finished.json").stat().st_mtime < 10  # torch would wait for 8 workers, 5 s each
