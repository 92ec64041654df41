"""--folds and --fold: each image is validated on once, and what goes wrong is said in a line."""

import pytest
from conftest import make_folder

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
