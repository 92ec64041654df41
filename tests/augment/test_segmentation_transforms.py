"""Joint transforms: image and mask stay together, padding is ignored, the draws have the published range."""

import colorsys
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from utils.augment import distortion, segmentation
from utils.augment.distortion import Distortion, distort, draw_distortion, scale_saturation, turn_hue
from utils.augment.normalisation import mean_and_std
from utils.augment.segmentation import build_transforms, collate, collate_sizes, of_one_size
from utils.cli.errors import InputError
from utils.cli.segmentation_flags import Augmentation
from utils.data.sampling import seed_everything
from utils.images.read import IGNORE

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in mean_and_std(Augmentation()))


class Finished:
    """A transform with what the loader does after it, on one sample: (image (3, H, W) float32, mask)."""

    def __init__(self, transform, finish):
        self.transform, self.finish = transform, finish

    def __call__(self, image, mask):
        image, rest, mask = self.transform(image, mask)
        assert image.dtype == torch.uint8
        return self.finish(image[None], [rest])[0], mask


def trained_with(name, crop_size, base_size, **options):
    """The training transform of a set."""
    transforms = build_transforms(Augmentation(transforms=name, crop_size=crop_size, base_size=base_size, **options))
    return Finished(transforms.train, transforms.batches["finish"])


def levels(image):
    """Values 0..255 of a normalised image."""
    return (image * STD + MEAN) * 255


@pytest.fixture
def plain_colours(monkeypatch):
    """mmseg without its distortion of colours."""
    monkeypatch.setattr(segmentation, "draw_distortion", Distortion)


@pytest.fixture
def upright(monkeypatch):
    """No image is mirrored."""
    monkeypatch.setattr(segmentation, "MIRRORED", 0.0)


def blocks(width=60, height=40, seed=0):
    """An image whose grey is 40 times the class of the mask plus 20, in blocks of 10 pixels: 0..4."""
    classes = np.random.default_rng(seed).integers(0, 5, (height // 10, width // 10)).repeat(10, 0).repeat(10, 1)
    return Image.fromarray((classes * 40 + 20).astype(np.uint8)).convert("RGB"), classes.astype(np.int64)


def coordinates(width=50, height=30):
    """Red is the column, green the row; the mask is row * width + column."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)), (y * width + x).astype(np.int64)


@pytest.mark.parametrize(("name", "base_size"), [("encoding", 60), ("eomt", 60), ("mmseg", 40)])
def test_image_and_mask_move_together(name, base_size, plain_colours):
    transform = trained_with(name, 48, base_size)
    seed_everything(0)
    wrong, ignored = [], []
    for seed in range(40):
        image, mask = transform(*blocks(60, 40, seed) if seed % 2 else blocks(30, 70, seed))
        assert image.shape == (3, 48, 48) and mask.shape == (48, 48)
        padding = mask == IGNORE
        black = levels(image)[:, padding] if name == "encoding" else image[:, padding]  # the others pad with the mean colour
        assert (black.abs() < 1e-3).all()
        expected = mask[~padding] * 40 + 20
        # Between blocks the image is interpolated; half a pixel of displacement would be wrong along every edge, by 20.
        wrong.append(((levels(image)[0][~padding] - expected).abs() > 21).float().mean())
        ignored.append(padding.float().mean())
        assert set(mask[~padding].tolist()) <= set(range(5))
    assert torch.stack(wrong).mean() < 0.07 and torch.stack(wrong).min() == 0
    assert 0 < torch.stack(ignored).mean() < 0.8 and torch.stack(ignored).min() == 0


@pytest.mark.parametrize("ratio", [0.6, 1.7])
@pytest.mark.parametrize(("name", "base_size"), [("encoding", 60), ("mmseg", 40)])
def test_nothing_is_displaced_by_resizing(name, base_size, ratio, plain_colours, upright):
    """The mask names the pixel it is from, the image shows it: between the two no more than rounding, and no drift."""
    seed_everything(1)
    image, mask = trained_with(name, 48, base_size, ratio_range=(ratio, ratio))(*coordinates(60, 40))
    column, row = mask % 60, mask // 60
    inner = (mask != IGNORE) & (column > 0) & (column < 59) & (row > 0) & (row < 39)
    for shown, expected in ((levels(image)[0], column), (levels(image)[1], row)):
        assert (shown - expected)[inner].abs().max() < 1.01 and abs((shown - expected)[inner].mean()) < 0.1


@pytest.mark.parametrize("name", ["encoding", "eomt", "mmseg", "none"])
def test_evaluation_keeps_size_and_pixels(name):
    image, mask = coordinates(50, 30)
    mask[3, 4] = IGNORE
    transforms = build_transforms(Augmentation(transforms=name))
    pixels, kept = Finished(transforms.evaluate, transforms.batches["finish"])(image, mask)
    assert kept.dtype == torch.int64 and (kept.numpy() == mask).all()
    assert pixels.dtype == torch.float32 and np.abs(levels(pixels).numpy() - np.asarray(image).transpose(2, 0, 1)).max() < 1e-3


def lines(size=60):
    """An image of one white column in four."""
    columns = np.zeros((size, size), np.uint8)
    columns[:, ::4] = 255
    return Image.fromarray(columns).convert("RGB"), np.zeros((size, size), np.int64)


def test_shrinking_reads_two_pixels_as_opencv_or_averages_as_pil(plain_colours, upright):
    """To a third: the new pixel's centre lies on the middle one of three."""
    image, mask = lines()
    opencv = np.asarray(image)[0, 1::3, 0]
    pil = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))[0, :, 0].astype(float)
    third = {"ratio_range": (1.0, 1.0), "cat_max_ratio": 1.0}
    shown = levels(trained_with("mmseg", 20, 20, **third)(image, mask)[0])[0, 0]
    assert np.abs(shown.numpy() - opencv).max() < 1e-3
    shown = levels(trained_with("encoding", 20, 20, **third)(image, mask)[0])[0, 0]
    assert np.abs(shown.numpy() - pil).max() < 1.01 and np.abs(pil - opencv).max() > 100


def sizes_seen(transform, image, mask, draws=400):
    """(height, width) of the resized image in each draw, where the crop is larger than it can get."""
    seen = []
    for _ in range(draws):
        inside = transform(image, mask)[1] != IGNORE
        seen.append((int(inside.any(1).sum()), int(inside.any(0).sum())))
    return np.array(seen)


@pytest.mark.parametrize("name", ["encoding", "eomt"])
def test_encoding_draws_the_long_side(name, plain_colours):
    random.seed(0)
    for (image, mask), long_axis in ((blocks(60, 40), 1), (blocks(30, 70), 0)):
        seen = sizes_seen(trained_with(name, 64, 21), image, mask)
        long_side, short_side = seen[:, long_axis], seen[:, 1 - long_axis]
        assert (long_side.min(), long_side.max()) == (10, 42)  # int(10.5) .. 42, both ends included
        assert long_side.mean() == pytest.approx(26, abs=1.5)
        aspect = min(image.size) / max(image.size)
        assert (short_side == (long_side * aspect + 0.5).astype(int)).all()


def test_mmseg_draws_the_scale(plain_colours):
    random.seed(0)
    transform = trained_with("mmseg", 160, 20)
    for (image, mask), short_axis in ((blocks(60, 40), 0), (blocks(40, 60), 1)):
        short_side = sizes_seen(transform, image, mask, draws=200)[:, short_axis]
        assert (short_side.min(), short_side.max()) == (10, 39)  # int(20 x 0.5..2), the upper end has no width
        assert short_side.mean() == pytest.approx(24.5, abs=2)
    long_side = sizes_seen(transform, *blocks(200, 10), draws=100)[:, 1]
    assert 40 <= long_side.min() < 50 and 150 < long_side.max() <= 160  # here the long side, of 80 pixels, is what binds


@pytest.mark.parametrize(("name", "base_size"), [("encoding", 60), ("mmseg", 40)])
def test_half_of_the_images_are_mirrored(name, base_size, plain_colours):
    random.seed(0)
    image, mask = coordinates(60, 40)
    transform = trained_with(name, 48, base_size, ratio_range=(1.0, 1.0))
    mirrored = []
    for _ in range(300):
        row = transform(image, mask)[1][0]
        row = row[row != IGNORE]
        mirrored.append(bool(row[0] > row[-1]))
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.08)


def test_crops_reach_everywhere_and_padding_is_right_and_below(plain_colours, upright):
    random.seed(0)
    image, mask = coordinates(60, 40)
    once = {"ratio_range": (1.0, 1.0)}
    crop = trained_with("encoding", 32, 60, **once)
    tops, lefts = np.divmod([crop(image, mask)[1][0, 0].item() for _ in range(600)], 60)
    assert set(tops) == set(range(9)) and set(lefts) == set(range(29))  # up to the last one that fits
    for name, base_size in (("encoding", 60), ("eomt", 60), ("mmseg", 40)):
        _, kept = trained_with(name, 64, base_size, **once)(image, mask)
        assert (kept[:40, :60].numpy() == mask).all() and (kept[40:] == IGNORE).all() and (kept[:, 60:] == IGNORE).all()


def test_cat_max_ratio_is_kept_where_it_can_be(plain_colours, upright):
    random.seed(0)
    mask = np.zeros((60, 200), np.int64)
    mask[:, 150:] = 1
    mask[20:25, 150:] = IGNORE
    image = Image.fromarray(np.zeros((60, 200, 3), np.uint8))

    def shares(cat_max_ratio):
        transform = trained_with("mmseg", 60, 60, ratio_range=(1.0, 1.0), cat_max_ratio=cat_max_ratio)
        kept = [transform(image, mask)[1] for _ in range(150)]
        return np.array([torch.bincount(part[part >= 0], minlength=2).max() / (part >= 0).sum() for part in kept])

    free, limited = shares(1.0), shares(0.75)
    # Left corners 0..140; at 105..135 no class has three quarters: 31 of 141, so that 0.78 ^ 11 = 0.07 find none.
    assert (free < 0.75).mean() == pytest.approx(0.22, abs=0.08)
    assert (limited < 0.75).mean() == pytest.approx(0.93, abs=0.04)


@pytest.mark.parametrize(
    ("mask", "mixed"),
    [
        ([0, 0, 0, 1], False),  # three quarters are not less than three quarters
        ([0, 0, 0, 1, -1, -1, -1, 1], True),  # what is ignored does not count
        ([2, 2, 2], False),
        ([-1, -1], False),
    ],
)
def test_mixed_crops(mask, mixed):
    assert bool(segmentation._is_mixed(torch.tensor(mask), 0.75)) is mixed


@pytest.mark.parametrize(("name", "base_size"), [("encoding", 60), ("mmseg", 40)])
def test_a_seed_repeats_a_sample_also_in_a_worker_that_was_spawned(name, base_size):
    transform = pickle.loads(pickle.dumps(trained_with(name, 48, base_size)))
    results = []
    for seed in (0, 0, 1):
        seed_everything(seed)
        samples = [transform(*blocks()) for _ in range(5)]
        results.append((torch.stack([image for image, _ in samples]), torch.stack([mask for _, mask in samples])))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][1], results[2][1])


def test_single_pixels_and_extreme_shapes_survive():
    random.seed(0)
    for width, height in ((1, 1), (1, 300), (300, 2)):
        image, mask = Image.new("RGB", (width, height)), np.zeros((height, width), np.int64)
        for transform in (trained_with("encoding", 16, 20), trained_with("mmseg", 16, 20)):
            pixels, kept = transform(image, mask)
            assert pixels.shape == (3, 16, 16) and (kept == 0).any()


# --- colours


def distort_colours(image):
    return distort(image, draw_distortion())


@pytest.mark.parametrize("levels", [2, 5, 256, 1 << 20])
def test_hue_turns_as_torchvisions_to_the_last_bit(levels):
    image = torch.randint(levels, (3, 40, 50), generator=torch.Generator().manual_seed(levels)) / (levels - 1)
    for share in (-0.5, -18 / 180, 0, 17 / 180, 0.3):
        assert torch.equal(turn_hue(image, share), F.adjust_hue(image, share))


def test_saturation_scales_s_of_hsv():
    colours = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    colours[:, 0], colours[:, 1], colours[:, 2] = 0, 0.7, torch.tensor([1.0, 0, 0])
    for factor in (0.5, 1.0, 1.5):
        scaled = scale_saturation(colours.reshape(3, 5, 10), factor).reshape(3, 50)
        for before, after in zip(colours.T.tolist(), scaled.T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb(h, min(1, s * factor), v), abs=1e-5)


def test_distortion_has_the_published_ranges(monkeypatch):
    random.seed(0)
    grey = torch.full((3, 1, 1), 100 / 255)
    shown = np.array([distort_colours(grey)[0].item() * 255 for _ in range(4000)])
    # brightness -32..32 half of the time, then contrast 0.5..1.5 half of the time; grey has neither hue nor saturation
    assert np.isclose(shown, 100, atol=1e-3).mean() == pytest.approx(0.25, abs=0.03)
    assert 34 <= shown.min() < 40 and 190 < shown.max() <= 198
    only(monkeypatch, HUE=distortion.HUE)
    red = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1)
    hues = [colorsys.rgb_to_hsv(*distort_colours(red).flatten().tolist())[0] for _ in range(2000)]
    turned = ((np.array(hues) + 0.5) % 1 - 0.5) * 360
    steps = turned / 2  # OpenCV's hue has 180 steps; numpy's randint(-18, 18) gives -18 to 17
    assert np.abs(steps - steps.round()).max() < 1e-3 and set(steps.round()) == set(range(-18, 18))
    assert (steps.round() == 0).mean() == pytest.approx(0.5 + 0.5 / 36, abs=0.04)
    only(monkeypatch, BRIGHTNESS=0.5, CONTRAST=(2, 2))
    assert distort_colours(torch.ones(3, 2, 2)).max() <= 1


def only(monkeypatch, **changes):
    """Of the distortion, only these changes."""
    for name, value in ({"BRIGHTNESS": 0, "CONTRAST": (1, 1), "SATURATION": (1, 1), "HUE": (0,)} | changes).items():
        monkeypatch.setattr(distortion, name, value)


def test_contrast_comes_before_or_after(monkeypatch):
    """Contrast that clips, then a change of saturation, differs from the other order; both occur."""
    random.seed(0)
    only(monkeypatch, CONTRAST=(1.5, 1.5), SATURATION=(0.5, 0.5))
    colour = torch.tensor([0.9, 0.6, 0.3]).view(3, 1, 1)
    seen = {tuple(round(v, 3) for v in distort_colours(colour).flatten().tolist()) for _ in range(200)}
    # untouched; contrast (1, 0.9, 0.45); saturation (0.9, 0.75, 0.6); first contrast; first saturation
    assert seen == {(0.9, 0.6, 0.3), (1.0, 0.9, 0.45), (0.9, 0.75, 0.6), (1.0, 0.95, 0.725), (1.0, 1.0, 0.9)}


# --- batches


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["encoding", "mmseg"])
def test_a_batch_is_finished_as_each_sample_was_in_the_worker_before(name, layout):
    """The bits of torchvision's steps in their order: to float, the distortion, normalised, padded with 0 (mmseg) or black."""
    options = {"mean": (0.1, 0.5, 0.7), "std": (0.2, 0.25, 0.3)}
    transforms = build_transforms(Augmentation(transforms=name, crop_size=48, base_size=40, **options))
    seed_everything(0)
    samples = [transforms.train(*blocks(60, 40, seed)) for seed in range(8)]
    images, rests, masks = collate(samples)
    assert images.dtype == torch.uint8 and masks.shape == (8, 48, 48)
    finished = transforms.batches["finish"](images.contiguous(memory_format=layout), rests)
    assert finished.is_contiguous(memory_format=layout)
    for image, (pixels, ((height, width), drawn), _) in zip(finished, samples, strict=True):
        expected = F.to_dtype(pixels[:, :height, :width], torch.float32, scale=True)
        if name == "mmseg":
            expected = distort(expected, drawn)
        expected = F.pad(F.normalize(expected, **options), [0, 0, 48 - width, 48 - height])
        assert torch.equal(image, expected)
    assert name == "encoding" or len({rest.size for rest in rests}) > 1


def test_images_of_several_sizes_are_refused_in_training_and_come_one_by_one_in_evaluation():
    transforms = build_transforms(Augmentation(transforms="none"))
    pairs = [coordinates(50, 30), coordinates(20, 40), coordinates(50, 30)]
    samples = [transforms.evaluate(*pair) for pair in pairs]
    with pytest.raises(InputError, match="a batch with images of 50 x 30 and of 20 x 40 pixels: --transforms none keeps sizes"):
        collate(samples)
    images, rests, masks, sizes = collate_sizes(samples)
    parts = of_one_size(transforms.batches["finish"](images, rests), masks, sizes)
    for (image, mask), pair in zip(parts, pairs, strict=True):
        alone = collate_sizes([transforms.evaluate(*pair)])
        assert torch.equal(image, transforms.batches["finish"](*alone[:2])) and torch.equal(mask[0], torch.from_numpy(pair[1]))
    equal = images[:2], masks[:2], torch.tensor([[40, 50]] * 2)
    assert len(of_one_size(*equal)) == 1 and len(of_one_size(*equal, singly=True)) == 2
