"""PyTorch-Encoding's transforms against hand-made expectations; random numbers by seed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from utils.augment.encoding import OPERATIONS, CenterCrop, Lighting, RandAugment, RandomCrop
from utils.data.sampling import seed_everything

NEAREST = Image.Resampling.NEAREST
RATIO = (3 / 4, 4 / 3)


def ramp(width=60, height=40):
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.arange(width) * 4, np.arange(height) * 5)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8))


def test_center_crop_takes_its_share_of_the_short_side():
    out = CenterCrop(8, 0.5, NEAREST)(ramp())  # 20 x 20 pixels from (20, 10)
    assert out.size == (8, 8) and out.getpixel((0, 0)) == (4 * 21, 5 * 11, 128) and out.getpixel((7, 7))[:2] == (4 * 38, 5 * 28)


def test_random_crop_draws_boxes_of_the_asked_areas_and_ratios():
    random.seed(0)
    crop = RandomCrop(8, (0.1, 1.0), RATIO, NEAREST)
    boxes = [crop.box(500, 375) for _ in range(3000)]
    sizes = np.array([(box[2] - box[0], box[3] - box[1]) for box in boxes if box])
    area, ratio = sizes.prod(1) / (500 * 375), sizes[:, 0] / sizes[:, 1]
    assert len(sizes) == 3000 and 0.1 <= area.min() < 0.12 and 0.9 < area.max() <= 1
    assert 0.74 <= ratio.min() < 0.77 and 1.3 < ratio.max() <= 1.34
    # the height, not the area, is uniform: at ratio 1 from 137 to 375 pixels, so that half of the areas are below 0.35
    near_one = area[np.abs(ratio - 1) < 0.05]
    assert np.median(near_one) == pytest.approx(((137 + 375) / 2) ** 2 / (500 * 375), rel=0.08)
    left = np.array([box[0] for box in boxes if box])
    assert left.min() == 0 and all(box[2] <= 500 and box[3] <= 375 for box in boxes if box)
    whole = RandomCrop(8, (1.0, 1.0), (1.0, 1.0), NEAREST)
    assert whole.box(40, 40) is None  # the whole image: centre crop
    assert whole.box(400, 40) is None  # cannot be had in ten draws


def test_lighting_moves_along_the_principal_components():
    torch.manual_seed(0)
    image = torch.rand(3, 4, 5)
    shifts = torch.stack([Lighting()(image)[:, 0, 0] - image[:, 0, 0] for _ in range(4000)]).double()
    vectors, values = Lighting.VECTORS.double(), Lighting.VALUES.double()
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(shifts.T @ shifts / len(shifts), expected, rtol=0.1, atol=2e-6)


def test_operations_have_the_published_strengths():
    image = ramp()
    at = {name: (high - low) * 12 / 30 + low for name, (_, low, high) in OPERATIONS.items()}
    assert at["Rotate"] == 12 and at["SolarizeAdd"] == 44 and at["TranslateX"] == 40 and at["Cutout"] == 16
    assert at["Color"] == pytest.approx(0.82) and at["ShearX"] == pytest.approx(0.12) and at["Posterize"] == pytest.approx(1.6)

    def pixels(name):
        return np.asarray(OPERATIONS[name][0](image, at[name])).astype(int)

    before = np.asarray(image).astype(int)
    assert (pixels("Invert") == 255 - before).all()
    assert set(np.unique(pixels("Posterize"))) == {0, 128}  # one bit is left
    assert (pixels("Solarize") == np.where(before < 102.4, before, 255 - before)).all()
    brighter = np.minimum(before + 44, 255)
    assert (pixels("SolarizeAdd") == np.where(brighter < 128, brighter, 255 - brighter)).all()
    assert np.abs(pixels("Brightness") - before * 0.82).max() <= 1
    random.seed(1)
    cut = (pixels("Cutout") == (125, 123, 114)).all(-1)
    assert 0 < cut.sum() <= 17 * 17
    random.seed(0)
    moved = {tuple(pixels("TranslateX")[20, [5, 55], 0]) for _ in range(20)}
    assert moved == {(180, 0), (0, 60)}  # 40 pixels to either side, black behind


def test_rand_augment_applies_half_of_the_operations():
    seed_everything(0)
    counted = [0]

    def count(image, value):
        counted[0] += 1
        return image

    original = dict(OPERATIONS)
    try:
        OPERATIONS.clear()
        OPERATIONS["count"] = (count, 0, 1)
        augment = RandAugment.from_string("rand-n2-m12")
        for _ in range(2000):
            augment(None)
    finally:
        OPERATIONS.update(original)
        OPERATIONS.pop("count")
    assert counted[0] / 4000 == pytest.approx(0.5, abs=0.03)
    for text in ("rand-m9-mstd0.5-inc1", "rand-n2-m31", "v0"):
        with pytest.raises(ValueError, match="expected none or rand-nN-mM"):
            RandAugment.from_string(text)
