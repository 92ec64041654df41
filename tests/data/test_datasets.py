"""Samples of training: the same for any number of loader workers and processes, and after a resume; broken images replaced."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from utils.cli.errors import InputError
from utils.data.datasets import RecognitionDataset, RecognitionStream, SegmentationDataset, SegmentationStream
from utils.data.sampling import Key, TrainBatches, replacement
from utils.data.string_list import StringList
from utils.images.read import AS_STORED, IGNORE, BadImage, unpack_masks

SAMPLES = 24


class Images:
    """A source of recognition: image i has the shade i and the label i % 4; those in `broken` cannot be read."""

    classes = ["a", "b", "c", "d"]

    def __init__(self, broken=()):
        self.broken, self.labels = broken, np.arange(SAMPLES) % 4

    def __len__(self):
        return SAMPLES

    def read(self, index):
        if index in self.broken:
            raise BadImage(f"{self.name(index)} is no image")
        return Image.new("RGB", (6, 4), (index,) * 3)

    def encoded(self, index):
        return bytes([index])

    def name(self, index):
        return f"image {index}"


class Masks(Images):
    """The same with masks of class i % 2; the mask of an image in `bad_masks` cannot be read."""

    def __init__(self, broken=(), bad_masks=()):
        super().__init__(broken)
        self.bad_masks = bad_masks

    def read(self, index):
        if index in self.bad_masks:
            raise InputError(f"mask {index} is no image")
        return super().read(index), np.full((4, 6), index % 2, np.int64)


def augment(image, mask=None):
    """Shows which image came and which random numbers, of each library that transforms draw from: (4,) float64."""
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
    seen = torch.tensor([np.asarray(image)[0, 0, 0], *drawn], dtype=torch.float64)
    return seen if mask is None else (seen, torch.from_numpy(mask))


KINDS = {"recognition": (RecognitionDataset, Images), "segmentation": (SegmentationDataset, Masks)}


def batches_of(dataset, workers=0, process=0, processes=1, first_update=0, epochs=(0, 1)):
    """[(seen (B, 4), labels or masks, replaced (B,))] of one process."""
    sampler = TrainBatches(SAMPLES, 4 // processes, 1, process, processes, seed=7)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for sampler.epoch in epochs:
        sampler.first_update = first_update
        found += list(loader)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_workers_processes_or_resume(kind):
    make, source = KINDS[kind]
    dataset = make(source(broken=(2, 5)), augment, seed=7)
    expected = batches_of(dataset)
    assert len(expected) == 12 and all(replaced.dtype == torch.int64 for *_, replaced in expected)

    def equal(found, wanted):
        return all(torch.equal(a, b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))

    assert equal(batches_of(dataset, workers=2), expected)
    halves = [batches_of(dataset, 0, process, 2) for process in range(2)]
    assert equal([[torch.cat(parts) for parts in zip(*pair, strict=True)] for pair in zip(*halves, strict=True)], expected)
    assert equal(batches_of(dataset, first_update=2, epochs=(1,)), expected[8:])


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_are_keyed_by_seed_epoch_and_sample(kind):
    make, source = KINDS[kind]

    def drawn(seed, *key):
        return make(source(), augment, seed)[Key(*key)][0][1:].tolist()

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    others = [drawn(0, 1, 2), drawn(0, 1, 3), drawn(0, 3, 2), drawn(1, 1, 2)]
    assert len({number for numbers in others for number in numbers}) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_replaced_in_training_and_raised_in_evaluation(kind):
    make, source = KINDS[kind]
    training, whole = make(source(broken=(5,)), augment, 3), make(source(), augment, 3)
    for epoch in range(3):
        other = next(i for i in (replacement(3, epoch, 5, attempt, SAMPLES) for attempt in (1, 2)) if i != 5)
        for index in range(SAMPLES):
            (seen, label, replaced), (seen_whole, *_) = training[Key(index, epoch)], whole[Key(index, epoch)]
            assert replaced == (5 if index == 5 else -1) and seen[0] == (other if index == 5 else index)
            assert torch.equal(seen[1:], seen_whole[1:])  # the random numbers are those of the sample that was asked for
            if kind == "recognition":
                assert label == seen[0] % 4  # the label of the image that is shown
            else:
                assert (unpack_masks(label) == seen[0] % 2).all()
    evaluation = make(source(broken=(5,)), augment)
    assert len(evaluation[Key(4)]) == 2
    with pytest.raises(BadImage, match="image 5 is no image"):
        evaluation[5]


def test_a_broken_mask_is_never_replaced():
    for seed in (3, None):
        with pytest.raises(InputError, match="mask 7 is no image") as error:
            SegmentationDataset(Masks(broken=(7,), bad_masks=(7,)), augment, seed)[Key(7)]
        assert not isinstance(error.value, BadImage)


def test_what_fills_up_a_batch_has_no_label():
    assert RecognitionDataset(Images(), augment)[Key(6, counts=False)][1] == -1
    image, mask = SegmentationDataset(Masks(), augment)[Key(6, counts=False)]
    assert image[0] == 6 and mask.shape == (4, 6) and mask.dtype == torch.uint8 and (unpack_masks(mask) == IGNORE).all()


def two_parts(data):
    """A transform that decodes by itself; b"bad" is no image."""
    return torch.tensor(data[0]), torch.tensor(data[0] + 1) if data != b"bad" else data["no"]


two_parts.takes_bytes = True


def test_a_transform_that_decodes_by_itself():
    assert [int(part) for part in RecognitionDataset(Images(), two_parts, 0)[Key(6)]] == [6, 7, 2, -1]
    source = Images()
    source.encoded = lambda index: b"bad"
    with pytest.raises(BadImage, match="image 3 cannot be read as an image"):
        RecognitionDataset(source, two_parts)[Key(3)]


class Stream:
    """A stream: the row `example` is a shade."""

    reading = AS_STORED

    def __len__(self):
        return 9

    def read(self, example, number):
        return Image.new("RGB", (6, 4), (example,) * 3)

    def encoded(self, example, number):
        return bytes([example])

    def label(self, example, number):
        return example % 4

    def name(self, number):
        return f"row {number}"


class StreamWithMasks(Stream):
    classes = ["a", "b"]

    def read(self, example, number):
        return super().read(example, number), np.full((4, 6), example % 2, np.int64)


def test_samples_of_streams():
    for make, source in ((RecognitionStream, Stream()), (SegmentationStream, StreamWithMasks())):
        sample = make(source, augment, 0)
        assert len(sample) == 9
        seen, label = sample(5, 70, 1)
        assert seen[0] == 5 and (label == 1 if make is RecognitionStream else (unpack_masks(label) == 1).all())
        keys = [(0, 70, 1), (0, 71, 1), (0, 70, 2), (1, 70, 1)]  # seed, number, epoch
        again, *others = (make(source, augment, seed)(5, *key)[0][1:].tolist() for seed, *key in keys)
        assert again == seen[1:].tolist() and again not in others
    assert [int(part) for part in RecognitionStream(Stream(), two_parts, 0)(6, 70, 1)] == [6, 7, 2]


def test_string_list_keeps_any_name():
    names = ["a", "", "ü/ö", "bad\udcff", "x" * 300]
    kept = StringList(names)
    assert list(kept) == names and kept[-1] == names[-1] and len(kept) == 5
    with pytest.raises(IndexError):
        kept[5]
