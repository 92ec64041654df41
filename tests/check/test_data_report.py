"""The report on the data: what is found in files, what is said of it, and what a run and --check_data only leave."""

import json
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
from conftest import forked, make_folder, train
from conftest import lines as lines_of
from PIL import Image
from small_sources import encoded, write, write_parquet
from small_tiffs import write_tiff

from utils.check.facts import find_facts
from utils.check.report import describe
from utils.folders.class_folders import class_folders
from utils.model.as_trained import as_trained
from utils.sources.tables import tables_of_images


def photo(seed=0, size=(64, 48)):
    """Soft areas, as photographs have them."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def photos(root, counts, first=0):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            photo(first + i + 1000 * sum(map(ord, name))).save(root / name / f"{i}.jpg", quality=95)
    return root


def said(root, **options):
    facts = find_facts(*class_folders(root, say=lambda line: None), **options)
    assert json.loads(json.dumps(facts)) == facts
    lines, warnings = describe(facts)
    return lines, "\n".join(warnings)


def test_a_tidy_folder_has_no_warning(tmp_path):
    photos(tmp_path / "train", {"cat": 6, "dog": 8})
    photos(tmp_path / "val", {"cat": 5, "dog": 5}, first=50)
    lines, warnings = said(tmp_path)
    assert warnings == ""
    assert lines == [
        "images per class, to train on + to validate on: cat 6 + 5, dog 8 + 5",
        "training images: JPEG of mode RGB, 64 x 48 pixels",
        "validation images: JPEG of mode RGB, 64 x 48 pixels",
    ]


def test_unequal_classes_are_said_with_the_flag_that_helps(tmp_path):
    photos(tmp_path / "train", {"sound": 12, "cracked": 3})
    photos(tmp_path / "val", {"sound": 2, "cracked": 2}, first=50)
    (line, *_), warnings = said(tmp_path)
    assert line == (
        "images per class, to train on + to validate on: cracked 3 + 2, sound 12 + 2; --sampling balanced or --class_weights "
        "auto helps the rare ones"
    )
    photos(tmp_path / "train", {"wet": 20})
    (line, *_), warnings = said(tmp_path)
    assert "1 of 3 classes have fewer than 5 images to train on (cracked)" in warnings
    assert "only 4 validation images: a score of fewer than 10 is hardly more than a guess" in warnings
    for number in range(10):
        photos(tmp_path / "train", {f"more{number}": 6})
    (line, *_), _ = said(tmp_path)
    assert line.startswith("images per class: 3 to 20 to train on, 0 to 2 to validate on; the smallest class is cracked")


def test_a_messy_folder(without_heif, tmp_path):
    photos(tmp_path / "Train", {"cat": 6, "dog": 8, "test": 5})
    photos(tmp_path / "Valid", {"cat": 4}, first=50)
    for name in ("cat/._0.jpg", "cat/.DS_Store", "dog/Thumbs.db", "dog/@eaDir/0.jpg", "dog/a.HEIC", "dog/b.heic", "cat/x.h5"):
        write(tmp_path / "Train" / name, b"")
    write(tmp_path / "Train" / "loose.jpg", encoded())
    shutil.copy(tmp_path / "Train/cat/0.jpg", tmp_path / "Valid/cat/0 (1).jpg")
    photo(1 + 1000 * sum(map(ord, "cat")), (64, 48)).resize((96, 72)).save(tmp_path / "Valid/cat/smaller.jpg", quality=60)
    shutil.copy(tmp_path / "Train/dog/3.jpg", tmp_path / "Train/cat/dog3.jpg")
    write(tmp_path / "Train/dog/broken.jpg", b"no image")
    lines, warnings = said(tmp_path)
    assert "left out: 2 .heic, 1 .DS_Store, 1 ._*, 1 .h5, 1 @eaDir/, 1 Thumbs.db, 1 images beside the class folders" in lines
    for words in (
        "2 .heic are photographs that are left out",
        "pip install pillow-heif",
        "1 images lie beside the class folders",
        "the class test is called as a split",
        "2 of 3 classes have no validation image (dog, test)",
        "1 of 6 validation images are training images too, byte by byte (Valid/cat/0 (1).jpg = Train/cat/0.jpg)",
        "1 of 6 validation images look like a training image (Valid/cat/smaller.jpg ~ Train/cat/1.jpg)",
        "1 images are in two classes (Train/cat/dog3.jpg = Train/dog/3.jpg)",
        "1 of 21 images looked at cannot be read",
        "only 6 validation images",
    ):
        assert words in warnings, words
    assert len(warnings.splitlines()) == 9


def test_many_classes_of_few_images(tmp_path):
    for split, first in (("train", 0), ("val", 50)):
        photos(tmp_path / split, {str(age): 1 for age in range(20, 62)}, first)
    _, warnings = said(tmp_path)
    photos(tmp_path / "few" / "train", {str(age): 1 for age in range(8)})
    photos(tmp_path / "few" / "val", {str(age): 1 for age in range(8)}, 50)
    assert "is it an age or an id?" in said(tmp_path / "few")[1]
    assert "42 classes in 42 images" in warnings and "is it an age or an id? --label_column" in warnings


def test_depth_and_turned_images(tmp_path):
    photos(tmp_path / "val", {"a": 2, "b": 2}, first=50)
    for name, bright in (("a", 300), ("b", 4000)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 9), bright - i, np.uint16)).save(tmp_path / "train" / name / f"{i}.png")
    turned = photo(7)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "train/a/turned.jpg", exif=turned.getexif())
    from utils.data.look import see

    sources = class_folders(tmp_path)
    see(*sources)
    lines, _ = describe(find_facts(*sources))
    assert (
        "deep greys: 0 is black, 4095 is white (12 bits), as a sample of the data has them; --value_range sets others" in lines
    )
    assert any("EXIF turns 1" in line for line in lines)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_dark_colours_of_sixteen_bits_are_warned_of(tmp_path, kind):
    """12 bits in 16: of these Pillow reads the upper 8, which are 15 at most."""
    for name, largest in (("dark", 4095), ("light", 65535)):
        for split, count in (("train", 3), ("val", 1)):
            for label in ("a", "b"):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for i in range(count):
                    write_rgb16(folder / f"{i}.{kind}", np.full((6, 5, 3), largest - i, np.uint16))
    assert "16 bits a colour, and no value above 4,095 of 65,535" in said(tmp_path / "dark")[1]
    assert "16 bits a colour" not in said(tmp_path / "light")[1]


def write_rgb16(path, pixels):
    """(H, W, 3) uint16 as PNG or TIFF; Pillow writes neither."""
    height, width, _ = pixels.shape
    if path.suffix == ".png":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        parts = [
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        chunks = [
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    else:
        write_tiff(path, [pixels])


def test_only_the_report(tmp_path):
    photos(tmp_path / "data" / "train", {"cat": 6, "dog": 8})
    photos(tmp_path / "data" / "val", {"cat": 2, "dog": 2}, first=50)
    write(tmp_path / "data/val/dog/broken.jpg", b"no image")
    done = train("--data_path", tmp_path / "data", "--check_data", "only", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 of 5 images looked at cannot be read" in done.stdout and "nothing is trained" in done.stdout
    report = json.loads((tmp_path / "out/data_report.json").read_text())
    assert report["val"]["unreadable_names"] == [str(tmp_path / "data/val/dog/broken.jpg")] and report["everything"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data_report.json"]


def test_a_run_keeps_its_report(tmp_path):
    make_folder(tmp_path / "data" / "train", per_class=5)
    make_folder(tmp_path / "data" / "Validation", per_class=5, seed=1)
    flags = ("--batch_size", "4", "--epochs", "1", "--warmup_epochs", "0")
    done = train("--data_path", tmp_path / "data", *flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (
        "data: reads Validation/ as val" in done.stdout
        and "images per class: 5 to train on, 5 to validate on; classes: cat, dog\n" in done.stdout
    )
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    assert report["train"]["per_class"] == [5, 5] and report["lines"] and report["warnings"] == []


def test_time_of_the_look(tmp_path):
    """Less than a second for 10,000 files on a free machine: here for a fifth of them, which all have one size in bytes."""
    data = encoded(9, size=(64, 48))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(1000):
            (tmp_path / name / f"{i}.png").write_bytes(data + f"{name}{i:6}".encode())
    sources = class_folders(tmp_path, val_split=0.1)
    begin = time.process_time()
    find_facts(*sources)
    assert time.process_time() - begin < 1


def test_the_range_of_deep_greys_goes_with_the_weights(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                grey = np.full((30, 32), 200 + 1500 * label + 10 * i, np.uint16)
                Image.fromarray(grey).save(tmp_path / "data" / split / name / f"{i}{split}.png")
    flags = ("--batch_size", "4", "--epochs", "1", "--warmup_epochs", "0", "--data_path", tmp_path / "data")
    done = train(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "deep greys: 0 is black, 2047 is white (11 bits)" in done.stdout
    assert as_trained(str(tmp_path / "run/best")).evaluation["value_range"] == [0, 2047]
    done = train("--predict", tmp_path / "data/val", "--finetune", tmp_path / "run/best", "--output_dir", tmp_path)
    assert done.returncode == 0 and (tmp_path / "predictions.csv").is_file(), done.stderr


@pytest.mark.slow
def test_signs_that_only_transparency_shows_are_said_and_learned_on_a_background(tmp_path):
    """All pixels are stored black; which of them are to be seen tells the classes apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for wide, name in enumerate(("tall", "wide")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels, (x, y) = np.zeros((32, 32, 4), np.uint8), rng.integers(0, 12, 2)
                pixels[y : y + 20 - 14 * wide, x : x + 6 + 14 * wide, 3] = 255
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}{split}.png")
    words = ("--data_path", tmp_path / "data", "--batch_size", 8, "--epochs", 6, "--eval_freq", 6, "--aa", "none", "--lr", 8e-3)
    done = train(*words, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "stored")
    assert done.returncode == 0, done.stderr
    assert "72 of 72 images looked at have transparent parts: the model sees the colour" in done.stdout
    assert max(record.get("test_acc1", 0) for record in lines_of(tmp_path / "stored/log.txt")) == 50
    done = train(*words, "--background", "white", "--output_dir", tmp_path / "white")
    assert "72 of 72 images looked at have transparent parts, which show the colour (255, 255, 255)" in done.stdout, done.stderr
    assert max(record.get("test_acc1", 0) for record in lines_of(tmp_path / "white/log.txt")) > 90
    best = tmp_path / "white/best"
    assert as_trained(str(best)).evaluation["background"] == [255, 255, 255]
    done = train("--predict", tmp_path / "data/val", "--finetune", best, "--output_dir", tmp_path)
    said = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert sum(line.split("/")[0] == line.split(",")[1] for line in said) >= 22, done.stderr


def test_copies_in_a_large_table_are_found_by_the_size_of_their_bytes(tmp_path, monkeypatch):
    """More rows than are compared: only those that have as many bytes as a validation image are."""
    rng = np.random.default_rng(0)
    kinds = [encoded(i, size=(24 + i, 24)) for i in range(30)]
    train_images = [*kinds, *[kinds[int(i)] + b"x" * (1 + n) for n, i in enumerate(rng.integers(0, 30, 400))]]
    write_parquet(tmp_path / "train.parquet", image=train_images, label=[i % 2 for i in range(430)])
    val_images = [kinds[3] + b"val", kinds[7], kinds[5] + b"new", kinds[21]]
    write_parquet(tmp_path / "validation.parquet", image=val_images, label=[0, 1, 0, 1])
    monkeypatch.setattr("utils.check.facts.MOST_ROWS", 40)
    monkeypatch.setattr("utils.check.facts.NEAR", 0)
    found = find_facts(*tables_of_images(str(tmp_path)))["copies"]
    assert found["equal_pairs"] == [["row 1", "row 7"], ["row 3", "row 21"]] and found["compared"] == 4


def test_masks_are_reported_too(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            for kind in ("imgs", "labels"):
                (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
            photo(i + 10 * count).save(tmp_path / "data" / split / "imgs" / f"{i}.jpg")
            mask = np.zeros((48, 64), np.uint8)
            mask[:, :20], mask[:, 30:] = 1, 4
            Image.fromarray(mask).save(tmp_path / "data" / split / "labels" / f"{i}.png")
    done = forked("train_segmentation", "--data_path", tmp_path / "data", "--check_data", "only")
    assert done.returncode == 0, done.stderr
    assert f"data: images from {tmp_path}/data/train/imgs, masks from {tmp_path}/data/train/labels" in done.stdout
    assert "masks: only the values 0, 1, 4 occur" in done.stdout and "training images: JPEG of mode RGB, 64 x 48" in done.stdout


def test_broken_images_that_would_end_the_run_later_end_it_before(tmp_path):
    make_folder(tmp_path / "data" / "train", per_class=20)
    make_folder(tmp_path / "data" / "val", per_class=5, seed=1)
    start = ("--data_path", tmp_path / "data", "--batch_size", 4, "--epochs", 1, "--warmup_epochs", 0)
    for number in range(2):
        (tmp_path / "data/train/cat" / f"{number}.png").write_bytes(b"no image")
        done = train(*start, "--output_dir", tmp_path / f"run{number}")
        assert done.returncode == number, done.stderr  # one is replaced, though it is more than a hundredth of them
    assert "error: 2 of 40 training images cannot be read as images, more than --max_bad_samples 0.01 allows: " in done.stderr
    assert not (tmp_path / "run1").exists() and "broken image, replaced: " in (tmp_path / "run0" / "warnings.txt").read_text()
    (tmp_path / "data/val/cat/0.png").write_bytes(b"no image")
    done = train(*start, "--max_bad_samples", 0.1, "--output_dir", tmp_path / "run2")
    assert done.returncode == 1 and "val/cat/0.png is no image" in done.stderr and not (tmp_path / "run2").exists()
