"""Streams of the library `datasets`: an epoch of data of every kind, and what has to be known before it is read."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_folder
from hostile import refusal
from small_sources import encoded, images, letter, shade, write_images, write_masks, write_parquet, write_tar

from utils.cli.errors import InputError
from utils.cli.segmentation_flags import Data
from utils.data.datasets import RecognitionStream, SegmentationStream
from utils.data.streaming import StreamLoader
from utils.images.read import IGNORE
from utils.sources.mask_tables import stream_of_masks
from utils.sources.segmentation import open_segmentation_data
from utils.sources.tables import stream_of_images


def epoch_of(train, make_sample, transform, batch_size, **options):
    """Sorted samples of an epoch on two processes, as tuples of ints."""
    found = []
    for process in range(2):
        loader = StreamLoader(
            train.table, make_sample(train, transform, 0), len(train), batch_size, process=process, processes=2, **options
        )
        found += [tuple(map(int, sample)) for batch in loader for sample in zip(*batch, strict=True)]
    return sorted(found)


def shade_of(image):
    return torch.tensor(shade(image))


COLUMNS = {
    "classes": (lambda i: i % 3, datasets.ClassLabel(names=["cat", "dog", "eel"]), ["cat", "dog", "eel"]),
    "numbers": (lambda i: i % 3, datasets.Value("int64"), ["0", "1", "2"]),
    "names": (lambda i: ("cat", "dog", "eel")[i % 3], datasets.Value("large_string"), ["cat", "dog", "eel"]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_streams_of_parquet(tmp_path, kind):
    label, feature, names = COLUMNS[kind]
    for split, parts in (("train", np.array_split(np.arange(24), 3)), ("validation", [np.arange(5)])):
        for part in parts:
            rows = {"image": [{"bytes": encoded(int(i)), "path": None} for i in part], "label": [label(int(i)) for i in part]}
            features = datasets.Features(image=datasets.Image(), label=feature)
            datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}-{part[0]}.parquet")
    train, val = stream_of_images(str(tmp_path))
    assert len(train) == 24 and train.classes == names == val.classes and val.labels.tolist() == [0, 1, 2, 0, 1]
    for workers in (0, 2):
        got = epoch_of(train, RecognitionStream, shade_of, 4, workers=workers, buffer_size=6)
        assert got == [(i, i % 3, -1) for i in range(24)]
    assert shade(val.read(3)) == 3 and str(tmp_path) in train.title


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_a_stream_with_a_damaged_label_column_is_one_line(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    label, feature, _ = COLUMNS[kind]
    for split in ("train", "validation"):
        rows = {"image": [{"bytes": encoded(i), "path": None} for i in range(6)], "label": [label(i) for i in range(6)]}
        features = datasets.Features(image=datasets.Image(), label=feature)
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    path, said = tmp_path / "train.parquet", set()
    whole, column = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "label"
    first = column.dictionary_page_offset or column.data_page_offset
    for at in range(first, first + column.total_compressed_size, 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])

        def read():
            train, _ = stream_of_images(str(tmp_path))
            return epoch_of(train, RecognitionStream, shade_of, 2, buffer_size=3)

        said.add(refusal(read))
    assert any("column label of " in line for line in said - {None})


CARD = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {"0": cat, "1": dog, "2": eel}}}}
---
"""


def test_classes_of_a_card(tmp_path):
    write_images(tmp_path, lambda i: i % 3, train=6, validation=2)
    (tmp_path / "README.md").write_text(CARD)
    train, val = stream_of_images(str(tmp_path))
    assert train.classes == ["cat", "dog", "eel"] == val.classes and val.labels.tolist() == [0, 1]
    assert epoch_of(train, RecognitionStream, shade_of, 3) == [(i, i % 3, -1) for i in range(6)]


def test_streams_of_class_folders(tmp_path):
    for split in ("train", "test"):
        make_folder(tmp_path / split, ("a", "b"), 3)
    train, val = stream_of_images(str(tmp_path))
    assert len(train) == 6 and train.classes == ["a", "b"] and val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    got = epoch_of(train, RecognitionStream, lambda image: torch.tensor(0), 3, buffer_size=4)
    assert [label for _, label, _ in got] == [0] * 3 + [1] * 3


def test_streams_of_archives(tmp_path):
    for name, numbers in {"train-0": range(5), "train-1": range(5, 20), "val-0": range(4)}.items():
        write_tar(
            tmp_path / f"{name}.tar",
            [x for i in numbers for x in ((f"{i:02}.png", encoded(i)), (f"{i:02}.cls", letter(i).encode()))],
        )
    train, val = stream_of_images(str(tmp_path))
    assert len(train) == 20 and train.classes == ["a", "b", "c"] and val.labels.tolist() == [2, 0, 1, 2]
    for workers in (0, 2):
        got = epoch_of(train, RecognitionStream, shade_of, 5, workers=workers, buffer_size=7)
        assert got == [(i, (2, 0, 1)[i % 3], -1) for i in range(20)]
    (tmp_path / "classes.txt").write_text("c\na\nb\n")
    train, val = stream_of_images(str(tmp_path), train_images=16)
    assert (len(train), train.classes, val.labels.tolist()) == (16, ["c", "a", "b"], [0, 1, 2, 0])


def test_streams_of_masks(tmp_path):
    write_masks(tmp_path)
    train, val = stream_of_masks(str(tmp_path))
    assert train.classes == ["class 0", "class 1", "class 2"] == val.classes and (len(train), len(val)) == (12, 5)

    def corner(image, mask):
        return shade_of(image), torch.tensor(mask[0, -1])

    for workers in (0, 2):
        got = epoch_of(train, SegmentationStream, corner, 3, workers=workers, buffer_size=5)
        assert got == [(i, i % 3 - IGNORE, -1) for i in range(12)]  # packed
    named = [(0, "ground"), (1, "sky"), (2, "ground")]
    for flags, classes, of in (
        ({"reduce_zero_label": True}, ["class 0", "class 1"], (IGNORE, 0, 1)),
        ({"mask_values": named}, ["ground", "sky"], (0, 1, 0)),
    ):
        data = Data(dataset=str(tmp_path), streaming=True, **flags)
        train, val = open_segmentation_data(data, crop_size=32, seed=0, say=lambda line: None)
        got = epoch_of(train, SegmentationStream, corner, 3)
        assert train.classes == val.classes == classes and got == [(i, of[i % 3] - IGNORE, -1) for i in range(12)]
    (tmp_path / "classes.txt").write_text("ground\nsky\n")
    with pytest.raises(InputError, match="row 2 of shard 0, column 'mask': the mask holds 2, which is no class"):
        epoch_of(stream_of_masks(str(tmp_path))[0], SegmentationStream, corner, 6)


def test_labels_of_a_stream_that_are_no_class(tmp_path):
    write_images(tmp_path, lambda i: i)
    (tmp_path / "classes.txt").write_text("\n".join(f"n{i}" for i in range(8)))
    train, _ = stream_of_images(str(tmp_path))
    assert train.label({"label": 7}, 0) == 7 and train.label({"label": "n3"}, 0) == 3
    for label in (8, -1, "n8", None, 1.5):
        expected = f"row 1 of shard 0, column 'image' has the label {label}; expected one of 8 classes .n0, n1, n2, n3, n4, ….$"
        with pytest.raises(InputError, match=expected):
            train.label({"label": label}, 1)


def write_arrow(root, splits):
    """Arrow's stream format, which does not tell how many rows it has."""
    for split in splits:
        table = pa.table({"image": images(6), "label": [i % 2 for i in range(6)]})
        with pa.OSFile(str(root / f"{split}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("kind", ["parquet", "saved", "tar"])
def test_what_a_stream_leaves_out_is_said(tmp_path, kind):
    def said(train_images=None):
        lines = []
        stream_of_images(str(tmp_path / kind), train_images=train_images, say=lines.append)
        return lines

    splits = {"train": 6, "validation": 3, "test": 2}
    for split, count in splits.items():
        rows = {"image": images(count), "label": [i % 2 for i in range(count)]}
        write_parquet(tmp_path / "parquet" / f"{split}.parquet", **rows)
        members = [x for i in range(count) for x in ((f"{i}.png", encoded(i)), (f"{i}.cls", b"ab"[i % 2 : i % 2 + 1]))]
        write_tar(tmp_path / "tar" / f"{split}.tar", members)
    if kind == "saved":
        datasets.load_dataset(str(tmp_path / "parquet")).save_to_disk(tmp_path / kind)
    unread = "note: the split test is not read: --streaming trains on train and scores the validation split"
    assert said() == said(6) == [unread]
    if kind != "tar":  # whose rows are not counted then
        few, *rest = said(4)
        assert few.startswith("warning: --train_images 4: the data has 6 training images;") and rest == [unread]
    if kind != "saved":
        (validation,) = (tmp_path / kind).glob("validation.*")
        validation.unlink()
        (line,) = said()
        assert line.startswith("note: the split test is validated on, so that its score is no test")


def test_what_a_stream_needs_to_know(tmp_path):
    with pytest.raises(InputError, match="cannot load it"):
        stream_of_images(str(tmp_path))
    write_arrow(tmp_path, ["train"])
    with pytest.raises(InputError, match="found only the split train; expected one named validation or test"):
        stream_of_images(str(tmp_path))
    write_arrow(tmp_path, ["test"])
    with pytest.raises(InputError, match="it does not tell its number of training images; give --train_images N"):
        stream_of_images(str(tmp_path))
    with pytest.raises(InputError, match=r"what classes column 'label' has is not known .*put classes.txt"):
        stream_of_images(str(tmp_path), train_images=6)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    train, val = stream_of_images(str(tmp_path), train_images=6)
    assert train.classes == ["x", "y"] and val.labels.tolist() == [0, 1] * 3
    assert epoch_of(train, RecognitionStream, shade_of, 3, buffer_size=4) == [(i, i % 2, -1) for i in range(6)]
