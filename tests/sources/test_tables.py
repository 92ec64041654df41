"""Tables of the library `datasets`: columns, splits, labels and masks of every kind, and what is wrong with them."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import make_folder
from small_sources import SIZE, encoded, encoded_mask, images, letter, shade, write_images, write_masks, write_parquet

from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.cli.recognition_flags import Data
from utils.images.read import IGNORE, BadImage
from utils.sources.mask_tables import tables_of_masks
from utils.sources.recognition import open_recognition_data
from utils.sources.tables import stream_of_images, tables_of_images

# --- recognition


def test_images_and_labels(tmp_path):
    write_images(tmp_path, letter)
    train, val = tables_of_images(str(tmp_path))
    assert train.classes == val.classes == ["a", "b", "c"] and (len(train), len(val)) == (12, 5)
    assert train.labels.tolist() == [2, 0, 1] * 4 and val.labels.tolist() == [2, 0, 1, 2, 0] and train.labels.dtype == np.int64
    assert shade(train.read(3)) == 3 and train.read(0).size == SIZE and train.encoded(3) == encoded(3)
    assert train.name(3) == "row 3, column 'image'"


def test_rows_that_are_held_out(tmp_path):
    write_parquet(tmp_path / "train.parquet", image=images(20), label=[i % 2 for i in range(20)])
    with pytest.raises(InputError, match="give --val_split"):
        tables_of_images(str(tmp_path))
    train, val = tables_of_images(str(tmp_path), val_split=0.2, seed=1)
    assert (len(train), len(val), train.classes) == (16, 4, ["0", "1"])
    for source in (train, val):
        assert all(shade(source.read(i)) % 2 == source.labels[i] for i in range(len(source)))
    write_parquet(tmp_path / "test.parquet", image=images(2), label=[0, 1])
    assert len(tables_of_images(str(tmp_path), val_split=0.2)[1]) == 4  # a test split does not choose the best
    assert "--val_split 0.1 holds out a part of the training images" in tables_of_images(str(tmp_path))[0].notes[0]
    write_parquet(tmp_path / "val.parquet", image=images(2), label=[-1, -1])
    assert "validation has no labels" in tables_of_images(str(tmp_path))[0].notes[0]
    write_parquet(tmp_path / "val.parquet", image=images(2), label=[0, 1])
    assert not tables_of_images(str(tmp_path))[0].notes
    with pytest.raises(InputError, match="--val_split 0.2: the data set has a split 'validation' already"):
        tables_of_images(str(tmp_path), val_split=0.2)


def test_a_split_that_chose_nothing_is_scored_at_the_end(tmp_path):
    told = []
    write_parquet(tmp_path / "train.parquet", image=images(9), label=["a", "b", "c"] * 3)
    write_parquet(tmp_path / "test.parquet", image=images(4), label=["c", "b", "c", "a"])
    assert (
        tables_of_images(str(tmp_path), say=told.append)[1].test is None and not told
    )  # it chooses the best, and that is said
    _, val = tables_of_images(str(tmp_path), val_split=0.4, say=told.append)
    assert "4 images of the split test are scored once" in told[-1] and val.test.labels.tolist() == [2, 1, 2, 0]
    write_parquet(tmp_path / "validation.parquet", image=images(3), label=["a", "b", "c"])
    (tmp_path / "groups.txt").write_text("c\nab = a, b\n")
    flags = ["--dataset", str(tmp_path), "--classes", str(tmp_path / "groups.txt")]
    data = Data.of(parse("train_recognition.py", "", flags))
    assert open_recognition_data(data, seed=0)[1].test.labels.tolist() == [0, 1, 0, 1]
    assert getattr(open_recognition_data(data, seed=0, need_train=False)[1], "test", None) is None  # of an evaluation
    write_parquet(tmp_path / "test.parquet", image=images(4), label=["c", "b", "d", "a"])
    assert tables_of_images(str(tmp_path), say=told.append)[1].test is None
    assert told[-1].startswith("note: the split test is not scored: ") and "(d)" in told[-1]


def test_columns_by_their_names(tmp_path):
    write_parquet(tmp_path / "train.parquet", id=list(range(6)), picture=images(6), kind=[0, 1] * 3)
    for open_data in (tables_of_images, stream_of_images):
        options = {"val_split": 0.5} if open_data is tables_of_images else {}
        if not options:
            write_parquet(tmp_path / "test.parquet", id=[0], picture=images(1), kind=[1])
        with pytest.raises(InputError, match="which column holds the labels. found id .int64., picture .*, kind"):
            open_data(str(tmp_path), **options)
        with pytest.raises(InputError, match="--image_column foto: no such column; found id"):
            open_data(str(tmp_path), image_column="foto", **options)
        assert open_data(str(tmp_path), label_column="kind", **options)[0].classes == ["0", "1"]
    train = datasets.Dataset.from_dict({"image": images(2), "label": [0, 1]})
    datasets.DatasetDict(train=train, test=train.rename_column("label", "kind")).save_to_disk(tmp_path / "saved")
    for open_data in (tables_of_images, stream_of_images):
        with pytest.raises(InputError, match="split test has no column 'label', as train has"):
            open_data(str(tmp_path / "saved"))


@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string(), pa.string_view()])
def test_names_in_strings_of_every_type(tmp_path, dtype):
    labels = [letter(i) for i in range(6)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", image=images(6), label=pa.array(labels, dtype))
    for open_data in (tables_of_images, stream_of_images):
        train, val = open_data(str(tmp_path))
        assert train.classes == ["a", "b", "c"] and val.labels.tolist() == [2, 0, 1, 2, 0, 1]


def test_tables_of_pandas(tmp_path):
    frame = pd.DataFrame({"image": images(6), "label": [letter(i) for i in range(6)]})
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / f"{split}.parquet")
    train, _ = tables_of_images(str(tmp_path))
    assert train.classes == ["a", "b", "c"] and [shade(train.read(i)) for i in range(6)] == list(range(6))


def test_labels_follow_the_training_set(tmp_path):
    write_images(tmp_path, lambda i: i % 3)
    assert tables_of_images(str(tmp_path))[1].classes == ["0", "1", "2"]
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\n")
    assert tables_of_images(str(tmp_path))[0].classes == ["cat", "dog", "eel"]
    write_parquet(tmp_path / "validation.parquet", image=images(2), label=[2, 3])
    with pytest.raises(InputError, match="column 'label': row 1 has the label 3; expected 0..2"):
        tables_of_images(str(tmp_path))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"validation split has labels that the training split lacks \(3\)"):
        tables_of_images(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, 0, 1, -1], "2 of 4 rows have no label .None or -1., the first is row 0"),
        ([-2, 0, 1, 0], "row 0 has the label -2; expected 0..1"),
        ([0, 10**12, 1, 0], "row 1 has the label 1000000000000; expected 0..999999"),
        ([0, None, 1, 0], "1 of 4 rows have no label .None or -1., the first is row 1"),
        ([0.5] * 4, "found 4 rows of .*float64.*; expected names or whole numbers"),
        ([b"x"] * 4, "found 4 rows of .*binary.*; expected names or whole numbers"),
        ([[1]] * 4, "found 4 rows of .*; expected names or whole numbers"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    write_parquet(tmp_path / "train.parquet", image=images(4), label=pa.array(labels))
    with pytest.raises(InputError, match=f"column 'label': {message}"):
        tables_of_images(str(tmp_path), label_column="label", val_split=0.5)


def test_image_folders_and_saved_tables(tmp_path):
    make_folder(tmp_path / "images" / "train", ("a", "b"), 3)
    make_folder(tmp_path / "images" / "test", ("a", "b"), 2)
    train, val = tables_of_images(str(tmp_path / "images"))
    assert train.classes == ["a", "b"] and len(train) == 6 and val.labels.tolist() == [0, 0, 1, 1]
    datasets.load_dataset(str(tmp_path / "images")).save_to_disk(tmp_path / "arrow")
    saved, _ = tables_of_images(str(tmp_path / "arrow"))
    assert saved.labels.tolist() == train.labels.tolist() and saved.read(0).size == (40, 30)
    (tmp_path / "images" / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="found the splits test; expected one named train"):
        tables_of_images(str(tmp_path / "images"))
    alone = tables_of_images(str(tmp_path / "images"), need_train=False)[1]  # an evaluation needs no training split
    assert alone.labels.tolist() == val.labels.tolist() and alone.classes == ["a", "b"]
    stream, _ = stream_of_images(str(tmp_path / "arrow"))
    assert len(stream) == 6 and [stream.label(row, i) for i, row in enumerate(stream.table)] == train.labels.tolist()
    with pytest.raises(InputError, match="the library datasets cannot load it"):
        tables_of_images(str(tmp_path / "nothing"))


@pytest.mark.parametrize("value", [3, "/etc/hostname", [b"x"], None, b"", b"\x89PNG\r\n\x1a\n"])
def test_columns_without_images(tmp_path, value):
    images = [value] * 4
    write_parquet(tmp_path / "train.parquet", image=pa.array(images), label=[0, 1, 0, 1])
    with pytest.raises(InputError):
        tables_of_images(str(tmp_path), image_column="image", val_split=0.5)[0].read(0)
    write_parquet(tmp_path / "train.parquet", image=[encoded(0)] * 4, mask=pa.array(images))
    with pytest.raises(InputError):
        tables_of_masks(str(tmp_path), mask_column="mask", val_split=0.5)[0].read(0)


def test_broken_images_and_paths_that_lead_outside(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(200))
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "data" / "more" / "in.png").write_bytes(encoded(90))
    paths = ["more/in.png", "../secret.png", str(tmp_path / "secret.png"), None, "none.png"]
    values = [{"bytes": None, "path": path} for path in paths] + [{"bytes": b"no image", "path": None}]
    for split in ("train", "val"):
        write_parquet(tmp_path / "data" / f"{split}.parquet", image=values, label=[0, 1] * 3)
    train, _ = tables_of_images(str(tmp_path / "data"))
    stream, _ = stream_of_images(str(tmp_path / "data"))
    rows = list(stream.table)
    assert shade(train.read(0)) == 90 == shade(stream.read(rows[0], 0))
    for index in range(1, 6):
        with pytest.raises(BadImage, match=f"row {index}, column 'image'"):
            train.read(index)
        with pytest.raises(BadImage, match=f"row {index} of shard 0, column 'image'"):
            stream.read(rows[index], index)


# --- segmentation


def test_images_and_masks(tmp_path):
    write_masks(tmp_path)
    train, val = tables_of_masks(str(tmp_path))
    assert (len(train), len(val)) == (12, 5) and train.classes == val.classes == ["class 0", "class 1", "class 2"]
    image, mask = val.read(4)
    assert shade(image) == 4 and mask.dtype == np.int64 and mask.shape == (12, 16)
    assert (mask[:, :8] == IGNORE).all() and (mask[:, 8:] == 1).all() and val.palette.shape == (3, 3)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    train, _ = tables_of_masks(str(tmp_path))
    assert train.classes == ["sky", "road"] and train.read(1)
    with pytest.raises(InputError, match="row 2, column 'mask': the mask holds 2, which is no class; expected 0..1, 255"):
        train.read(2)


@pytest.mark.parametrize("columns", [("img", "label"), ("pixel_values", "segmentation_map"), ("image", "what_is_where")])
def test_masks_that_are_held_out_and_columns_by_their_names(tmp_path, columns):
    write_parquet(tmp_path / "train.parquet", **{columns[1]: [encoded_mask(i % 3) for i in range(10)], columns[0]: images(10)})
    with pytest.raises(InputError, match="give --val_split"):
        tables_of_masks(str(tmp_path))
    train, val = tables_of_masks(str(tmp_path), val_split=0.3, seed=1)
    assert (len(train), len(val)) == (7, 3) and sorted([*train.rows, *val.rows]) == list(range(10))
    assert val.rows.tolist() == tables_of_masks(str(tmp_path), val_split=0.3, seed=1)[1].rows.tolist()
    assert val.rows.tolist() != tables_of_masks(str(tmp_path), val_split=0.3, seed=2)[1].rows.tolist()
    for index in range(3):
        image, mask = val.read(index)
        assert (mask == shade(image) % 3).all()  # they belong together


def test_masks_of_a_split_that_chose_nothing_are_scored_at_the_end(tmp_path):
    for split, rows in (("train", 6), ("validation", 3), ("test", 4)):
        masks = [encoded_mask(i % 3) for i in range(rows)]
        write_parquet(tmp_path / f"{split}.parquet", image=images(rows), mask=masks)
    train, val = tables_of_masks(str(tmp_path))
    assert (len(train), len(val), len(val.test)) == (6, 3, 4) and val.test.classes == train.classes
    assert (val.test.read(2)[1] == 2).all()


def test_what_is_wrong_with_masks(tmp_path):
    masks = [encoded_mask(1, size=(16, 13)), b"no image", encoded_mask(1), encoded_mask(0, 1)]
    write_parquet(tmp_path / "train.parquet", photo=[*images(2), b"no image", encoded(3)], truth=masks)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(InputError, match="which column holds the images.*--image_column"):
        tables_of_masks(str(tmp_path), val_split=0.25)
    with pytest.raises(InputError, match="--mask_column moon: no such column"):
        tables_of_masks(str(tmp_path), "photo", "moon", 0.25)
    sources = tables_of_masks(str(tmp_path), "photo", "truth", 0.25)
    row = {int(source.rows[i]): (source, i) for source in sources for i in range(len(source))}
    messages = {
        0: "row 0, column 'photo': the image has 16 x 12 pixels, its mask 16 x 13",
        1: "row 1, column 'truth' is no image: expected a palette or grey PNG",
        2: "row 2, column 'photo' is no image",
    }
    for number, message in messages.items():
        with pytest.raises(InputError, match=message) as error:
            row[number][0].read(row[number][1])
        assert isinstance(error.value, BadImage) == (number == 2)
