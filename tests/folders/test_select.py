"""--classes, --max_train_images, --max_val_images, and the images that are scored once, after training."""

import json

import numpy as np
import pytest
from conftest import make_folder, train
from small_sources import ids, write_image, write_mask

from utils.cli import recognition_flags, segmentation_flags
from utils.cli.errors import InputError
from utils.images.read import IGNORE
from utils.sources.recognition import open_recognition_data
from utils.sources.segmentation import open_segmentation_data


@pytest.fixture
def tree(tmp_path):
    for split, count, seed in (("train", 8, 0), ("val", 3, 1)):
        make_folder(tmp_path / split, ("bus", "car", "cat", "truck"), count, seed=seed)
    return tmp_path


def opened(root, text=None, need_train=True, **flags):
    if text is not None:
        (root / "my.txt").write_text(text, encoding="utf-8-sig")
        flags["classes"] = str(root / "my.txt")
    lines = []
    data = recognition_flags.Data(data_path=str(root), **flags)
    return *open_recognition_data(data, seed=0, need_train=need_train, say=lines.append), lines


def test_classes_are_ordered_left_out_and_merged(tree):
    trained, val, lines = opened(tree, "# ours\ntruck\r\nroad = car, bus\n")
    assert trained.classes == val.classes == ["truck", "road"] and (len(trained), len(val)) == (24, 9)
    for source in (trained, val):
        for index in range(len(source)):
            assert (source.labels[index] == 0) == ("/truck/" in source.name(index)) and "/cat/" not in source.name(index)
    assert lines[0] == "classes: 8 training images of 1 others (cat) are left out"


def test_images_to_test_and_to_validate_on_need_not_have_all_classes(tree):
    make_folder(tree / "test", ("car", "truck"), 2)
    text = "truck\ncat\nroad = car, bus\n"
    *_, val, lines = opened(tree, text)
    assert val.test.classes == ["truck", "cat", "road"] and sorted(val.test.labels.tolist()) == [0, 0, 2, 2]
    assert "classes: the test images have none of cat" in lines
    evaluated, _, lines = opened(tree / "test", text, need_train=False)
    assert evaluated.classes == val.classes and evaluated.labels.tolist() == [2, 2, 0, 0]
    assert lines[-1] == "classes: the validation images have none of cat"
    with pytest.raises(InputError, match="none of owl, dog is a class of the data, which has car, truck"):
        opened(tree / "test", "owl\ndog\n", need_train=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("truck\nbuss\n", "buss is no class of the data, did you mean bus.; it has bus, car, cat, truck"),
        ("truck\nroad = truck, bus\n", "truck is in truck and in road; expected it once"),
        ("road = truck, bus\n", "found 1 classes; expected two at least"),
    ],
)
def test_files_of_classes_that_cannot_be_meant(tree, text, message):
    with pytest.raises(InputError, match=message):
        opened(tree, text)


def test_a_part_of_the_images_has_all_classes_in_proportion(tree):
    make_folder(tree / "train" / "cat", ("more",), 24, seed=5)
    trained, val, _ = opened(tree, max_train_images=14, max_val_images=6)
    assert np.bincount(trained.labels).tolist() == [2, 2, 8, 2] and len(val) == 6 and set(val.labels.tolist()) == {0, 1, 2, 3}
    again, _, _ = opened(tree, max_train_images=14)
    assert [again.name(i) for i in range(14)] == [trained.name(i) for i in range(14)]
    assert len(opened(tree, max_train_images=1000)[0]) == 56
    with pytest.raises(InputError, match="--max_train_images takes effect on own images"):
        open_recognition_data(recognition_flags.Data(max_train_images=5), seed=0)


def test_of_one_source_for_both_the_flag_of_validation_images_holds(tree):
    data = recognition_flags.Data(data_path=str(tree), max_train_images=4, max_val_images=8)
    train, val = open_recognition_data(data, seed=0, need_train=False, say=lambda line: None)
    assert train is val and np.bincount(val.labels).tolist() == [2, 2, 2, 2]


def test_classes_of_masks(tmp_path):
    for split in ("train", "val", "test"):
        for number in range(3):
            write_image(tmp_path / "images" / split / f"{number}.jpg", shade=number)
            write_mask(tmp_path / "masks" / split / f"{number}.png", 0, 1, 2, 3)
    (tmp_path / "classes.txt").write_text("sky\ncar\nroad\ntruck\n")
    (tmp_path / "my.txt").write_text("vehicle = car, truck\nsky\n")
    data = segmentation_flags.Data(data_path=str(tmp_path), classes=str(tmp_path / "my.txt"), max_train_images=2)
    lines = []
    trained, val = open_segmentation_data(data, crop_size=32, seed=0, say=lines.append)
    assert trained.classes == ["vehicle", "sky"] and ids(trained) == ids(val) == ids(val.test) == [1, 0, IGNORE, 0]
    assert trained.palette.tolist() == [[128, 0, 0], [0, 0, 0]] and (len(trained), len(val), len(val.test)) == (2, 3, 3)
    assert any("3 images of" in line and "scored once, after training" in line for line in lines)


def test_what_is_a_test(tree, tmp_path):
    make_folder(tree / "Testing", ("bus", "cat"), 2)
    _, val, _ = opened(tree)
    assert len(val.test) == 4 and val.test.labels.tolist() == [0, 0, 2, 2]
    make_folder(tmp_path / "elsewhere" / "x", ("bus", "car"), 1)
    assert len(opened(tree, test_data_path=str(tmp_path / "elsewhere" / "x"))[1].test) == 2
    make_folder(tree / "Testing" / "more" / "..", ("owl",))
    with pytest.raises(InputError, match="has 2? ?.*class.* that the training set lacks"):
        opened(tree)


def test_test_images_are_scored_once_by_the_best_weights(tree):
    make_folder(tree / "test", ("bus", "car", "cat", "truck"), 2, seed=9)
    flags = ("--batch_size", "8", "--epochs", "2", "--warmup_epochs", "0", "--output_dir", tree / "run")
    done = train("--data_path", tree, *flags)
    assert done.returncode == 0, done.stderr
    assert f"data: 8 images of {tree}/test are scored once" in done.stdout and done.stdout.count("test, by best/: top-1") == 1
    found = json.loads((tree / "run/test.json").read_text())
    assert found["images"] == 8
    done = train("--eval", "true", "--data_path", tree, "--eval_data_path", tree / "test", "--finetune", tree / "run/best")
    assert done.returncode == 0 and f"{found['acc1']:.5f} %" in done.stdout, done.stderr
