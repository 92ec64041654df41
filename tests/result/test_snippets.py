"""The lines of Python in report.html, the model card, README and docs/RUNS.md give what --predict gives."""

import csv
import json
import pathlib

import numpy as np
import pytest
from made_result import shaken
from PIL import Image
from test_predict_recognition import model_folder
from tiny_networks import one_thread  # noqa: F401, a fixture

from segmentation_networks.network import build_network
from utils.cli.segmentation_flags import Augmentation, View
from utils.model.segmentation_weights import network_config
from utils.report.snippets import recognition_code, segmentation_code
from utils.result.predict_recognition import predict
from utils.result.predict_segmentation import open_segmenter, predict_folder
from utils.run.checkpoint import export_weights

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """image.jpg in the current folder: taken with the camera held upright, which stands in its EXIF data alone."""
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((40, 90, 3), np.uint8)
    pixels[:, :30, 0] = pixels[10:, 60:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save("image.jpg", exif=exif, quality=95)
    return tmp_path / "image.jpg"


def printed_by(code):
    printed = []
    exec(code, {"print": lambda *words: printed.extend(words)})
    return printed


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_of_recognition(tmp_path, photo, crop_mode):
    folder = model_folder(tmp_path / "best", crop_mode)
    predict(folder, photo, tmp_path / "out.csv", device="cpu", say=lambda line: None)
    row = next(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    label, probability = printed_by(recognition_code(f"local-dir:{folder}"))
    assert label == row["label_1"] and probability == pytest.approx(float(row["probability_1"]), abs=1e-6)
    as_it_lies = printed_by(recognition_code(f"local-dir:{folder}").replace("ImageOps.exif_transpose", ""))
    assert as_it_lies[1] != pytest.approx(probability, abs=1e-3)


def test_a_run_that_was_scored_with_the_mirror_image_answers_with_it(tmp_path, photo):
    folder = model_folder(tmp_path / "best", "center")
    config = json.loads((folder / "config.json").read_text()) | {"tta_flip": True}
    (folder / "config.json").write_text(json.dumps(config))
    predict(folder, photo, tmp_path / "out.csv", device="cpu", say=lambda line: None)
    row = next(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    label, probability = printed_by(recognition_code(f"local-dir:{folder}", config))
    assert label == row["label_1"] and probability == pytest.approx(float(row["probability_1"]), abs=1e-6)
    alone = printed_by(recognition_code(f"local-dir:{folder}"))
    assert alone[1] != pytest.approx(probability, abs=1e-5)


def test_of_segmentation(tmp_path, photo):
    options = {"backbone": "convnextv2_atto", "head": "fcn", "classes": 3, "head_kwargs": {"channels": 8}}
    options["backbone_kwargs"] = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    palette = np.array([[9, 9, 9], [255, 0, 0], [0, 0, 255]], np.uint8)
    settings = Augmentation(crop_size=32, base_size=64)
    norm = {"mean": [0.5] * 3, "std": [0.2] * 3}
    config = network_config(options, ["sky", "cat", "dog"], palette, settings, View(), image_size=[40, 30], **norm)
    export_weights(tmp_path / "best", shaken(build_network(**options)).state_dict(), config)
    segment, classes = open_segmenter(tmp_path / "best")
    predict_folder(segment, photo, tmp_path / "out", classes=classes, palette=palette, say=lambda line: None)
    mask = np.asarray(Image.open(tmp_path / "out/masks/image.png"))
    assert mask.shape == (90, 40) and segment.is_large(*mask.shape)
    scope = {"print": lambda *words: None}
    exec(segmentation_code(str(tmp_path / "best")), scope)
    assert (scope["mask"] == mask).all()
    assert printed_by(segmentation_code(str(tmp_path / "best"))) == [[classes[number] for number in np.unique(mask)]]


def test_the_pages_have_these_lines():
    assert recognition_code("local-dir:output/train_recognition/DATE-TIME/best") in (ROOT / "README.md").read_text()
    page = (ROOT / "docs/RUNS.md").read_text()
    assert recognition_code("local-dir:RUN/best") in page and segmentation_code("RUN/best") in page
