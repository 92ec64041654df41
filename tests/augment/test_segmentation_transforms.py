"""Joint transforms: image and mask stay together, padding is ignored, the draws have the published range."""

import colorsys
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from utils.augment.segmentation import (
    _is_mixed,
    distort_colours,
    encoding_transform,
    eval_transform,
    mmseg_transform,
    scale_saturation,
)
from utils.data.sampling import seed_everything
from utils.sources.segmentation import IGNORE

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def blocks(width=60, height=40, seed=0):
    """An image whose grey is 40 times the class of the mask plus 20, in blocks of 10 pixels: 0..4."""
    classes = np.random.default_rng(seed).integers(0, 5, (height // 10, width // 10)).repeat(10, 0).repeat(10, 1)
    return Image.fromarray((classes * 40 + 20).astype(np.uint8)).convert("RGB"), classes.astype(np.int64)


def coordinates(width=50, height=30):
    """Red is the column, green the row; the mask is row * width + column."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)), (y * width + x).astype(np.int64)


SETS = {
    "encoding": lambda **more: encoding_transform(60, 48, **PLAIN, **more),
    "encoding, tall": lambda **more: encoding_transform(60, (64, 32), **PLAIN, **more),
    "mmseg": lambda **more: mmseg_transform(48, scale=(120, 40), distort=False, **PLAIN, **more),
    "mmseg, wide": lambda **more: mmseg_transform((24, 80), scale=(120, 40), distort=False, **PLAIN, **more),
}


@pytest.mark.parametrize("name", SETS)
def test_image_and_mask_move_together(name):
    transform = SETS[name]()
    seed_everything(0)
    wrong, ignored = [], []
    for seed in range(40):
        image, mask = transform(*blocks(60, 40, seed) if seed % 2 else blocks(30, 70, seed))
        height, width = {"encoding": (48, 48), "mmseg": (48, 48), "encoding, tall": (64, 32)}.get(name, (24, 80))
        assert image.shape == (3, height, width) and mask.shape == (height, width)
        assert image.dtype == torch.float32 and mask.dtype == torch.int64
        shown = image[0] * 255
        padding = mask == IGNORE
        assert (shown[padding] == 0).all()  # black, as 0 is with this mean
        expected = mask[~padding] * 40 + 20
        # Between blocks the image is interpolated; half a pixel of displacement would be wrong along every edge, by 20.
        wrong.append(((shown[~padding] - expected).abs() > 21).float().mean())
        ignored.append(padding.float().mean())
        assert set(mask[~padding].tolist()) <= set(range(5))
    assert torch.stack(wrong).mean() < 0.07 and torch.stack(wrong).min() == 0
    assert 0 < torch.stack(ignored).mean() < 0.8 and torch.stack(ignored).min() == 0


@pytest.mark.parametrize("ratio", [0.6, 1.7])
@pytest.mark.parametrize("name", SETS)
def test_nothing_is_displaced_by_resizing(name, ratio):
    """The mask names the pixel it is from, the image shows it: between the two no more than rounding, and no drift."""
    transform = SETS[name](ratio_range=(ratio, ratio), hflip=0.0)
    seed_everything(1)
    image, mask = transform(*coordinates(60, 40))
    column, row = mask % 60, mask // 60
    inner = (mask != IGNORE) & (column > 0) & (column < 59) & (row > 0) & (row < 39)
    for shown, expected in ((image[0] * 255, column), (image[1] * 255, row)):
        assert (shown - expected)[inner].abs().max() < 1.01 and abs((shown - expected)[inner].mean()) < 0.1


def test_eval_keeps_the_size():
    image, mask = coordinates(50, 30)
    mask[3, 4] = IGNORE
    pixels, kept = eval_transform(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))(image, mask)
    assert pixels.shape == (3, 30, 50) and pixels.dtype == torch.float32
    assert kept.dtype == torch.int64 and (kept.numpy() == mask).all()
    assert pixels[:, 20, 49].tolist() == pytest.approx([(49 / 255 - 0.5) / 0.5, 20 / 255 - 0.25, 0], abs=1e-6)


def sizes_seen(transform, image, mask, draws=400):
    """(height, width) of the resized image in each draw, where the crop is larger than it can get."""
    seen = []
    for _ in range(draws):
        inside = transform(image, mask)[1] != IGNORE
        seen.append((int(inside.any(1).sum()), int(inside.any(0).sum())))
    return np.array(seen)


def test_encoding_draws_the_long_side():
    random.seed(0)
    wide, tall = blocks(60, 40), blocks(30, 70)
    for (image, mask), long_axis in ((wide, 1), (tall, 0)):
        seen = sizes_seen(encoding_transform(21, 64, **PLAIN), image, mask)
        long_side, short_side = seen[:, long_axis], seen[:, 1 - long_axis]
        assert (long_side.min(), long_side.max()) == (10, 42)  # int(10.5) .. 42, both ends included
        assert long_side.mean() == pytest.approx(26, abs=1.5)
        aspect = min(image.size) / max(image.size)
        assert (short_side == (long_side * aspect + 0.5).astype(int)).all()
    assert set(sizes_seen(encoding_transform(None, 64, ratio_range=(0.5, 0.5)), *wide, draws=3)[:, 1]) == {30}


def test_mmseg_draws_the_scale():
    random.seed(0)
    wide, tall, very_wide = blocks(60, 40), blocks(40, 60), blocks(200, 10)
    transform = mmseg_transform(400, scale=(200, 20), **PLAIN)
    for (image, mask), short_axis in ((wide, 0), (tall, 1)):
        short_side = sizes_seen(transform, image, mask, draws=200)[:, short_axis]
        assert (short_side.min(), short_side.max()) == (10, 39)  # int(20 x 0.5..2), the upper end has no width
        assert short_side.mean() == pytest.approx(24.5, abs=2)
    long_side = sizes_seen(transform, *very_wide, draws=100)[:, 1]
    assert long_side.max() <= 400 and long_side.min() >= 100  # here the long side of `scale` is what binds


@pytest.mark.parametrize("make", [SETS["encoding"], SETS["mmseg"]])
def test_mirror_has_the_asked_probability(make):
    image, mask = coordinates(60, 40)
    for probability in (0.0, 0.5, 1.0):
        random.seed(0)
        transform = make(hflip=probability, ratio_range=(1.0, 1.0))
        mirrored = []
        for _ in range(300):
            row = transform(image, mask)[1][0]
            row = row[row != IGNORE]
            mirrored.append(bool(row[0] > row[-1]))
        assert np.mean(mirrored) == pytest.approx(probability, abs=0.08 if probability == 0.5 else 0)


def test_encoding_crops_everywhere_and_pads_right_and_below():
    random.seed(0)
    image, mask = coordinates(60, 40)
    corners = [encoding_transform(60, 32, ratio_range=(1.0, 1.0), hflip=0.0)(image, mask)[1][0, 0].item() for _ in range(600)]
    tops, lefts = np.divmod(corners, 60)
    assert set(tops) == set(range(9)) and set(lefts) == set(range(29))  # up to the last one that fits
    padded, kept = encoding_transform(60, 64, ratio_range=(1.0, 1.0), hflip=0.0, mean=(0.5,) * 3, std=(0.25,) * 3)(image, mask)
    assert (kept[:40, :60].numpy() == mask).all() and (kept[40:] == IGNORE).all() and (kept[:, 60:] == IGNORE).all()
    assert (padded[:, 40:] == -2).all()  # black: (0 - mean) / std
    padded, kept = mmseg_transform(64, scale=(60, 40), ratio_range=(1.0, 1.0), hflip=0.0, mean=(0.5,) * 3)(image, mask)
    assert (kept[:40, :60].numpy() == mask).all() and (kept[40:] == IGNORE).all() and (kept[:, 60:] == IGNORE).all()
    assert (padded[:, 40:] == 0).all()  # the mean colour


def test_encoding_validation_crop_is_the_centre():
    image, mask = coordinates(60, 40)
    pixels, kept = encoding_transform(60, 20, train=False, **PLAIN)(image, mask)  # to 30 x 20, then 20 x 20 from (5, 0)
    assert pixels.shape == (3, 20, 20) and kept.shape == (20, 20)
    column = kept[10] % 60
    assert column[0] in (10, 11) and column[-1] in (48, 49)
    assert (kept // 60)[[0, -1], 0].tolist() in ([0, 38], [1, 39], [1, 38], [0, 39])
    for width, height in ((49, 49), (97, 49), (31, 61)):  # short sides that a factor in floating point would miss
        image, mask = coordinates(width, height)
        assert encoding_transform(60, 48, train=False)(image, mask)[1].shape == (48, 48)


def test_cat_max_ratio_is_kept_where_it_can_be():
    random.seed(0)
    mask = np.zeros((60, 200), np.int64)
    mask[:, 150:] = 1
    mask[20:25, 150:] = IGNORE
    image = Image.fromarray(np.zeros((60, 200, 3), np.uint8))

    def shares(cat_max_ratio):
        transform = mmseg_transform(
            60, scale=(200, 60), ratio_range=(1.0, 1.0), cat_max_ratio=cat_max_ratio, distort=False, hflip=0.0
        )
        kept = [transform(image, mask)[1] for _ in range(300)]
        return np.array([torch.bincount(part[part >= 0], minlength=2).max() / (part >= 0).sum() for part in kept])

    free, limited = shares(1.0), shares(0.75)
    # Left corners 0..140; at 105..135 no class has three quarters: 31 of 141, so that 0.78 ^ 11 = 0.07 find none.
    assert (free < 0.75).mean() == pytest.approx(0.22, abs=0.08)
    assert (limited < 0.75).mean() == pytest.approx(0.93, abs=0.04)


@pytest.mark.parametrize(
    ("mask", "mixed"),
    [
        ([0, 0, 0, 1], False),  # three quarters are not less than three quarters
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 1, -1, -1, -1, 1], True),  # what is ignored does not count
        ([2, 2, 2], False),
        ([-1, -1], False),
        ([0, 1, 2, 2], True),
    ],
)
def test_mixed_crops(mask, mixed):
    assert bool(_is_mixed(torch.tensor(mask), 0.75)) is mixed


@pytest.mark.parametrize("transform", [encoding_transform(60, 48), mmseg_transform(48, scale=(120, 40))])
def test_repeatable_by_seed_and_can_be_sent_to_workers(transform):
    transform = pickle.loads(pickle.dumps(transform))
    results = []
    for seed in (0, 0, 1):
        seed_everything(seed)
        results.append([transform(*blocks()) for _ in range(5)])
    for (image, mask), (same_image, same_mask) in zip(results[0], results[1], strict=True):
        assert torch.equal(image, same_image) and torch.equal(mask, same_mask)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(results[0], results[2], strict=True))


def test_single_pixels_and_extreme_shapes_survive():
    random.seed(0)
    for width, height in ((1, 1), (1, 300), (300, 2)):
        image, mask = Image.new("RGB", (width, height)), np.zeros((height, width), np.int64)
        for transform in (encoding_transform(20, 16), mmseg_transform(16, scale=(40, 20))):
            pixels, kept = transform(image, mask)
            assert pixels.shape == (3, 16, 16) and (kept == 0).any()


# --- colours


def test_saturation_scales_s_of_hsv():
    colours = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    colours[:, 0], colours[:, 1], colours[:, 2] = 0, 0.7, torch.tensor([1.0, 0, 0])
    for factor in (0.5, 1.0, 1.5):
        scaled = scale_saturation(colours.reshape(3, 5, 10), factor).reshape(3, 50)
        for before, after in zip(colours.T.tolist(), scaled.T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb(h, min(1, s * factor), v), abs=1e-5)


def test_distortion_has_the_published_ranges():
    random.seed(0)
    grey = torch.full((3, 1, 1), 100 / 255)
    shown = np.array([distort_colours(grey)[0].item() * 255 for _ in range(4000)])
    # brightness -32..32 half of the time, then contrast 0.5..1.5 half of the time; grey has neither hue nor saturation
    assert np.isclose(shown, 100, atol=1e-3).mean() == pytest.approx(0.25, abs=0.03)
    assert 34 <= shown.min() < 40 and 190 < shown.max() <= 198
    red = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1)
    hues = []
    for _ in range(2000):
        h, _, _ = colorsys.rgb_to_hsv(
            *distort_colours(red, brightness=0, contrast=(1, 1), saturation=(1, 1)).flatten().tolist()
        )
        hues.append((h + 0.5) % 1 - 0.5)
    turned = np.array(hues) * 360
    assert (np.abs(turned) < 1e-3).mean() == pytest.approx(0.5, abs=0.04)
    assert -36.01 <= turned.min() < -34 and 34 < turned.max() <= 36.01
    white = distort_colours(torch.ones(3, 2, 2), brightness=0.5, contrast=(2, 2))
    assert white.max() <= 1


def test_contrast_comes_before_or_after():
    """Contrast that clips, then a change of saturation, differs from the other order; both occur."""
    random.seed(0)
    colour = torch.tensor([0.9, 0.6, 0.3]).view(3, 1, 1)
    seen = {
        tuple(round(v, 3) for v in distort_colours(colour, 0, (1.5, 1.5), (0.5, 0.5), 0).flatten().tolist()) for _ in range(200)
    }
    # untouched; contrast (1, 0.9, 0.45); saturation (0.9, 0.75, 0.6); first contrast; first saturation
    assert seen == {(0.9, 0.6, 0.3), (1.0, 0.9, 0.45), (0.9, 0.75, 0.6), (1.0, 0.95, 0.725), (1.0, 1.0, 0.9)}
