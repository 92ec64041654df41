"""The built-in digits and scenes: fixed splits that share no digit, pure functions of numbers, labels that are the ink."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from utils.sources import built_in
from utils.sources.built_in import Scenes, digits, scenes


def drawn(*words, **options):
    """Scenes, and all of them as two arrays."""
    scenes = Scenes(*words, **options)
    images, masks = zip(*map(scenes.read, range(len(scenes))), strict=True)
    scenes.images, scenes.masks = np.stack([np.asarray(image) for image in images]), np.stack(masks).astype(np.uint8)
    return scenes


@pytest.fixture(scope="module")
def train():
    return drawn("train", 60)


def test_digits_are_split_for_good():
    train, val = digits()
    assert (len(train), len(val)) == (1438, 359) == (len(train.labels), len(val.labels))
    assert train.classes == [str(i) for i in range(10)] == val.classes
    image = train.read(0)
    assert image.mode == "RGB" and image.size == (8, 8) and np.asarray(image).max() > 200 and train.encoded(0) is None
    counts = np.bincount(val.labels)
    assert counts.min() >= 35 and counts.max() <= 37


def test_sizes_and_colours_of_scenes():
    parts = scenes(32)
    assert [len(part) for part in parts] == [600, 150]
    image, mask = parts[1].read(2)
    assert image.size == (32, 32) and mask.shape == (32, 32) and mask.dtype == np.int64 and 0.05 < (mask > 0).mean() < 0.4
    assert parts[0].classes == ["background", *map(str, range(10))] and len(np.unique(parts[0].palette, axis=0)) == 11


def test_a_scene_depends_on_seed_split_and_index_only(train):
    again, other_seed, val = drawn("train", 8), drawn("train", 8, seed=1), drawn("val", 8)  # again: of another count
    for index in range(8):
        assert (again.images[index] == train.images[index]).all() and (again.masks[index] == train.masks[index]).all()
    for other in (other_seed, val):
        both_ground = (train.masks[:8] == 0) & (other.masks == 0)
        assert np.abs(train.images[:8].astype(float) - other.images)[both_ground].mean() > 20  # the noise alone: 7
    assert all((train.masks[i] != train.masks[j]).any() for i in range(8) for j in range(i))


def test_splits_of_scenes_share_no_digit(monkeypatch):
    """What reaches the drawing, against the whole data set: 1,438 and 359 digits, each in one of the two."""
    seen = []
    monkeypatch.setattr(built_in, "draw_scene", lambda rng, size, inks, digits: (seen.append(inks), (0, 0))[1])
    Scenes("train", 1)
    Scenes("val", 1)
    assert [len(inks) for inks in seen] == [1438, 359]
    both = np.concatenate(seen).reshape(-1, 64)
    everything = (load_digits().images * 255 / 16).round().astype(np.uint8).reshape(-1, 64)
    assert (np.unique(both, axis=0) == np.unique(everything, axis=0)).all() and len(both) == len(everything)
    train, val = ({ink.tobytes() for ink in inks} for inks in seen)
    assert not train & val


def test_masks_hold_whole_digits_of_every_class(train):
    labelled = train.masks > 0
    assert set(np.unique(train.masks)) == set(range(11))
    assert 0.08 < labelled.mean() < 0.3 and labelled.any((1, 2)).all()
    classes = [len(np.unique(mask)) - 1 for mask in train.masks]
    assert min(classes) >= 1 and 2.5 < np.mean(classes) <= 6
    heights = []
    for mask in train.masks:
        for label in np.unique(mask)[1:]:
            rows = np.flatnonzero((mask == label).any(1))
            heights.append(rows[-1] - rows[0] + 1)
    assert np.quantile(heights, 0.05) >= 20 and np.median(heights) < 50  # a quarter to a half of the scene, mostly


def test_ink_stands_out_from_the_ground(train):
    contrasts = []
    for image, mask in zip(train.images.astype(float), train.masks, strict=True):
        brightness = image.mean(-1)
        for label in np.unique(mask)[1:]:
            rows, columns = np.nonzero(mask == label)
            box = (slice(max(0, rows.min() - 3), rows.max() + 4), slice(max(0, columns.min() - 3), columns.max() + 4))
            around = mask[box] == 0
            contrasts.append(abs(brightness[rows, columns].mean() - brightness[box][around].mean()))
    # Less than the 75 at full ink: half-covered borders count, and two digits of a class, a dark and a light one.
    assert np.median(contrasts) > 50 and np.mean(np.array(contrasts) > 25) > 0.9


def test_large_scenes_are_drawn_when_they_are_read(monkeypatch):
    kept = Scenes("train", 3, 64)
    monkeypatch.setattr("utils.sources.built_in.KEPT", 1000)
    read = Scenes("train", 3, 64)
    assert read.kept is None and len(read) == 3
    for index in range(3):
        (image, mask), (other, labels) = kept.read(index), read.read(index)
        assert image.tobytes() == other.tobytes() and (mask == labels).all() and mask.dtype == np.int64
    monkeypatch.undo()
    assert Scenes("train", 600, 4096).kept is None  # 28 GiB
