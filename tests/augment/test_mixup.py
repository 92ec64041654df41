"""Mixup and CutMix against timm's with the same draws, and how they draw."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup as TimmMixup

from utils.augment.mixup import Mixup, make_mixup, mix, smooth_one_hot
from utils.cli.recognition_flags import MixupOptions

IMAGES = torch.rand(8, 3, 12, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
BOTH = MixupOptions(mixup=0.8, cutmix=1.0)


@pytest.mark.parametrize("cut", [False, True])
def test_equals_timm_with_the_same_draws(cut, monkeypatch):
    theirs = TimmMixup(
        mixup_alpha=0 if cut else 0.8, cutmix_alpha=1.0 if cut else 0, label_smoothing=0.1, num_classes=5, correct_lam=False
    )
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (0.3, cut))
    box = (2, 8, 1, 6)
    if cut:
        monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: (box, 0.3))
    expected_images, expected_targets = theirs(IMAGES.clone(), LABELS)
    boxes = np.tile(np.array(box if cut else (0, 0, 0, 0)), (8, 1))
    images, targets = mix(IMAGES, LABELS, np.full(8, 0.3, np.float32), boxes, 5, 0.1)
    assert torch.allclose(images, expected_images, atol=1e-6) and torch.allclose(targets, expected_targets, atol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [8, 7, 2])
def test_targets_tell_how_much_of_each_image_there_is(mode, size):
    """With images that are constant and equal to their label, the mean of the mixed image is the target's expectation."""
    labels = LABELS[:size]
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    for seed in range(12):
        mixed, targets = Mixup(5, MixupOptions(mixup=0.8, cutmix=1.0, mixup_mode=mode))(images, labels, seed)
        assert torch.allclose(targets.sum(1), torch.ones(size))
        assert torch.allclose(mixed.mean((1, 2, 3)), (targets * torch.arange(5)).sum(1), atol=1e-5)


def test_modes_draw_as_often_as_they_say():
    def lambdas(mode):
        images = torch.zeros(8, 1, 4, 4)
        images[4:] = 1  # an image and its mirror differ
        mixed, _ = Mixup(5, MixupOptions(mixup=0.8, mixup_mode=mode))(images, LABELS, 3)
        first = mixed.mean((1, 2, 3))
        return torch.cat([1 - first[:4], first[4:]])

    batch, pair, elem = (lambdas(mode) for mode in ("batch", "pair", "elem"))
    assert len(set(batch.round(decimals=5).tolist())) == 1
    assert torch.allclose(pair, pair.flip(0)) and len(set(pair.round(decimals=5).tolist())) == 4
    assert len(set(elem.round(decimals=5).tolist())) == 8


def test_keyed_by_the_seed_and_off_by_probability():
    mixup = Mixup(5, BOTH)
    a, b, c = mixup(IMAGES, LABELS, 1), mixup(IMAGES, LABELS, 1), mixup(IMAGES, LABELS, 2)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], c[0])
    images, targets = Mixup(5, BOTH._replace(mixup_prob=0.0), 0.1)(IMAGES, LABELS, 1)
    assert torch.equal(images, IMAGES) and targets[0, 0] == pytest.approx(0.92)


def test_distributions():
    mixup = Mixup(5, MixupOptions(mixup=0.5, cutmix=1.0, mixup_switch_prob=0.25))
    rng = np.random.default_rng(0)
    lam, boxes = mixup.draw(4000, (32, 32), rng)
    cut = boxes[:, 1] > boxes[:, 0]
    assert cut.mean() == pytest.approx(0.25, abs=0.03)  # switch_prob, less the empty boxes
    assert lam[~cut].var() == pytest.approx(0.125, abs=0.02)  # Beta(0.5, 0.5)
    _, boxes = Mixup(5, MixupOptions(cutmix_minmax=(0.25, 0.5))).draw(500, (32, 32), rng)
    sides = boxes[:, 1] - boxes[:, 0]
    assert sides.min() == 8 and sides.max() == 15 and boxes.min() >= 0 and boxes.max() <= 32


def test_without_an_alpha_nothing_is_mixed():
    assert make_mixup(MixupOptions(mixup_mode="elem"), 5, 0.1) is None
    for options in (MixupOptions(mixup=0.8), MixupOptions(cutmix=1.0), MixupOptions(cutmix_minmax=(0.2, 0.5))):
        assert not torch.equal(make_mixup(options, 5, 0.1)(IMAGES, LABELS, 1)[0], IMAGES)


def test_smoothing_spreads_its_share_over_all_classes():
    assert smooth_one_hot(torch.tensor([1]), 4, 0.1)[0].tolist() == pytest.approx([0.025, 0.925, 0.025, 0.025])


class Drawn:
    """Random numbers by hand: lambda 1 - (9.5 / 32)², and centres in turn."""

    def __init__(self, *centres):
        self.centres = list(centres)

    def random(self):
        return 0.0

    def beta(self, *_):
        return 1 - (9.5 / 32) ** 2

    def integers(self, *_):
        return self.centres.pop(0)


def test_a_cutmix_box_reaches_half_its_side_rounded_down_to_both_sides():
    """Side 9: 4 pixels before the centre and 4 from it on, as in the paper's code; lambda is what is left of the image."""
    lam, boxes = Mixup(5, MixupOptions(cutmix=1.0)).draw(2, (32, 32), Drawn(10, 20, 1, 31))
    assert boxes.tolist() == [[6, 14, 16, 24], [0, 5, 27, 32]]
    assert lam.tolist() == pytest.approx([1 - 64 / 1024, 1 - 25 / 1024])


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_all_labels_of_two_images_are_mixed(mode):
    several = (torch.arange(40).view(8, 5) % 3 == 0).float()
    options = MixupOptions(mixup=0.8, mixup_mode=mode)
    images, targets = Mixup(5, options)(IMAGES, several, seed=3)
    share = (images[:, 0, 0, 0] - IMAGES.flip(0)[:, 0, 0, 0]) / (IMAGES - IMAGES.flip(0))[:, 0, 0, 0]  # of the first image
    assert torch.allclose(targets, several * share[:, None] + several.flip(0) * (1 - share[:, None]), atol=1e-5)
