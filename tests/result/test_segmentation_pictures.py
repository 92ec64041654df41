"""Masks, overlays and legend: sizes, ids and colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from utils.cli.errors import InputError
from utils.result.predict_segmentation import legend, overlay, palette_image, picture_files, predict_folder

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_a_mask_keeps_its_ids_and_shows_its_colours(tmp_path):
    mask = np.array([[0, 1, 2], [2, -1, 1]])
    palette_image(mask, PALETTE).save(tmp_path / "m.png")
    read = Image.open(tmp_path / "m.png")
    assert read.mode == "P" and (np.asarray(read) == [[0, 1, 2], [2, 255, 1]]).all()
    assert (np.asarray(read.convert("RGB"))[0] == PALETTE).all()


def test_an_overlay_mixes_and_leaves_what_has_no_class():
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    pixels = np.asarray(overlay(image, np.array([[1, -1]]), PALETTE))
    assert (pixels[0, 1] == 100).all() and pixels[0, 0].tolist() == [185, 45, 45]  # 0.45 * 100 + 0.55 * (255, 0, 0)


def test_a_legend_has_room_for_every_name():
    names = [f"a class with a long name {i}" for i in range(70)]
    palette = np.random.default_rng(0).integers(0, 255, (70, 3)).astype(np.uint8)
    picture = legend(names, palette)
    pixels = np.asarray(picture)
    assert all((pixels == colour).all(-1).sum() > 200 for colour in palette)  # a box of each colour
    assert (pixels[:, -3:] == 255).all() and (pixels[-2:] == 255).all()  # nothing is cut off at the border


def test_a_folder_of_any_sizes_is_predicted_in_the_sizes_of_the_originals(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"a.png": (40, 30), "b.jpg": (17, 53), "deep/a.png": (8, 8)}
    for name, size in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(tmp_path / "in" / name)
    norm = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def model(images, only_logits):  # the class is the strongest channel
        return {"logits": images}

    said = []
    for process in (0, 1):
        predict_folder(
            model, tmp_path / "in", tmp_path / "out", lambda logits_of, x: logits_of(x), ["r", "g", "b"], PALETTE, "cpu", norm,
            (process, 2), said.append,
        )  # fmt: skip
    for name, size in sizes.items():
        mask = Image.open((tmp_path / "out/masks" / name).with_suffix(".png"))
        assert mask.size == size == Image.open((tmp_path / "out/overlays" / name).with_suffix(".png")).size
        original = np.asarray(Image.open(tmp_path / "in" / name).convert("RGB"))
        assert (np.asarray(mask) == original.argmax(-1)).all()
    assert (tmp_path / "out/legend.png").exists() and "3 images" in said[0]
    assert torch.is_grad_enabled()
    for bad, message in ((tmp_path / "none", "no such folder"), (tmp_path / "out" / "empty", "no images in it")):
        if "images" in message:
            bad.mkdir()
        with pytest.raises(InputError, match=message):
            picture_files(bad)
