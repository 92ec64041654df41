"""An answer is right if it is among an image's labels; images without labels do not count."""

import json
import types

import numpy as np
import pytest

from utils.cli.errors import InputError
from utils.data.classes import InClasses
from utils.metrics.label_sets import label_set_scores
from utils.metrics.recognition import Answers

# In the order of the source: by class folder, so that file names are mixed.
PATHS = ["cat/3.png", "cat/1.png", "dog/4.png", "dog/2.png"]
CLASSES = ["cat", "dog", "emu"]
SOURCE = types.SimpleNamespace(classes=CLASSES, paths=PATHS, title="", encoded=None, labels=np.array([0, 0, 1, 1]))
ANSWERS = Answers.of_rows(np.arange(4), [0, 0, 1, 1], [2, 0, 0, 1], np.ones(4), 3)


def scores_of(tmp_path, sets, source=SOURCE, answers=ANSWERS):
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    return label_set_scores(tmp_path / "sets.json", answers, source)


def test_by_the_order_of_file_names_and_by_name(tmp_path):
    expected = {"sets_acc1": 66.66667, "sets_images": 3}  # of 1.png: cat; of 2.png, none; of 3.png: emu; of 4.png: cat
    assert scores_of(tmp_path, [[0], [], [0, 2], [1]]) == expected
    assert scores_of(tmp_path, {"3.png": ["cat", "emu"], "1.png": ["cat"], "4.png": [1], "2.png": []}) == expected
    assert scores_of(tmp_path, [[0], [], [0, 2], [1]], InClasses(SOURCE, CLASSES)) == expected
    assert scores_of(tmp_path, {"cat/3.png": [2], "cat/1.png": [0], "dog/4.png": [1], "dog/2.png": []}) == expected


def test_rows_are_in_their_own_order(tmp_path):
    source = types.SimpleNamespace(classes=list("abcdefghijkl"), name=lambda index: f"row {index}, column 'image'")
    answers = Answers.of_rows(np.arange(12), [0] * 12, range(12), np.ones(12), 12)
    assert scores_of(tmp_path, [[row] for row in range(12)], source, answers) == {"sets_acc1": 100, "sets_images": 12}


def test_a_file_name_of_several_images_names_none(tmp_path):
    source = types.SimpleNamespace(classes=["cat", "dog", "emu"], paths=["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"])
    for sets in ({"0.png": ["cat"], "1.png": ["dog"]}, [[0], [0], [1], [1]]):
        with pytest.raises(InputError, match="2 file names are of several images .0.png.; .* such as cat/0.png$"):
            scores_of(tmp_path, sets, source)
    by_path = {"cat/0.png": ["emu"], "cat/1.png": ["dog"], "dog/0.png": ["cat"], "dog/1.png": [1]}
    assert scores_of(tmp_path, by_path, source) == {"sets_acc1": 75, "sets_images": 4}


@pytest.mark.parametrize(
    "sets, message",
    [
        ([[0]], "found 1 sets of labels for 4 images; expected one each"),
        ({"1.png": [0]}, "found no labels for 3.png and 2 more images"),
        ([[0], [3], [0], [0]], "found the label 3; expected names of the 3 classes, or numbers"),
        ([["cow"], [0], [0], [0]], "found the label cow"),
        ([0, 1, 2, 0], "expected a list of labels for each image"),
        ([[], [], [], []], "no image has a label"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(tmp_path, sets, message):
    with pytest.raises(InputError, match=message):
        scores_of(tmp_path, sets)
    with pytest.raises(InputError, match="No such file"):
        label_set_scores(tmp_path / "none.json", ANSWERS, SOURCE)
