"""Data in the classes of the weights: mapped by name, or refused."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from utils.cli.errors import InputError
from utils.data.classes import classes_of, in_classes
from utils.data.colours import colours_of
from utils.images.bands import bands_of
from utils.images.read import Reading
from utils.model.as_trained import as_trained
from utils.sources.built_in import Pictures


def source(*classes):
    labels = np.arange(len(classes))
    return Pictures(np.zeros((len(classes), 8, 8), np.uint8), labels, list(classes), "data")


class Masks:
    title, classes = "masks", ["b", "a"]
    palette = np.zeros((2, 3), np.uint8)

    def __len__(self):
        return 1

    def read(self, index):
        return "image", np.array([[0, 1], [-1, 1]])


def test_the_same_classes_stay_as_they_are():
    data, said = source("a", "b"), []
    assert in_classes(data, ["a", "b"], say=said.append) is data and not said


@pytest.mark.parametrize("own, words", [(("c", "a", "b"), "in another order: mapped by name"), (("c", "a"), "has 2 of the")])
def test_other_orders_and_some_of_the_classes_are_mapped_and_said(own, words):
    said = []
    mapped = in_classes(source(*own), ["a", "b", "c"], say=said.append)
    assert [mapped.classes[label] for label in mapped.labels] == list(own)
    assert mapped.classes == ["a", "b", "c"] and len(mapped) == len(own) and words in said[0] and len(said) == 1
    assert mapped.read(0).size == (8, 8) and mapped.encoded(0) is None


def test_masks_are_mapped_and_what_has_no_class_stays():
    mapped = in_classes(Masks(), ["a", "b", "c"], [(1, 2, 3)] * 3, say=lambda _: None)
    assert mapped.read(0)[1].tolist() == [[1, 0], [-1, 0]] and mapped.palette.shape == (3, 3)


def test_other_names_are_refused_in_one_line():
    for own in (("a", "x"), ("0", "1", "2"), ("a", "b", "c", "d")):
        with pytest.raises(
            InputError, match=r"^data: \d of \d classes are none of the weights' \([^\n]+\); they have 3: a, b, c;"
        ):
            in_classes(source(*own), ["a", "b", "c"])


def test_weights_of_timm_know_imagenet():
    info = ImageNetInfo("imagenet-1k")
    synsets, words = info.label_names(), [info.index_to_description(i) for i in range(1000)]
    start = as_trained(None, "resnet50.a1_in1k")
    for names in (synsets, words):
        mapped = in_classes(source(*names[7:9]), classes_of(start, source(*names[7:9])), say=lambda _: None)
        assert mapped.labels.tolist() == [7, 8] and len(mapped.classes) == 1000
    with pytest.raises(InputError, match="data has 2 classes .*, the weights 1000"):
        classes_of(start, source("cat", "dog"))
    with pytest.raises(InputError, match="no classifier"):
        classes_of(as_trained(None, "vit_small_patch16_dinov3.lvd1689m"), source("cat", "dog"))


def test_colours_of_the_data():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    data = Pictures(images, np.zeros(40), ["a"], "data")
    mean, std = colours_of(data, "data", None, seed=0)
    pixels = images.reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=1e-6) and std == pytest.approx(pixels.std(0), abs=1e-6)
    assert colours_of(data, "data", None, seed=1) == (mean, std)  # all of so few images
    assert colours_of(data, [0.1, 0.2, 0.3], "data", seed=0) == ([0.1, 0.2, 0.3], std)
    assert colours_of(data, "clip", None, seed=0) == ("clip", None)


def test_bands_are_shown_as_without_the_classes():
    masks = Masks()
    masks.reading = Reading(in_chans=5, show_bands=(4, 2, 1))
    mapped = in_classes(masks, ["a", "b"], masks.palette, say=lambda line: None)
    assert bands_of(mapped) == bands_of(masks) == [4, 2, 1]
