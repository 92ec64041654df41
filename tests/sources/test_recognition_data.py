"""Sources of images: formats, splits, classes, Parquet, and errors that name what is wrong."""

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

from utils.augment.timm import eval_geometry, eval_transform, train_transform
from utils.cli.errors import InputError
from utils.data.string_list import StringList
from utils.images import BadImage
from utils.sources.recognition import check_headers, digits, folders, hub_table, scan_folder, stratified_split


def test_digits_are_split_for_good():
    train, val = digits()
    assert (len(train.labels), len(val.labels)) == (1438, 359) and train.classes == [str(i) for i in range(10)]
    image = np.asarray(train.read(0))
    assert image.shape == (8, 8, 3) and image.max() > 200
    counts = np.bincount(val.labels)
    assert counts.min() >= 35 and counts.max() <= 37


def test_folders_with_train_and_val(tmp_path):
    make_folder(tmp_path / "train", ("a", "b", "c"), 3)
    make_folder(tmp_path / "val", ("a", "c"), 2)  # labels follow the classes of train
    (tmp_path / "train" / "a" / ".DS_Store").write_text("")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image by its name")
    (tmp_path / "train" / "b" / "more").mkdir()
    Image.new("L", (5, 5)).save(
        tmp_path
        / "train"
        / "b"
        / "more"
        / "déjà vu \udcff.png".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    )
    train, val = folders(tmp_path)
    assert np.bincount(train.labels).tolist() == [3, 4, 3] and val.labels.tolist() == [0, 0, 2, 2]
    assert all(train.read(i).mode == "RGB" for i in range(10))
    again = folders(tmp_path, eval_data_path=tmp_path / "train")
    assert len(again[1].labels) == 10


def test_val_split_is_stratified_and_fixed_by_the_seed(tmp_path):
    make_folder(tmp_path, ("a", "b"), 20)
    (train, val), (_, same), (_, other) = (folders(tmp_path, val_split=0.1, seed=seed) for seed in (0, 0, 1))
    assert np.bincount(train.labels).tolist() == [18, 18] and np.bincount(val.labels).tolist() == [2, 2]
    names = [[split.name(i) for i in range(len(split.labels))] for split in (train, val, same, other)]
    assert not set(names[0]) & set(names[1]) and names[1] == names[2] and names[1] != names[3]
    labels = [0] * 10 + [1] * 1 + [2] * 2
    train, val = stratified_split(labels, 0.5, 0)
    assert sorted([*train, *val]) == list(range(13)) and 10 in train and len(val) == 6


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
def test_wrong_folders(tmp_path, folders_of, message):
    (tmp_path / "images").mkdir()
    for below, classes in (folders_of or {}).items():
        make_folder(tmp_path / "imagez" / below, classes)
        (tmp_path / "imagez" / below).mkdir(parents=True, exist_ok=True)
    if folders_of == {}:
        (tmp_path / "imagez").mkdir()
    with pytest.raises(InputError, match=message):
        folders(tmp_path / "imagez")


def test_headers_of_broken_files_are_named(tmp_path):
    make_folder(tmp_path, ("a", "b"), 3, suffix=".jpg")
    check_headers(scan_folder(tmp_path))
    check_headers(digits()[1])  # no files, nothing to look at
    for name, content in {"text.jpg": b"not an image", "empty.png": b""}.items():
        path = tmp_path / "b" / name
        path.write_bytes(content)
        with pytest.raises(BadImage, match=f"{name} is no image"):
            check_headers(scan_folder(tmp_path))
        path.unlink()
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadImage, match="gone.jpg cannot be read as an image .No such file"):
        check_headers(scan_folder(tmp_path))


def test_a_folder_in_place_of_an_image_is_a_sample_and_named(tmp_path):
    make_folder(tmp_path, ("a", "b"), 2)
    (tmp_path / "b" / "5.jpg").mkdir()
    (tmp_path / "b" / "5.jpg" / "notes.txt").write_text("no image by its name")
    make_folder(tmp_path / "a", ("album.png",), 2)  # one that holds images is a folder like any other
    scan = scan_folder(tmp_path)
    assert np.bincount(scan.labels).tolist() == [4, 3]
    place = next(i for i in range(7) if scan.name(i).endswith("5.jpg"))
    for read in (scan.read, scan.encoded):
        with pytest.raises(BadImage, match="b/5.jpg cannot be read as an image .Is a directory"):
            read(place)


def test_files_as_they_are(tmp_path):
    make_folder(tmp_path, ("a",), 1)
    scan = scan_folder(tmp_path)
    assert scan.encoded(0) == (tmp_path / "a" / "0.png").read_bytes() and digits()[0].encoded(0) is None


# --- the library datasets


def png(value):
    import io

    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(file, "png")
    return file.getvalue()


def parquet(path, labels, image="image", label="label", as_struct=True):
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": png(i), "path": None} if as_struct else png(i) for i in range(len(labels))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(labels))), image: images, label: labels}), path)


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_with_embedded_bytes(tmp_path, as_struct):
    parquet(tmp_path / "train.parquet", ["b", "a", "c", "a"], "img", "class", as_struct)
    parquet(tmp_path / "validation.parquet", ["c", "a"], "img", "class", as_struct)
    train, val = hub_table(str(tmp_path))
    assert train.classes == ["a", "b", "c"] and train.labels.tolist() == [1, 0, 2, 0] and val.labels.tolist() == [2, 0]
    assert np.asarray(train.read(3))[0, 0].tolist() == [3, 3, 3] and train.read(0).size == (6, 5)
    assert train.encoded(3) == png(3)


def test_parquet_split_here_and_columns_by_name(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1] * 10, "picture", "kind")
    with pytest.raises(InputError, match="which column holds the labels. found id .int64., picture .*, kind"):
        hub_table(str(tmp_path), val_split=0.2)
    train, val = hub_table(str(tmp_path), label_column="kind", val_split=0.2)
    assert (len(train.labels), len(val.labels), train.classes) == (16, 4, ["0", "1"])
    value = np.asarray(val.read(0))[0, 0, 0]
    assert value % 2 == val.labels[0]  # image and label belong together
    with pytest.raises(InputError, match="no such column; found id"):
        hub_table(str(tmp_path), image_column="foto", val_split=0.2)
    with pytest.raises(InputError, match="give --val_split"):
        hub_table(str(tmp_path), label_column="kind")


def test_imagefolder_and_saved_to_disk(tmp_path):
    import datasets

    make_folder(tmp_path / "images" / "train", ("a", "b"), 3)
    make_folder(tmp_path / "images" / "test", ("a", "b"), 2)
    train, val = hub_table(str(tmp_path / "images"))
    assert train.classes == ["a", "b"] and len(train.labels) == 6 and val.labels.tolist() == [0, 0, 1, 1]
    datasets.load_dataset(str(tmp_path / "images")).save_to_disk(tmp_path / "arrow")
    saved, _ = hub_table(str(tmp_path / "arrow"))
    assert saved.labels.tolist() == train.labels.tolist() and saved.read(0).size == (40, 30)


def test_labels_that_train_lacks_and_data_that_is_not_there(tmp_path):
    parquet(tmp_path / "train.parquet", ["a", "b"])
    parquet(tmp_path / "test.parquet", ["a", "z"])
    with pytest.raises(InputError, match=r"training split lacks \(z\)"):
        hub_table(str(tmp_path))
    with pytest.raises(InputError, match="cannot load it"):
        hub_table(str(tmp_path / "nothing"))


# --- leaves


def test_string_list_keeps_any_name():
    names = ["a", "", "ü/ö", "bad\udcff", "x" * 300]
    kept = StringList(names)
    assert list(kept) == names and kept[-1] == names[-1] and len(kept) == 5
    with pytest.raises(IndexError):
        kept[5]


def test_eval_geometry_follows_the_published_rule():
    assert eval_geometry(224) == (0.875, "center") and eval_geometry(224, 0.9) == (0.9, "center")
    assert eval_geometry(384) == (1.0, "squash") and eval_geometry(32) == (1.0, "squash")
    wide = Image.fromarray(np.tile(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (200, 1, 3)))
    crop, warp = eval_transform(224)(wide), eval_transform(384)(wide)
    assert crop.shape == (3, 224, 224) and warp.shape == (3, 384, 384)
    assert crop[0, 0, 0] > warp[0, 0, 0] + 0.5  # the crop leaves out the dark left end, the warp shows it


def test_posterize_to_no_bits_is_black():
    transform = train_transform(64, aa="rand-m10-inc1", hflip=0.0, scale=(1, 1), ratio=(1, 1))
    ops = [op for op in transform.transforms[1].ops if op.name == "PosterizeIncreasing"]
    op = ops[0]
    op.prob = 1.0
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    assert np.asarray(op(picture)).max() == 0
    for policy in ("original", "originalr", "v0", "augmix-m9-w3"):
        augment = train_transform(40, aa=policy)
        for _ in range(40):
            assert augment(picture).shape == (3, 40, 40)
    assert torch.is_tensor(transform(picture))
