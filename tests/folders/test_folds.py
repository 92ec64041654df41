"""--folds and --fold: each image is validated on once, and what goes wrong is said in a line."""

import pytest
from conftest import make_folder
from small_sources import write_image

from utils.cli.arguments import Fold
from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.folders.class_folders import class_folders


def names(source):
    return {source.name(index) for index in range(len(source))}


def test_each_image_is_validated_on_in_one_fold(tmp_path):
    for name, count in (("cat", 7), ("dog", 5)):
        make_folder(tmp_path, (name,), count, seed=count)
    parts = [class_folders(tmp_path, None, Fold(number, 3), 0) for number in (1, 2, 3)]
    held_out = [names(val) for _, val in parts]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 12 and {len(each) for each in held_out} == {4}
    assert all(not names(train) & names(val) and len(train) == 8 for train, val in parts)
    with pytest.raises(InputError, match="--folds 13: fold 13 has 0 of 12 images; take fewer folds"):
        class_folders(tmp_path, None, Fold(13, 13), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--folds 5", "--folds and --fold go together"),
        ("--fold 2", "--folds and --fold go together"),
        ("--folds 5 --fold 6", "--fold 6: found 5 folds; expected a number of 1 to 5"),
        ("--folds 5 --fold 1 --val_split 0.1", "found both, expected one"),
    ],
)
def test_wrong_folds_are_said_in_a_line(capsys, words, message):
    with pytest.raises(SystemExit):
        parse("train_recognition.py", "", ["--data_path", "x", *words.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("group_by", [None, "^.[0-9]"])
def test_copies_are_in_one_fold(tmp_path, group_by):
    for name in ("cat", "dog"):
        for number in range(12):  # each third one is the same
            write_image(tmp_path / name / f"{name[0]}{number}.png", shade=number * (number % 3 > 0) + 100 * (name == "dog"))
    said = []
    parts = [class_folders(tmp_path, None, Fold(number, 3), 0, say=said.append, group_by=group_by) for number in (1, 2, 3)]
    held_out = [names(val) for _, val in parts]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 24
    assert all(len(train) + len(val) == 24 for train, val in parts)
    for name in ("cat", "dog"):
        copies = {str(tmp_path / name / f"{name[0]}{number}.png") for number in (0, 3, 6, 9)}
        assert sum(bool(copies & each) for each in held_out) == 1
    assert said[-1] == "copies: 6 images are equal to another one, byte by byte: in its fold"


def test_copies_stay_with_their_groups(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(12):  # of four groups of three; the first image of each is the same
            shade = number + 100 * (name == "dog") if number % 3 else 200
            write_image(tmp_path / name / f"{number // 3}{name}_{number % 3}.png", shade=shade)
    said = []
    train, val = class_folders(tmp_path, None, 0.5, 0, say=said.append, group_by="^[^_]+")
    groups = [{name.rpartition("_")[0] for name in names(source)} for source in (train, val)]
    assert not groups[0] & groups[1] and len(train) + len(val) == 24 and len(val) == 3 * len(groups[1])
    assert said[-1].startswith("warning: ") and "they stay with their groups, so that the score flatters" in said[-1]
