"""What people's folders really hold: splits of other names, split folders that would be classes, runs, copies, groups."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_folder
from PIL import Image
from small_sources import encoded, names, write, write_image, write_mask

from utils.cli.errors import InputError
from utils.folders.class_folders import class_folders
from utils.folders.copies import equal_groups, look_alike
from utils.mask_folders.pairs import MaskOptions, mask_folders
from utils.sources.recognition import open_recognition_data
from utils.sources.segmentation import check_sources


@pytest.mark.parametrize(("first", "second"), [("Train", "VAL"), ("training", "valid"), ("TRAINING", "Validation")])
def test_splits_have_many_names(tmp_path, first, second):
    make_folder(tmp_path / "data" / first, per_class=3)
    make_folder(tmp_path / "data" / second, per_class=2)
    make_folder(tmp_path / "data" / "Testing", per_class=1)
    write(tmp_path / "__MACOSX" / "x", b"")  # beside the only folder of an archive
    lines = []
    for root in (tmp_path / "data", tmp_path):
        trained, val = class_folders(root, say=lines.append)
        assert (len(trained), len(val), trained.classes, trained.notes) == (6, 4, ["cat", "dog"], ())
    assert f"data: read from {tmp_path}/data, the only folder there" in lines


def test_a_test_split_is_validated_on_aloud_or_left_alone(tmp_path):
    make_folder(tmp_path / "Training", per_class=10)
    make_folder(tmp_path / "Testing", per_class=3, seed=1)
    trained, val = class_folders(tmp_path)
    assert (len(trained), len(val)) == (20, 6) and "Testing/ is validated on" in trained.notes[0]
    trained, val = class_folders(tmp_path, val_split=0.2)
    assert (len(trained), len(val), trained.notes) == (16, 4, ()) and "Testing" not in val.name(0)


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        (("train", "Training", "val"), {}, "train/ and Training/ are both the same split"),
        (("test", "cat", "dog"), {"val_split": 0.2}, "found test/ beside the folders cat, dog; .* move the classes"),
        (("val",), {}, "found val/ and no train/"),
        (("test", "val"), {"val_split": 0.2}, "there is a validation set already"),
        (("x/train", "x/test"), {"val_split": 0.2}, None),  # the folder of an archive
        (("train/train", "train/val"), {}, None),
        (("x/train", "x/test", "y/q"), {"val_split": 0.2}, "the folder x holds test/, train/, which are splits"),
    ],
)
def test_splits_never_become_classes(tmp_path, folders, options, message):
    for folder in folders:
        make_folder(tmp_path / folder)
    if message is None:
        trained, _ = class_folders(tmp_path, **options)
        assert trained.classes == ["cat", "dog"]
        return
    with pytest.raises(InputError, match=message):
        class_folders(tmp_path, **options)


def test_classes_that_are_splits_by_their_names_are_refused(tmp_path):
    make_folder(tmp_path / "train", ("train", "test"))
    make_folder(tmp_path / "val", ("train", "test"))
    with pytest.raises(InputError, match="the folders test, train are splits by their names, not classes"):
        class_folders(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    make_folder(tmp_path, ("bus", "car", "train"))
    assert class_folders(tmp_path, val_split=0.25)[0].classes == ["bus", "car", "train"]


@pytest.mark.parametrize("table", [None, "labels.csv"])
def test_one_class_is_refused(tmp_path, table):
    from utils.cli.recognition_flags import Data

    make_folder(tmp_path, ("images",))
    if table:
        (tmp_path / table).write_text("id,label\n0,cat\n")
    with pytest.raises(
        InputError, match="found one class, images; expected two at least: " + ("if labels.csv" if table else "a folder")
    ):
        open_recognition_data(Data(data_path=str(tmp_path), val_split=0.5), seed=0)
    assert open_recognition_data(Data(data_path=str(tmp_path)), seed=0, need_train=False)  # an evaluation may have one


def test_runs_in_the_data_are_left_out(tmp_path):
    make_folder(tmp_path)
    make_folder(tmp_path / "output" / "train_recognition" / "2026", ("pictures",))
    (tmp_path / "output/train_recognition/2026/args.json").write_text(json.dumps({"settings": {}, "args": {}}))
    trained, _ = class_folders(tmp_path, val_split=0.25)
    assert trained.classes == ["cat", "dog"] and trained.left_out == {"runs": 1}
    (tmp_path / "output/train_recognition/2026/args.json").write_text("[1]")  # of another program
    assert class_folders(tmp_path, val_split=0.25)[0].classes == ["cat", "dog", "output"]


# --- copies and groups


def test_copies_are_kept_on_one_side(tmp_path):
    make_folder(tmp_path, per_class=12)
    lines, held_out = [], class_folders(tmp_path, val_split=0.25, say=print)[1].name(0)
    for number in range(1, 7):  # some of the copies would be held out, too
        shutil.copy(held_out, held_out.replace(".png", f" ({number}).png"))
    trained, val = class_folders(tmp_path, val_split=0.25, say=lines.append)
    copied = [sum(held_out.removesuffix(".png") in part.name(i) for i in range(len(part))) for part in (trained, val)]
    assert sorted(copied) == [0, 7] and len(trained) + len(val) == 30
    assert len(lines) == 1 and "held-out images are training images too, byte by byte" in lines[0]


def test_where_all_images_are_copies_the_split_stays(tmp_path):
    write(tmp_path / "a" / "0.png", encoded())
    for name in ("a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"):
        write(tmp_path / name, encoded())
    lines = []
    trained, val = class_folders(tmp_path, val_split=0.3, say=lines.append)
    assert (len(trained), len(val)) == (4, 2) and "warning: all held-out images are copies of training images" in lines[0]


def test_equal_files_are_found_by_all_of_their_bytes(tmp_path):
    big = np.random.default_rng(0).bytes(30_000)
    other = big[:15_000] + b"x" + big[15_001:]
    for name, data in {"a": big, "b": other, "c": big, "d": b"1", "e": b"2", "f": b"1"}.items():
        (tmp_path / name).write_bytes(data)
    assert equal_groups([str(tmp_path / name) for name in "abcdef"] + [str(tmp_path / "none")]) == [[0, 2], [3, 5]]


def test_pictures_that_look_alike(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)).resize((80, 60), 2) for _ in range(12)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    pictures[3].resize((120, 90)).save(tmp_path / "again.jpg", quality=50)
    Image.new("RGB", (80, 60), 99).save(tmp_path / "plain.png")
    files = [str(tmp_path / f"{i}.png") for i in range(10)] + [str(tmp_path / "plain.png")]
    others = [str(tmp_path / name) for name in ("10.png", "again.jpg", "plain.png", "11.png")]
    assert look_alike(files, others) == [(3, 1)]
    import utils.folders.copies as copies

    copies.PAIRS, pairs = 1, copies.PAIRS  # as for millions of pictures
    try:
        assert look_alike([*files, str(tmp_path / "again.jpg")], others) == [(11, 1)]
    finally:
        copies.PAIRS = pairs


def test_groups_stay_together(tmp_path):
    for name in ("ill", "well"):
        (tmp_path / name).mkdir()
        for patient in range(10):
            for view in range(3):
                write(tmp_path / name / f"p{patient:02d}{name[0]}_{view}.png", encoded((patient * 20, view, len(name))))
    lines = []
    trained, val = class_folders(tmp_path, val_split=0.2, seed=3, say=lines.append, group_by="^[^_]+")
    patients = [{name.partition("_")[0] for name in names(part)} for part in (trained, val)]
    assert not patients[0] & patients[1] and len(trained) + len(val) == 60
    assert np.bincount(val.labels).tolist() == [6, 6] and lines == [
        "groups: 20 by --group_by, of 3 images each; 0 names match nothing"
    ]
    for pattern, message in (
        ("(", "no regular expression"),
        ("xyz", "found 0 groups among 60 names such as"),
        ("p", "cannot be|found 1"),
    ):
        with pytest.raises(InputError, match=message):
            class_folders(tmp_path, val_split=0.2, group_by=pattern)


# --- masks


def pairs(images, masks, count=3, values=(0, 1), suffix="", first=0):
    for i in range(first, first + count):
        write_image(images / f"{i}.jpg", shade=i)
        write_mask(masks / f"{i}{suffix}.png", *values)


@pytest.mark.parametrize(
    ("images", "masks", "splits"),
    [
        ("imgs/{}", "labels/{}", ("train", "val")),
        ("{}/Images", "{}/Masks", ("Training", "valid")),
        ("data/{}/image", "data/{}/annotations", ("train", "validation")),
    ],
)
def test_layouts_of_masks(tmp_path, images, masks, splits):
    for i, split in enumerate(splits):
        pairs(tmp_path / images.format(split), tmp_path / masks.format(split), 3 - i, suffix="_mask", first=10 * i)
    lines = []
    trained, val = mask_folders(tmp_path, options=MaskOptions(suffix="_mask"), say=lines.append)
    assert names(trained) == ["0.jpg", "1.jpg", "2.jpg"] and names(val) == ["10.jpg", "11.jpg"] and "images from" in lines[0]
    with pytest.raises(InputError, match="give --mask_suffix _mask"):
        mask_folders(tmp_path)


def test_masks_without_splits_are_parted(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", 10)
    with pytest.raises(InputError, match="give --val_split 0.1 to hold out a part of them"):
        mask_folders(tmp_path)
    trained, val = mask_folders(tmp_path, val_split=0.2)
    assert (len(trained), len(val)) == (8, 2) and not set(names(trained)) & set(names(val))
    assert (
        names(mask_folders(tmp_path, val_split=0.2)[1]) == names(val) != names(mask_folders(tmp_path, val_split=0.2, seed=1)[1])
    )


@pytest.mark.parametrize("split", ["", "train"])
def test_masks_without_validation_images_are_trained_on_or_evaluated(tmp_path, split):
    pairs(tmp_path / "images" / split, tmp_path / "masks" / split, 10)
    trained, val = mask_folders(tmp_path, need_val=False, say=lambda line: None)  # --disable_eval true
    assert (len(trained), len(val), val.classes) == (10, 0, trained.classes)
    check_sources(trained, val)
    for need_train in (False, None):  # of an evaluation
        if split == "train":  # which is not what a score is of
            with pytest.raises(InputError, match="found .*train; expected images/train, images/val"):
                mask_folders(tmp_path, need_train)
        else:
            assert len(mask_folders(tmp_path, need_train)[1]) == 10
