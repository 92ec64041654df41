"""Own data in folders: classes, splits, masks and their images, and errors that name what is wrong."""

import shutil

import numpy as np
import pytest
from conftest import make_folder
from PIL import Image
from small_sources import SIZE, encoded, ids, names, write, write_image, write_mask

from utils.cli.errors import InputError
from utils.folders.class_folders import class_folders, scan_folder
from utils.images.read import IGNORE, BadImage
from utils.mask_folders.pairs import mask_folders

# --- recognition


def test_folders_with_train_and_val(tmp_path):
    make_folder(tmp_path / "train", ("a", "b", "c"), 3)
    make_folder(tmp_path / "val", ("a", "c"), 2)  # labels follow the classes of train
    (tmp_path / "train" / "a" / ".DS_Store").write_text("")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image by its name")
    write(tmp_path / "train" / "b" / "more" / "déjà vu \udcff.png", encoded(mode="L"))
    train, val = class_folders(tmp_path)
    assert np.bincount(train.labels).tolist() == [3, 4, 3] and val.labels.tolist() == [0, 0, 2, 2]
    assert all(train.read(i).mode == "RGB" for i in range(len(train)))
    assert train.encoded(0) == (tmp_path / "train" / "a" / "0.png").read_bytes()
    assert len(class_folders(tmp_path, eval_data_path=tmp_path / "train")[1]) == 10
    train, val = class_folders(tmp_path / "train", need_val=False)
    assert (len(train), len(val)) == (10, 0)


def test_val_split_of_one_tree(tmp_path):
    make_folder(tmp_path, ("a", "b"), 20)
    train, val = class_folders(tmp_path, val_split=0.1)
    assert np.bincount(train.labels).tolist() == [18, 18] and np.bincount(val.labels).tolist() == [2, 2]
    assert len({*map(train.name, range(36)), *map(val.name, range(4))}) == 40
    make_folder(tmp_path / "x" / "train")
    make_folder(tmp_path / "x" / "val")
    with pytest.raises(InputError, match="--val_split 0.1: there is a validation set already"):
        class_folders(tmp_path / "x", val_split=0.1)


@pytest.mark.parametrize(
    ("folders_of", "message"),
    [
        (None, "no such folder, did you mean images"),
        ({}, r"found no folders; expected train/ and val/"),
        ({"": ("cat", "dog")}, r"found cat, dog; expected train/ and val/ .* --val_split 0.1"),
        ({"train": ("cat", "dog"), "val": ("cat", "cow")}, r"1 class that the training set lacks \(cow\)"),
        ({"train": ("cat", "dog"), "train/owl": (), "val": ("cat",)}, "no images in class folder owl"),
        ({"train": ("cat", "dog"), "val": ()}, "0 images and no folders: expected one folder per class"),
    ],
)
def test_wrong_class_folders(tmp_path, folders_of, message):
    (tmp_path / "images").mkdir()
    for below, classes in (folders_of or {}).items():
        make_folder(tmp_path / "imagez" / below, classes)
        (tmp_path / "imagez" / below).mkdir(parents=True, exist_ok=True)
    if folders_of == {}:
        (tmp_path / "imagez").mkdir()
    with pytest.raises(InputError, match=message):
        class_folders(tmp_path / "imagez")


def test_a_folder_in_place_of_an_image_is_a_sample_and_named(tmp_path):
    make_folder(tmp_path, ("a", "b"), 2)
    write(tmp_path / "b" / "5.jpg" / "notes.txt", b"no image by its name")
    make_folder(tmp_path / "a", ("album.png",), 2)  # one that holds images is a folder like any other
    tree = scan_folder(tmp_path)
    assert np.bincount(tree.labels).tolist() == [4, 3]
    place = next(i for i in range(7) if tree.name(i).endswith("5.jpg"))
    for read in (tree.read, tree.encoded):
        with pytest.raises(BadImage, match="b/5.jpg cannot be read as an image .Is a directory"):
            read(place)


def test_names_of_broken_files_do_not_break_a_line(tmp_path):
    write(tmp_path / "a\nb" / "c\x1b[2J\udcff.png", b"no image")
    with pytest.raises(BadImage, match=r"a\\nb/c\\x1b\[2J\\udcff.png is no image"):
        scan_folder(tmp_path).read(0)


# --- segmentation


def make_pairs(root, train=2, val=1, values=(0, 1, 2, 255)):
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            write_image(root / "images" / split / f"{number}.jpg")
            write_mask(root / "masks" / split / f"{number}.png", *values)
    return root


def test_masks_and_their_images(tmp_path):
    make_pairs(tmp_path)
    write_image(tmp_path / "images/train/deeper/x.y.png")
    write_mask(tmp_path / "masks/train/deeper/x.y.png", 2, 0)
    write(tmp_path / "masks/train/.DS_Store", b"")
    write(tmp_path / "images/train/notes.txt", b"no image by its name")
    for kind in ("images", "masks"):  # links in a circle
        (tmp_path / kind / "train" / "again").symlink_to(tmp_path / kind / "train")
    train, val = mask_folders(tmp_path)
    assert names(train) == ["0.jpg", "1.jpg", "x.y.png"] and names(val) == ["0.jpg"]
    assert train.classes == ["class 0", "class 1", "class 2"] and ids(train) == [0, 1, 2, IGNORE] and ids(train, 2) == [2, 0]
    assert train.read(0)[0].size == SIZE and train.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_masks_of_sixteen_bits(tmp_path):
    make_pairs(tmp_path)
    deep = np.tile(np.array([0, 255, 299, 65535], np.uint16).repeat(4), (12, 1))
    Image.fromarray(deep).save(tmp_path / "masks/train/0.png")
    train, _ = mask_folders(tmp_path)
    assert len(train.classes) == 300 and ids(train) == [0, 255, 299, IGNORE]
    assert ids(train, 1) == [0, 1, 2, IGNORE]  # one of 8 bits among them has its own ignored value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "found 0 names, expected two classes at least"),
        (b"sky\n", "found 1 names, expected two classes at least"),
        (b"a\nb\na\n", "a is in it more than once"),
        (b"\xff\xfe", "classes.txt cannot be read as text"),
    ],
)
def test_lists_of_classes(tmp_path, text, message):
    make_pairs(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"sky\n\n tree \na\x1b[2J\ncar\n")
    assert mask_folders(tmp_path)[0].classes == ["sky", "tree", "a\\x1b[2J", "car"]
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(InputError, match=message):
        mask_folders(tmp_path)


def test_masks_of_0_and_255_are_two_classes_and_of_0_none(tmp_path):
    train, _ = mask_folders(make_pairs(tmp_path / "binary", values=(0, 255)))
    assert train.classes == ["background", "foreground"] and ids(train) == [0, 1] and "255 is foreground" in train.notes[0]
    make_pairs(tmp_path, values=(0,))
    with pytest.raises(InputError, match="hold no class but 0 .* 0 and 1 for two"):
        mask_folders(tmp_path)


@pytest.mark.parametrize("listed", [".", "archive"])
@pytest.mark.parametrize("layout", ["images first", "splits first", "no splits"])
def test_classes_txt_may_lie_in_the_folder_that_an_archive_makes(tmp_path, layout, listed):
    make_pairs(tmp_path / "archive", values=(0, 1), val=2)
    if layout == "no splits":
        for kind in ("images", "masks"):
            (tmp_path / "archive" / kind / "train").rename(tmp_path / kind)
            shutil.rmtree(tmp_path / "archive" / kind)
            (tmp_path / kind).rename(tmp_path / "archive" / kind)
    if layout == "splits first":
        for kind in ("images", "masks"):
            for split in ("train", "val"):
                (tmp_path / "archive" / split).mkdir(exist_ok=True)
                (tmp_path / "archive" / kind / split).rename(tmp_path / "archive" / split / kind)
            (tmp_path / "archive" / kind).rmdir()
    (tmp_path / listed / "classes.txt").write_text("sky\nroad\ncar\n")
    train, _ = mask_folders(tmp_path, val_split=0.5 if layout == "no splits" else None, say=lambda line: None)
    assert train.classes == ["sky", "road", "car"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("none", "found nothing in it; expected images/train, images/val, masks/train, masks/val"),
        ("no val", "found .*images/train and .*masks/train; expected images/train, .* or give --val_split 0.1"),
        ("empty", "masks/val: no such files in it; expected images such as .jpg or .png"),
        ("no mask", r"no mask for 1 of \d images: .*train/1.jpg"),
        ("no image", r"no image for 1 of \d masks: .*val/0.png"),
        ("twice", r"0.(jpg|png) and .*0.(jpg|png) have the same name"),
        ("two of a split", r"images: val/ and validation/ are both the same split by their names; keep one"),
    ],
)
def test_wrong_mask_folders(tmp_path, wrong, message):
    if wrong != "none":
        make_pairs(tmp_path)
    if wrong == "no val":
        (tmp_path / "images/val").rename(tmp_path / "images/test")
    if wrong == "empty":
        (tmp_path / "masks/val/0.png").unlink()
    if wrong == "no mask":
        (tmp_path / "masks/train/1.png").unlink()
    if wrong == "no image":
        (tmp_path / "images/val/0.jpg").rename(tmp_path / "images/val/1.jpg")
        write_mask(tmp_path / "masks/val/1.png", 0, 1)
    if wrong == "twice":
        write_image(tmp_path / "images/train/0.png")
    if wrong == "two of a split":  # whose images and masks would be left out
        write_image(tmp_path / "images/validation/5.jpg")
        write_mask(tmp_path / "masks/validation/5.png", 0, 1)
    with pytest.raises(InputError, match=message):
        mask_folders(tmp_path)


def test_heic_images_of_masks_are_named(without_heif, tmp_path):
    make_pairs(tmp_path, train=3)
    (tmp_path / "images/train/1.jpg").rename(tmp_path / "images/train/1.HEIC")
    with pytest.raises(InputError, match="no image for 1 of 3 masks: .*; left out: 1 .heic: pip install pillow-heif"):
        mask_folders(tmp_path)


def test_what_is_broken_is_the_image_or_the_mask(tmp_path):
    make_pairs(tmp_path, train=4)
    write_mask(tmp_path / "masks/train/0.png", 0, 1, 9)
    write_mask(tmp_path / "masks/train/1.png", 0, 1, size=(15, 12))
    write(tmp_path / "images/train/2.jpg", b"no")
    write(tmp_path / "images/train/3.jpg", b"no")
    write(tmp_path / "masks/train/3.png", b"no")
    write(tmp_path / "classes.txt", b"a\nb\nc")
    train, _ = mask_folders(tmp_path)
    with pytest.raises(InputError, match="0.png: the mask holds 9, which is no class; expected 0..2, 255"):
        train.read(0)
    with pytest.raises(InputError, match="1.jpg: the image has 16 x 12 pixels, its mask 15 x 12"):
        train.read(1)
    with pytest.raises(BadImage, match="2.jpg is no image"):
        train.read(2)
    with pytest.raises(InputError, match="3.png is no image") as error:  # which no other image can replace
        train.read(3)
    assert not isinstance(error.value, BadImage)
