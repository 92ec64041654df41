"""Prediction for segmentation: masks and overlays of any images, in their own sizes."""

import numpy as np
import pytest
from PIL import Image

from utils.cli.errors import InputError
from utils.result.image_files import find_images
from utils.result.predict_segmentation import predict_folder

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_a_folder_of_any_sizes_is_predicted_in_the_sizes_of_the_originals(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"a.png": (40, 30), "b.jpg": (17, 53), "deep/a.png": (8, 8)}
    for name, size in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(tmp_path / "in" / name)
    said = []
    options = {"classes": ["r", "g", "b"], "palette": PALETTE, "mean": (0.0,) * 3, "std": (1.0,) * 3, "device": "cpu"}
    for process in (0, 1):  # the class is the strongest channel
        predict_folder(
            lambda images: images, tmp_path / "in", tmp_path / "out", **options, process=process, processes=2, say=said.append
        )
    for name, size in sizes.items():
        mask = Image.open((tmp_path / "out/masks" / name).with_suffix(".png"))
        assert mask.size == size == Image.open((tmp_path / "out/overlays" / name).with_suffix(".png")).size
        original = np.asarray(Image.open(tmp_path / "in" / name).convert("RGB"))
        assert (np.asarray(mask) == original.argmax(-1)).all()
    assert (tmp_path / "out/legend.png").exists() and "3 images" in said[0]


def test_images_that_are_not_there_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("none", "no such file or folder"),
        ("empty", "no images in it"),
        ("x" * 300, "no such file|too long"),
    ):
        with pytest.raises(InputError, match=message):
            find_images(tmp_path / path)
