"""Masks in the colours of their classes: ids, mixing and the legend."""

import numpy as np
from PIL import Image

from utils.pictures.mask_colours import legend, overlay, palette_image

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
    pixels = np.asarray(legend(names, palette))
    assert all((pixels == colour).all(-1).sum() > 200 for colour in palette)  # a box of each colour
    assert (pixels[:, -3:] == 255).all() and (pixels[-2:] == 255).all()  # nothing is cut off at the border
