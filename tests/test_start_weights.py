"""Weights are used as they were trained, by both scripts: the score of a run is that of its evaluation without a flag."""

import argparse
import contextlib
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, forked, lines, make_folder
from made_result import write_result
from PIL import Image
from safetensors.torch import save_file

from segmentation_networks.network import build_network
from utils.images.read import read_image
from utils.model.segmentation_weights import load_segmentation_weights
from utils.model.weights import load_weights
from utils.run.start import load_start

TINY = {
    "train_recognition": "--model resnet10t --input_size 40 --batch_size 6 --lr 0.003 --warmup_epochs 0 --aa none --reprob 0",
    "train_segmentation": (
        "--model fcn --channels 8 --backbone resnet10t --crop_size 32 --base_size 40 --ratio_range 1 1 --batch_size 4 --lr 0.01"
    ),
}
ALONE = "--num_workers 0 --report_to none".split()
# What changes a score, each away from its default.
VIEW = {
    "train_recognition": "--crop_pct 0.7 --crop_mode border --eval_interpolation nearest --mean 0.2 0.4 0.6 --tta_flip true",
    "train_segmentation": "--transforms encoding --mean inception --eval_mode slide --eval_scales 0.75 1.25 --eval_flip true",
}
NAMES = ("cat", "dog", "owl")


def script(name, *words):
    done = forked(name, *ALONE, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(name, *words):
    done = forked(name, *ALONE, *words)
    assert done.returncode and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert "result:" not in done.stdout
    return done.stderr.strip().splitlines()[-1]


def result(text):
    return re.search(r"result: (.*)", text)[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{script: folder}"""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 6), ("val", 5)):
        make_folder(root / "recognition" / split, NAMES, count, seed=len(split))
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "segmentation" / kind / split).mkdir(parents=True)
        for i in range(8):
            mask = rng.integers(0, 3, (5, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            image = np.stack([mask * 100, 255 - mask * 90, rng.integers(0, 255, mask.shape)], -1).astype(np.uint8)
            Image.fromarray(image).save(root / "segmentation" / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "segmentation" / "masks" / split / f"{i}.png")
    (root / "segmentation" / "classes.txt").write_text("\n".join(NAMES))
    return {f"train_{task}": root / task for task in ("recognition", "segmentation")}


@pytest.fixture(scope="module", params=TINY)
def trained(request, data, tmp_path_factory):
    """(script, its data, a run of two epochs in which all that changes a score is away from its default)."""
    name, folder = request.param, tmp_path_factory.mktemp("runs") / "run"
    words = (*TINY[name].split(), *VIEW[name].split(), "--data_path", data[name], "--epochs", 2, "--output_dir", folder)
    script(name, *words)
    return name, data[name], folder


@pytest.mark.slow
def test_the_score_of_a_run_is_that_of_its_evaluation_without_a_flag(trained):
    name, data, run = trained
    last = lines(run / "log.txt")[-1]
    out = script(name, "--eval", "true", "--finetune", run / "last", "--data_path", data)
    if name == "train_recognition":
        assert f"top-1 {last['test_acc1']:.5f} %" in out and f"loss {last['test_loss']:.6f}" in out
        assert "as the weights were trained: 40 pixels, crop 0.7, mean 0.2 0.4 0.6" in out
        other = ("--input_size", 32)
    else:
        assert f"mIoU {last['test_miou']:.4f} %" in out and f"pixel accuracy {last['test_pixacc']:.4f} %" in out
        other = ("--eval_flip", "false")
    changed = script(name, "--eval", "true", "--finetune", run / "last", "--data_path", data, *other)
    assert re.search(rf"weights: {other[0]} \w+ wins over \w+, as the weights were trained", changed)
    (state, *_) = sorted((run / "checkpoints").iterdir(), reverse=True)
    resumed = script(name, "--eval", "true", "--resume", state, "--data_path", data)
    assert result(resumed) == result(out)


def test_an_evaluation_maps_classes_by_name_and_needs_no_training_images(trained, tmp_path):
    name, data, run = trained
    evaluate = ("--eval", "true", "--finetune", run / "last", "--data_path")
    expected = result(script(name, *evaluate, data))
    move = tmp_path / "val_only"
    if name == "train_recognition":
        (move / "val").mkdir(parents=True)
        for label in NAMES:
            (move / "val" / label).symlink_to(data / "val" / label)
    else:
        for kind in ("images", "masks"):
            (move / kind).mkdir(parents=True)
        (move / "images" / "val").symlink_to(data / "images" / "val")
        (move / "masks" / "val").mkdir()
        for path in (data / "masks" / "val").iterdir():  # the classes in another order
            Image.fromarray(np.array([2, 0, 1], np.uint8)[np.array(Image.open(path))]).save(move / "masks" / "val" / path.name)
        (move / "classes.txt").write_text("dog\nowl\ncat\n")
    out = script(name, *evaluate, move)
    assert result(out) == expected and ("mapped by name" in out) == (name == "train_segmentation")
    if name == "train_recognition":
        assert result(script(name, *evaluate, move / "val")) == expected  # one tree is the images to evaluate
        (move / "val" / "owl").unlink()
        out = script(name, *evaluate, move)
        assert "classes: the data has 2 of the weights' 3 (cat, dog): scored on these" in out and "10 images" in out
        (move / "val" / "dog").rename(move / "val" / "horse")
    else:
        (tmp_path / "flat").mkdir()
        for kind in ("images", "masks"):  # no splits, and no classes.txt: numbers are the weights' classes
            (tmp_path / "flat" / kind).symlink_to(data / kind / "val")
        assert result(script(name, *evaluate, tmp_path / "flat")) == expected
        (move / "classes.txt").write_text("horse\nowl\ncat\n")
    line = refused(name, *evaluate, move)
    assert "1 of" in line and "none of the weights' (horse" in line and "cat, dog, owl" in line


def test_a_classifier_has_the_rows_of_its_classes_by_name(trained, tmp_path):
    name, data, run = trained
    shutil.copytree(data, tmp_path / "data")
    if name == "train_recognition":
        for split in ("train", "val"):
            (tmp_path / "data" / split / "owl").rename(tmp_path / "data" / split / "bear")
    else:
        (tmp_path / "data" / "classes.txt").write_text("bear\ncat\ndog\n")
    words = (*TINY[name].split(), "--finetune", run / "last", "--dry_run", "--data_path")
    assert "classifier: 2 of 3 classes by name, 1 new; trained on cat, dog, owl" in script(name, *words, tmp_path / "data")
    assert "classifier: " not in script(name, *words, data)


@pytest.mark.parametrize("task", ["recognition", "segmentation"])
def test_rows_of_a_classifier_are_put_into_another_order(tmp_path, task):
    if task == "recognition":
        options = {"num_classes": 3, "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
        trained, model = (timm.create_model("resnet10t", **options).eval() for _ in range(2))
        load, logits = load_weights, lambda model, images: model(images)
    else:
        options = {"head": "fcn", "classes": 3, "backbone_kwargs": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}}
        trained, model = (build_network(backbone="resnet10t", **options, input_size=64).eval() for _ in range(2))
        load, logits = load_segmentation_weights, lambda model, images: model(images)["logits"]
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64)
    fresh, found = logits(model, images), logits(trained, images)
    start = argparse.Namespace(classes=["cat", "dog", "owl"])
    args = argparse.Namespace(finetune=str(tmp_path / "model.safetensors"), dry_run=False, eval=False, model_key="model",
                              model_prefix="")  # fmt: skip
    accelerator = argparse.Namespace(local_main_process_first=contextlib.nullcontext)
    lines = load_start(accelerator, model, args, load, start, ["owl", "bear", "cat"])
    assert lines[-1] == "classifier: 2 of 3 classes by name, 1 new; trained on cat, dog, owl"
    mapped = logits(model, images)
    torch.testing.assert_close(mapped[:, [0, 2]], found[:, [2, 0]])
    assert not torch.allclose(mapped[:, 1], found[:, 1]) and not torch.allclose(mapped, fresh)
    load_start(accelerator, model, args, load, start, ["cat", "dog", "owl"])
    torch.testing.assert_close(logits(model, images), found)


def test_a_head_that_was_not_trained_is_not_scored(trained, tmp_path):
    name, data, run = trained
    file = run / "last" / "model.safetensors"
    words = [*TINY[name].split()][: 4 if name == "train_recognition" else 6]
    if name == "train_recognition":
        make_folder(tmp_path / "two" / "val", NAMES[:2], 3)
        line = refused(name, "--eval", "true", "--finetune", file, "--data_path", tmp_path / "two", *words)
    else:
        (tmp_path / "two").mkdir()
        for kind in ("images", "masks"):
            (tmp_path / "two" / kind).symlink_to(data / kind)
        (tmp_path / "two" / "classes.txt").write_text("a\nb\nc\nd\n")
        line = refused(name, "--eval", "true", "--finetune", file, "--data_path", tmp_path / "two", *words)
    assert "a new one would be scored" in line
    line = refused(name, "--eval", "true", "--data_path", data, *words)
    assert "--eval true needs" in line


def test_a_dry_run_of_an_evaluation_says_what_is_scored_and_by_what(trained, tmp_path):
    name, data, run = trained
    kinds = [""] if name == "train_recognition" else ["images", "masks"]
    for kind in kinds:
        (tmp_path / "own" / kind).mkdir(parents=True)
        (tmp_path / "own" / kind / "val").symlink_to(data / kind / "val")
    if len(kinds) > 1:
        (tmp_path / "own" / "classes.txt").write_text("\n".join(NAMES))
    words = ("--eval", "true", "--finetune", run / "last", "--data_path", tmp_path / "own")
    found = json.loads(script(name, *words, "--dry_run", "json"))
    assert found["val_images"] > 0 and found["train_images"] == 0 and "updates" not in found
    text = script(name, *words, "--dry_run")
    assert "dry run: nothing is evaluated" in text and "result" not in text and "as the weights were trained" in text


def test_the_licence_of_the_start_weights_stands_where_people_look(trained, tmp_path):
    name, data, run = trained
    source = tmp_path / "best"
    source.mkdir()
    config = json.loads((run / "last" / "config.json").read_text())
    place = config if name == "train_segmentation" else config["pretrained_cfg"]
    place["license"] = "cc-by-nc-4.0"
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").symlink_to(run / "last" / "model.safetensors")
    words = (*TINY[name].split(), "--data_path", data, "--epochs", 1, "--finetune", source)
    assert "licence cc-by-nc-4.0" in script(name, *words, "--dry_run")
    assert "licence cc-by-nc-4.0" in script(name, *words, "--output_dir", tmp_path / "run")
    assert "licence of the start weights</dt><dd>cc-by-nc-4.0" in (tmp_path / "run" / "report.html").read_text()
    assert "whose license is `cc-by-nc-4.0`" in (tmp_path / "run" / "last" / "README.md").read_text()
    assert json.loads((tmp_path / "run" / "last" / "config.json").read_text())["start_license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_weights_of_timms_are_fed_by_timms_own_transform(data, tmp_path, crop_mode):
    """The loss of an evaluation, against timm's logits: mean 0.5, crop and size of the folder's config.json."""
    write_result(tmp_path / "best", list(NAMES), input_size=48, crop_pct=0.75, crop_mode=crop_mode)
    out = script(
        "train_recognition", "--eval", "--finetune", f"local-dir:{tmp_path / 'best'}", "--data_path", data["train_recognition"]
    )
    model = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    files = sorted((data["train_recognition"] / "val").glob("*/*.png"))
    images = torch.stack([transform(read_image(file)) for file in files])
    labels = torch.tensor([NAMES.index(file.parent.name) for file in files])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(images), labels).item()
    assert float(re.search(r"loss ([\d.]+)", result(out))[1]) == pytest.approx(loss, abs=2e-6)


def test_a_dry_run_of_pretrained_weights_says_it_without_a_download():
    words = "--model vit_base_patch32_clip_256.datacompxl --pretrained true --dry_run json".split()
    run = json.loads(script("train_recognition", *words, "--data_path", "nowhere", "--nb_classes", 1000))
    line = "as the weights were trained: 256 pixels, crop 1.0, mean of CLIP, licence apache-2.0"
    assert run["weights"][-1] == line and run["input_size"] == 256
    assert run["args"]["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    recipe = f"@{ROOT / 'recipes/recognition/convnextv2_atto_ft_in1k.args'}"
    run = json.loads(script("train_recognition", recipe, "--data_path", "nowhere", "--dry_run", "json"))
    assert run["input_size"] == 224 and "does not say how it was trained" in run["weights"][-1]
