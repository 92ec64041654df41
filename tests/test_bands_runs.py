"""Runs on images of five bands, of which only the last tells the classes apart: nothing of it is lost on any way."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from conftest import forked, lines, train
from PIL import Image
from safetensors.torch import load_file
from test_train_segmentation import TINY as TINY_MASKS

from utils.images.read import Reading, read_image
from utils.model.as_trained import as_trained
from utils.report.snippets import recognition_code
from utils.result.export import open_result

BANDS = ("--in_chans", 5, "--show_bands", 4, 1, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for number, name in enumerate(("dry", "wet")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                values = rng.integers(100, 900, (5, 36, 40))
                values[4] += 2000 * number
                np.save(root / split / name / f"{i}.npy", values.astype(np.uint16))
    return root


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    done = train(*BANDS, "--data_path", folder, "--batch_size", 8, "--epochs", 3, "--lr", 4e-3, "--output_dir", run)
    assert done.returncode == 0, done.stderr
    assert "training images: NPY of mode 5 x uint16, 40 x 36 pixels" in done.stdout
    assert "deep greys: 0 is black, 4095 is white (12 bits)" in done.stdout
    return run


def test_what_the_last_band_shows_is_learned_and_goes_with_the_weights(folder, finished, tmp_path):
    best = max(record["test_acc1"] for record in lines(finished / "log.txt"))
    assert best == 100
    config = json.loads((finished / "best" / "config.json").read_text())
    assert (config["in_chans"], config["value_range"], config["show_bands"]) == (5, [0, 4095], [4, 1, 0])
    assert config["pretrained_cfg"]["input_size"] == [5, 32, 32] and len(config["pretrained_cfg"]["mean"]) == 5
    done = train("--data_path", folder, "--eval", "true", "--finetune", finished / "best", "--output_dir", tmp_path / "e")
    assert "result: top-1 100.00" in done.stdout, done.stderr
    assert (tmp_path / "e" / "mistakes.png").is_file()
    done = train("--predict", folder / "val", "--finetune", finished / "best", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and all(row["label_1"] == row["image"].split("/")[0] for row in rows)


def test_timm_opens_the_weights_and_the_page_says_how(folder, finished):
    model = timm.create_model(f"local-dir:{finished / 'best'}", pretrained=True).eval()
    ours, facts = open_result(finished / "best")
    images = torch.rand(2, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), ours(images)) and len(facts["mean"]) == 5
    first = next(name for name, tensor in model.state_dict().items() if tensor.ndim == 4)
    assert torch.equal(model.state_dict()[first], load_file(finished / "best" / "model.safetensors")[first])
    config = json.loads((finished / "best" / "config.json").read_text())
    code = recognition_code(f"local-dir:{finished / 'best'}", config)
    assert "reading=Reading(value_range=(0, 4095), in_chans=5)" in code
    assert code.splitlines()[6] in (finished / "report.html").read_text().replace("&quot;", '"')
    scope = {}
    exec(code.replace("image.tif", str(folder / "val/wet/0.npy")), scope)
    assert model.pretrained_cfg["label_names"][scope["label"]] == "wet"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 0)])
def test_two_processes_and_a_resumed_run_are_the_same_run(folder, finished, tmp_path, processes, workers):
    words = (*BANDS, "--data_path", folder, "--batch_size", 8 // processes, "--lr", 4e-3, "--num_workers", workers)
    done = train(*words, "--epochs", 3, "--output_dir", tmp_path / "run", processes=processes)
    assert done.returncode == 0, done.stderr
    found, expected = ([r["loss"] for r in lines(path / "updates.txt")] for path in (tmp_path / "run", finished))
    assert found == expected if processes == 1 else found == pytest.approx(expected, abs=1e-4)


def test_rgb_weights_are_a_start_and_those_of_other_bands_are_not(folder, finished, tmp_path):
    torch.manual_seed(0)
    tiny = timm.create_model("resnet10t", num_classes=7)
    torch.save(tiny.state_dict(), tmp_path / "rgb.pth")
    words = ("--data_path", folder, "--model", "resnet10t", "--model_kwargs", "block_args={}", "--batch_size", 8, "--epochs", 1,
             "--warmup_epochs", 0)  # fmt: skip
    done = train(*words, *BANDS, "--finetune", tmp_path / "rgb.pth", "--output_dir", tmp_path / "a")
    assert done.returncode == 0 and "conv1.0.weight for 5 channels instead of 3" in done.stdout, done.stderr
    assert as_trained(str(tmp_path / "a" / "best")).evaluation["model_kwargs"][-1] == ("in_chans", 5)
    for words, said in (
        (("--finetune", finished / "best"), "trained on images of 5 bands; expected --in_chans 5, found None"),
        (("--finetune", finished / "best", "--in_chans", 4), "trained on images of 5 bands; expected --in_chans 5, found 4"),
        (("--eval", "true", "--finetune", finished / "best", "--in_chans", 4), "expected --in_chans 5, found 4"),
        ((), r"no images in class folder dry, wet: .*; --in_chans N reads arrays of N bands"),
    ):
        done = train("--data_path", folder, *words, "--output_dir", tmp_path / "b")
        assert done.returncode == 1 and said.split(".*")[-1] in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_segmentation_of_bands(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for i in range(count):
            values, mask = rng.random((72, 64, 4), np.float32), np.zeros((72, 64), np.uint8)
            top, left = rng.integers(0, 32, 2)
            mask[top : top + 32, left : left + 32] = 1
            values[..., 3] += 2 * mask
            np.save(tmp_path / "data/images" / split / f"{i}.npy", values)
            Image.fromarray(mask).save(tmp_path / "data/masks" / split / f"{i}.png")
    words = [*TINY_MASKS, "--data_path", tmp_path / "data", "--in_chans", 4, "--show_bands", 3, "--opt", "adamw", "--lr", 5e-3,
             "--epochs", 10, "--batch_size", 4, "--ratio_range", 1, 1, "--base_size", 72]  # fmt: skip
    done = forked("train_segmentation", *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    best = max(record["test_miou"] for record in lines(tmp_path / "run" / "log.txt"))
    assert best > 80 and (tmp_path / "run" / "predictions.png").is_file()
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["network"]["backbone_kwargs"]["in_chans"] == 4 == config["in_chans"] == len(config["mean"])
    start = ("--finetune", tmp_path / "run" / "best")
    done = forked("train_segmentation", "--data_path", tmp_path / "data", "--eval", "true", *start)
    assert f"mIoU {best:.4f}"[:9] in done.stdout, done.stdout + done.stderr
    done = forked("train_segmentation", "--predict", tmp_path / "data/images/val", *start, "--output_dir", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    masks = [np.array(Image.open(tmp_path / root / "0.png")) for root in ("p/masks", "data/masks/val")]
    assert (masks[0] == masks[1]).mean() > 0.9
    assert read_image(tmp_path / "data/images/val/0.npy", reading=Reading(in_chans=4)).shape == (4, 72, 64)
