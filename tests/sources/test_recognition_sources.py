"""What train_recognition.py opens for its flags of data, and the look at the headers of files."""

import pytest
from conftest import make_folder
from small_sources import encoded, write_parquet

from utils.cli.errors import InputError
from utils.cli.recognition_flags import Data
from utils.cli.registry import load
from utils.folders.class_folders import scan_folder
from utils.images.read import BadImage
from utils.sources import RECOGNITION_SETS
from utils.sources.built_in import digits
from utils.sources.recognition import check_headers, check_sources, open_recognition_data


def opened(**flags):
    need_val, dry_run = flags.pop("need_val", True), flags.pop("dry_run", False)
    return open_recognition_data(Data(**flags), seed=0, need_val=need_val, dry_run=dry_run)


def test_every_kind_of_data(tmp_path):
    make_folder(tmp_path / "tree" / "train", ("a", "b"), 5)
    make_folder(tmp_path / "val", ("a", "b"), 2)
    for split, count in (("train", 6), ("test", 2)):
        images = [encoded(i) for i in range(count)]
        write_parquet(tmp_path / "table" / f"{split}.parquet", image=images, label=[i % 2 for i in range(count)])
    tree, table = str(tmp_path / "tree"), str(tmp_path / "table")
    wanted = {
        (1438, 359): {},
        (8, 2): {"data_path": tree, "val_split": 0.2},
        (10, 4): {"data_path": tree, "eval_data_path": str(tmp_path / "val"), "data_set": "image_folder"},
        (10, 0): {"data_path": tree, "need_val": False},
        (6, 2): {"dataset": table, "nb_classes": 2},
    }
    for counts, flags in wanted.items():
        train, val = opened(**flags)
        assert (len(train), len(val)) == counts and len(train.labels) == len(train) and train.title
    stream, val = opened(dataset=table, streaming=True)
    assert (len(stream), len(val)) == (6, 2) and stream.title == f"{table}, streamed"


def test_labels_of_one_class_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", image=[encoded(i) for i in range(8)], label=[1] * 8)
    with pytest.raises(InputError, match="found one class, 1; expected two at least"):
        opened(dataset=str(tmp_path), val_split=0.3)


def test_the_number_of_classes_is_compared():
    assert opened(nb_classes=10)
    with pytest.raises(InputError, match=r"--nb_classes 7: the data has 10 classes \(0, 1, 2, 3, 4, …\); leave the flag out"):
        opened(nb_classes=7)


def test_published_data_sets_are_counted_in_a_dry_run(tmp_path):
    for name, known in RECOGNITION_SETS.items():
        assert callable(load(known.load))
        train, val = opened(data_set=name, data_path=str(tmp_path), dry_run=True)  # nothing is downloaded
        assert (len(train), len(val), len(train.classes)) == (known.train_images, known.val_images, known.classes)
        assert train.title == f"{known.title} by its published size" and len(train.labels) == len(train)
    nowhere = str(tmp_path / "imagenet")
    train, val = opened(data_path=nowhere, nb_classes=1000, dry_run=True)
    assert (len(train), len(val)) == (1_281_167, 50_000)
    assert train.title == f"ImageNet-1K by its published size ({nowhere} is not here)"
    for flags in ({"nb_classes": 5}, {}):
        with pytest.raises(InputError, match="no such folder; to count without it, give --nb_classes 1000 or 21841"):
            opened(data_path=nowhere, dry_run=True, **flags)
    with pytest.raises(InputError, match="no such folder"):
        opened(data_path=nowhere, nb_classes=1000)


def test_headers_of_broken_files_are_named(tmp_path):
    make_folder(tmp_path, ("a", "b"), 3, suffix=".jpg")
    check_headers(scan_folder(tmp_path))
    check_headers(digits()[1])  # no files
    (tmp_path / "b" / "text.jpg").write_bytes(b"not an image")
    with pytest.raises(BadImage, match="text.jpg is no image"):
        check_headers(scan_folder(tmp_path))
    val = scan_folder(make_folder(tmp_path / "val", ("a", "b"), 1))
    check_sources(None, val)
    val.test = scan_folder(tmp_path)
    with pytest.raises(BadImage, match="text.jpg is no image"):  # before training, not after it
        check_sources(None, val)
    (tmp_path / "b" / "text.jpg").unlink()
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadImage, match="gone.jpg cannot be read as an image .No such file"):
        check_headers(scan_folder(tmp_path))
