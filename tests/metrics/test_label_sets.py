"""An answer is right if it is among an image's labels; images without labels do not count."""

import json
import types

import numpy as np
import pytest

from utils.cli.errors import InputError
from utils.metrics.label_sets import label_set_scores
from utils.metrics.recognition import Answers

# In the order of the source: by class folder, so that file names are mixed.
NAMES = ["val/cat/3.png", "val/cat/1.png", "val/dog/4.png", "val/dog/2.png"]
SOURCE = types.SimpleNamespace(classes=["cat", "dog", "emu"], name=lambda index: NAMES[index])
ANSWERS = Answers.of_rows(np.arange(4), [0, 0, 1, 1], [2, 0, 0, 1], np.ones(4), 3)


def scores_of(tmp_path, sets):
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    return label_set_scores(tmp_path / "sets.json", ANSWERS, SOURCE)


def test_by_the_order_of_file_names_and_by_name(tmp_path):
    expected = {"sets_acc1": 66.66667, "sets_images": 3}  # of 1.png: cat; of 2.png, none; of 3.png: emu; of 4.png: cat
    assert scores_of(tmp_path, [[0], [], [0, 2], [1]]) == expected
    assert scores_of(tmp_path, {"3.png": ["cat", "emu"], "1.png": ["cat"], "4.png": [1], "2.png": []}) == expected


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
