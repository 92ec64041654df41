"""train_segmentation.py --model eomt as users run it: learning, processes, resume, prediction, wrong words."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import forked, lines
from PIL import Image

from utils.run.checkpoint import states

TINY = (
    "--model eomt --backbone vit_small_patch16_dinov3 --backbone_kwargs depth=3 embed_dim=32 num_heads=2 patch_size=8 "
    "--head_kwargs queries=8 blocks=2 --transforms eomt --crop_size 32 --base_size 40 --batch_size 4 --warmup_steps 1 "
    "--backbone_warmup_steps 2 --lr 0.003 --num_workers 0 --report_to none"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """images/ and masks/: squares of two colours on a third, some pixels without a label, sizes of all kinds."""
    root, rng = tmp_path_factory.mktemp("eomt") / "data", np.random.default_rng(0)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros(rng.integers(30, 60, 2), np.uint8)
            for label in (1, 2):
                y, x = rng.integers(0, 16, 2)
                mask[y : y + 14, x : x + 14] = label
            Image.fromarray(colours[mask].astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            mask[0, :5] = 255
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def train(*words, **kwargs):
    done = forked("train_segmentation", *TINY, *words, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted run, of eight updates, with everything on."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    everything = "--max_updates 8 --model_ema true --drop_path 0.2 --grad_checkpointing true --channels_last true".split()
    words = [*everything, "--model_ema_eval", "false", "--eval_freq", 4, "--eval_mode", "slide", "--data_path", data,
             "--save_ckpt_freq", 9, "--save_ckpt_updates", 5]  # fmt: skip
    train(*words, "--output_dir", folder)
    return folder, words


def test_the_loss_falls_and_rates_have_two_stages(finished):
    folder, _ = finished
    losses = [record["loss"] for record in lines(folder / "updates.txt")]
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    config = json.loads((folder / "best" / "config.json").read_text())
    assert config["network"]["head_kwargs"] == {"queries": 8, "blocks": 2} and config["transforms"] == "eomt"


def test_a_resumed_run_ends_with_the_same_bits(finished, tmp_path):
    folder, words = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "finished.json").unlink()
    for path in states(again / "checkpoints"):
        if path.name > "update_00000005":
            shutil.rmtree(path)
    assert "after 5 updates" in train(*words, "--output_dir", again)
    assert lines(again / "updates.txt") == lines(folder / "updates.txt")
    last, expected = (states(path / "checkpoints")[-1] for path in (again, folder))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.pt"):
        assert (last / name).read_bytes() == (expected / name).read_bytes()


def test_prediction_from_the_saved_folder_is_what_the_evaluation_scored(finished, data, tmp_path):
    folder, _ = finished
    weights = ("--finetune", folder / "best", "--eval_mode", "whole")  # windows would be blended in a prediction
    scored = forked("train_segmentation", "--eval", "true", *weights, "--data_path", data)
    predicted = forked("train_segmentation", "--predict", data / "images" / "val", *weights, "--output_dir", tmp_path / "out")
    assert scored.returncode == predicted.returncode == 0, scored.stderr + predicted.stderr
    right = total = 0
    for path in sorted((data / "masks" / "val").iterdir()):
        truth, found = np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "out" / "masks" / path.name))
        right, total = right + (truth == found)[truth != 255].sum(), total + (truth != 255).sum()
    accuracy = float(re.search(r"pixel accuracy ([\d.]+) %", scored.stdout)[1])
    assert 100 * right / total == pytest.approx(accuracy, abs=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path):
    """Attention stays masked and all pixels are compared, so that nothing is drawn but the batch."""
    losses, words = [], ("--head_kwargs", "queries=8", "blocks=2", "mask_from=(0.98,0.98)", "mask_to=(1,1)", "--max_updates", 4)
    for name, processes in (("one", 1), ("two", 2)):
        train(*words, "--batch_size", 4 // processes, "--data_path", data, "--output_dir", tmp_path / name,
              processes=processes)  # fmt: skip
        losses.append([record["loss"] for record in lines(tmp_path / name / "updates.txt")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("words, message", [
    ("--loss ce", "--loss ce with --model eomt: masks is the loss of eomt, and of no other head; leave it out"),
    ("--loss masks --model fpn", "--loss masks with --model fpn"),
    ("--aux true --data_path DATA", "head eomt works inside the backbone: leave out --aux and --output_stride"),
    ("--backbone resnet18 --backbone_kwargs layers=(1,1,1,1) --data_path DATA", "head eomt reads plain ViTs"),
    ("--dropout 0.1 --data_path DATA", "head eomt takes queries, blocks, mask_from, mask_to; found dropout"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(data, tmp_path, words, message):
    words = words.replace("DATA", str(data)).split()
    done = forked("train_segmentation", *TINY, *words, "--output_dir", tmp_path / "run")
    assert done.returncode and message in done.stderr and len(done.stderr.splitlines()) == 1
