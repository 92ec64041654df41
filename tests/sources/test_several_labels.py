"""Several labels an image in tables of the library `datasets`."""

import datasets
import numpy as np
import pytest
from small_sources import images, write_parquet

from utils.cli.errors import InputError
from utils.cli.recognition_flags import Data
from utils.sources.recognition import open_recognition_data

NAMES = ["cat", "dog", "bird"]
WISHES = [[0], [1, 0], [], [2], [0, 2], [1]] * 2


def opened(folder, **options):
    said = []
    data = Data(dataset=str(folder), **options)
    return *open_recognition_data(data, seed=0, say=said.append), said


def labels_of(source):
    return ["|".join(source.classes[place] for place in np.flatnonzero(labels)) for labels in source.labels]


@pytest.mark.parametrize("kind", ["ClassLabel", "names", "text"])
def test_a_column_of_lists(tmp_path, kind):
    for split in ("train", "validation"):
        lists = [[NAMES[label] for label in row] for row in WISHES]
        if kind == "ClassLabel":
            column = datasets.Features({"image": datasets.Image(), "objects": [datasets.ClassLabel(names=NAMES)]})
            encoded = [{"bytes": data, "path": None} for data in images(12)]
            table = datasets.Dataset.from_dict({"image": encoded, "objects": WISHES}, features=column)
            table.to_parquet(tmp_path / f"{split}.parquet")
        else:
            values = lists if kind == "names" else ["; ".join(row) for row in lists]
            write_parquet(tmp_path / f"{split}.parquet", image=images(12), tags=values)
    train, val, said = opened(tmp_path, task="multilabel")
    assert train.classes == (NAMES if kind == "ClassLabel" else sorted(NAMES)) and train.labels.dtype == bool
    wanted = [{NAMES[label] for label in row} for row in WISHES]
    for source in (train, val):
        assert [set(filter(None, found.split("|"))) for found in labels_of(source)] == wanted
    assert any("parted by ;" in line for line in said) == (kind == "text")
    if kind == "ClassLabel":
        with pytest.raises(
            InputError, match="column 'objects' holds lists of labels, several an image: give --task multilabel"
        ):
            opened(tmp_path)


def test_rows_of_0_and_1_are_refused(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}.parquet", image=images(3), labels=[[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(
        InputError, match="column 'labels' holds 4 of 0 and 1 in each row, one for each label; expected the names"
    ):
        opened(tmp_path, task="multilabel")


def test_a_part_is_held_out_and_wrong_labels_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", image=images(12), labels=[[1], [0, 1], [1], [], [0], [1]] * 2)
    train, val, _ = opened(tmp_path, task="multilabel", val_split=0.25)
    assert train.classes == ["0", "1"] and len(train) + len(val) == 12 and val.labels.any(0).all()
    write_parquet(tmp_path / "validation.parquet", image=images(3), labels=[[1], [0, 7], []])
    with pytest.raises(InputError, match=r"the validation split has labels that the training split lacks \(7\)"):
        opened(tmp_path, task="multilabel")
