"""train_segmentation.py as users run it: training, evaluation, resume, prediction, wrong input."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT, forked, lines, run
from PIL import Image
from safetensors.torch import load_file

import train_segmentation
from utils.cli.errors import InputError
from utils.run.checkpoint import states

TINY = (
    "--backbone convnextv2_atto --backbone_kwargs depths=(1,1,1,1) dims=(8,8,16,16) --model upernet --channels 8 --aux true "
    "--crop_size 32 --base_size 40 --batch_size 4 --epochs 2 --opt adamw --lr 0.003 --head_lr_scale 1 --num_workers 0 "
    "--report_to none"
).split()
EVERYTHING = (
    "--update_freq 2 --model_ema true --model_ema_decay 0.9 --drop_path 0.2 --clip_grad 1 --save_ckpt_updates 1".split()
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """images/ and masks/: three colours that are three classes, some pixels without a label, sizes of all kinds."""
    root = tmp_path_factory.mktemp("seg") / "data"
    rng = np.random.default_rng(0)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    for split, count in (("train", 24), ("val", 7)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            height, width = rng.integers(24, 60, 2)
            mask = np.zeros((height, width), np.uint8)
            for label in (1, 2):
                y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
                mask[y : y + 14, x : x + 14] = label
            image = (colours[mask] + rng.integers(-30, 30, (height, width, 3))).astype(np.uint8)
            mask[0, :5] = 255
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


@pytest.fixture
def main(capsys):
    """The script within this process: returns what it printed."""

    def call(*words):
        try:
            tiny = " ".join(TINY).replace("--epochs 2 ", "" if "--max_updates" in words else "--epochs 2 ").split()
            train_segmentation.main(train_segmentation.parse_args([*tiny, *map(str, words)]))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return capsys.readouterr().out

    return call


def train(*words, **kwargs):
    return forked("train_segmentation", *TINY, *words, **kwargs)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted run with everything on."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = train(*EVERYTHING, "--data_path", data, "--save_ckpt_num", 100, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_output_folder(finished):
    log = lines(finished / "log.txt")
    assert [record["epoch"] for record in log] == [0, 1]
    assert {"train_loss", "train_lr", "test_miou", "test_pixacc", "test_macc", "test_iou", "test_miou_ema"} <= set(log[0])
    assert len(log[0]["test_iou"]) == 3 and log[0]["test_classes"] == 3
    assert [record["update"] for record in lines(finished / "updates.txt")] == list(range(6))
    config = json.loads((finished / "best" / "config.json").read_text())
    assert config["classes"] == ["red", "green", "blue"] and config["network"]["head"] == "upernet"
    for name in ("best", "best_ema", "last"):
        assert any(key.startswith("decode_head.") for key in load_file(finished / name / "model.safetensors"))


@pytest.mark.slow
def test_it_learns_and_evaluates_the_same_on_one_and_two_processes(main, data, tmp_path, capsys):
    main("--data_path", data, "--epochs", 12, "--lr", 0.01, "--output_dir", tmp_path / "run")
    log = lines(tmp_path / "run" / "log.txt")
    assert log[-1]["test_miou"] > 60 and log[-1]["test_miou"] > log[0]["test_miou"]
    words = ("--data_path", data, "--eval", "--finetune", tmp_path / "run" / "last")
    results = [re.search("result: .*", train(*words, processes=n).stdout)[0] for n in (1, 2)]
    assert results[0] == results[1] and f"mIoU {log[-1]['test_miou']:.4f} % of 3 classes" in results[0]
    out = main(*words, "--eval_mode", "slide", "--eval_scales", 0.75, 1.0, "--eval_flip", "true")
    assert "result: mIoU" in out and "  green: " in out and "throughput: " in out
    assert "result: mIoU" in main(*words, "--eval_mode", "crop")
    assert results[0] in main(*words, "--eval_batch_size", 3)  # images of several sizes, one by one

    words = ("--predict", data / "images" / "val", "--output_dir", tmp_path / "out", "--finetune", tmp_path / "run" / "last")
    train_segmentation.main(train_segmentation.parse_args(list(map(str, words))))  # no flag of the training is needed
    AcceleratorState._reset_state(reset_partial_state=True)
    out = capsys.readouterr().out
    assert "predicted: 7 images" in out
    for i in range(7):
        mask, image = Image.open(tmp_path / f"out/masks/{i}.png"), Image.open(data / f"images/val/{i}.png")
        truth = np.asarray(Image.open(data / f"masks/val/{i}.png"))
        assert mask.size == image.size == Image.open(tmp_path / f"out/overlays/{i}.png").size
        assert (np.asarray(mask) == truth)[truth != 255].mean() > 0.6


def test_a_class_that_does_not_occur_is_null_in_the_log(main, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("red\ngreen\nblue\nunseen\n")
    main("--data_path", tmp_path / "data", "--epochs", 1, "--output_dir", tmp_path / "run")
    text = (tmp_path / "run" / "log.txt").read_text()
    (record,) = lines(tmp_path / "run" / "log.txt")
    assert "NaN" not in text and len(record["test_iou"]) == 4
    assert (record["test_iou"][3] is None) == (record["test_classes"] == 3)


def test_a_value_that_only_a_test_mask_holds_is_named(main, data, tmp_path, monkeypatch):
    for sample in ("utils.mask_folders.ids.SAMPLE", "utils.sources.segmentation.SAMPLE"):
        monkeypatch.setattr(sample, 3)  # masks that are looked at before training
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").unlink()
    for kind in ("images", "masks"):
        shutil.copytree(data / kind / "val", tmp_path / "data" / kind / "test")
    path = tmp_path / "data" / "masks" / "test" / "1.png"  # of 0 to 6; 0, 3 and 6 are looked at
    mask = np.array(Image.open(path))
    mask[:3] = 77
    Image.fromarray(mask).save(path)
    out = main("--data_path", tmp_path / "data", "--epochs", 1, "--output_dir", tmp_path / "run")
    assert out.index("warning: masks hold 77, which none of those looked at") > out.index("test, by best/: mIoU")


@pytest.mark.parametrize("update", [1, 3, 5])
def test_resume_at_any_update_ends_with_the_same_bits(finished, data, tmp_path, main, update):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("best", "best_ema", "last"):
        shutil.rmtree(folder / name)
    (folder / "finished.json").unlink()
    for path in states(folder / "checkpoints"):
        if path.name > f"update_{update:08d}":
            shutil.rmtree(path)
    out = main(*EVERYTHING, "--data_path", data, "--save_ckpt_num", 100, "--output_dir", folder)
    assert f"after {update} updates" in out
    assert lines(folder / "updates.txt") == lines(finished / "updates.txt")
    assert lines(folder / "log.txt") == lines(finished / "log.txt")
    last, expected = (states(path / "checkpoints")[-1] for path in (folder, finished))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.pt"):
        assert (last / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path):
    losses = []
    for name, processes, batch in (("one", 1, 4), ("two", 2, 2)):
        done = train("--data_path", data, "--total_batch_size", 4, "--batch_size", batch, "--model", "fpn", "--dropout", 0,
                     "--backbone_kwargs", "depths=(1,1,1,1)", "dims=(8,8,16,16)", "--aux", "false", "--opt", "sgd",
                     "--lr", 0.001, "--epochs", 1, "--output_dir", tmp_path / name, processes=processes)  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses.append([record["loss"] for record in lines(tmp_path / name / "updates.txt")])
    assert len(losses[0]) == 6 and losses[0][0] == pytest.approx(losses[1][0], rel=0.2)


@pytest.mark.parametrize(
    "words",
    [
        "--model encnet --se_loss true --head_kwargs lateral=True codewords=4 --output_stride 8 --transforms mmseg",
        "--model psp --max_updates 5 --sched poly_mmseg --warmup_steps 2 --weight_decay 0.01",
        "--model deeplab --output_stride 8 --ohem 0.7 100 --layer_decay 0.9 --weight_decay_filter norm_bias",
        "--model fcn --head_kwargs with_global=True --backbone resnet18 --backbone_kwargs layers=(1,1,1,1) channels=(8,8,16,16)"
        " --opt sgd",
        "--model fpn --loss ce+dice --class_weights auto --layer_decay 0.9 --layer_decay_type layer_wise "
        "--weight_decay_filter norm_bias --channels_last true",
        "--model upernet --loss lovasz --disable_eval true --use_amp true --model_ema true --model_ema_warmup true --epochs 1",
    ],
)
def test_options_train(main, data, tmp_path, words):
    if "--disable_eval" in words:  # which needs no validation images
        for kind in ("images", "masks"):
            shutil.copytree(data / kind / "train", tmp_path / "data" / kind / "train")
        data = tmp_path / "data"
    out = main("--data_path", data, "--output_dir", tmp_path / "run", *words.split())
    updates = lines(tmp_path / "run" / "updates.txt")
    assert all(np.isfinite(record["loss"]) for record in updates)
    if "--max_updates" in words:
        assert len(updates) == 5 and updates[0]["lr"] == pytest.approx(0.003e-6, rel=1e-6)
    assert ("best test_miou" in out) != ("--disable_eval" in words)


def test_head_lr_scale_and_layer_decay_reach_their_groups(main, data, tmp_path):
    out = main("--data_path", data, "--head_lr_scale", 10, "--layer_decay", 0.5, "--weight_decay_filter", "norm_bias",
               "--dry_run", "json")  # fmt: skip
    run = json.loads(out)
    scale = {group["first"]: group["lr_scale"] for group in run["groups"]}
    assert scale["decode_head.conv5.0.weight"] == 10 if "decode_head.conv5.0.weight" in scale else True
    backbone = [group["lr_scale"] for group in run["groups"] if group["first"].startswith("backbone.")]
    heads = [group["lr_scale"] for group in run["groups"] if not group["first"].startswith("backbone.")]
    assert max(backbone) <= 0.5**1 and set(heads) == {10.0}
    assert run["lr"]["peak"] == 0.003 and run["total_batch_size"] == 4 and run["updates"] == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data_path nowhere", "nowhere"),
        ("--data_path nowhere --data_set ade20k", "ADEChallengeData2016"),
        ("--backbone convnextv3", "convnextv2"),
        ("--nb_classes 11 --crop_size 32", "--nb_classes 11: the data has"),
        ("--resume nothing --eval", "no such file"),
        ("--predict nowhere --output_dir out --finetune nothing", "nothing: found no config.json of a segmentation network"),
        ("--total_batch_size 7", "--total_batch_size 7 cannot be made of"),
    ],
)
def test_wrong_input_is_one_line(main, data, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = words.split()
    if "--data_path" not in words:
        words += ["--data_path", str(data)]
    with pytest.raises(InputError) as error:
        main(*words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


def test_wrong_flags_exit_with_2():
    for words, message in (
        (["--se_loss", "--model", "fcn"], "--se_loss is for --model encnet; found fcn"),
        (["--modle", "fcn"], "unknown flag --modle, did you mean --model?"),
        (["--data_set", "ade20k"], "--data_set needs --data_path too"),
    ):
        done = run(ROOT / "train_segmentation.py", *words)
        assert done.returncode == 2 and done.stderr == f"train_segmentation.py: error: {message}\n"


@pytest.mark.slow
def test_the_plain_command_reaches_65_per_cent(tmp_path):
    """`accelerate launch train_segmentation.py`: the built-in scenes."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    launch = [str(pathlib.Path(sys.executable).parent / "accelerate"), "launch", str(ROOT / "train_segmentation.py")]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "output" / "train_segmentation").iterdir()
    records = lines(folder / "log.txt")
    best = max(record["test_miou"] for record in records)
    print(f"plain segmentation command: mIoU {best:.2f} %")
    for record in records:  # of few images, each score is told with how sure it is
        (low, high), score = record["test_miou_interval"], record["test_miou"]
        assert low < score < high and f"mIoU {score:.2f} % ± {(high - low) / 2:.0f} (best" in done.stdout
    assert best >= 65.0 and torch.get_num_threads() > 0
