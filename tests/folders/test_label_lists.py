"""Several labels an image in tables: columns of 0 and 1, and lists."""

import re

import numpy as np
import pytest
from small_sources import names, write_parquet
from test_label_table import heap, opened, table

from utils.cli.errors import InputError
from utils.folders.label_lists import strata
from utils.folders.label_table import labelled_images
from utils.folders.select import select

WISHES = ["cat|dog", "", "dog", "cat", "bird|cat", "dog", "bird", "cat|dog", "", "dog"]


def rows_of(cells):
    return [f'{i},"{cell}"' for i, cell in enumerate(cells)]


def labels_of(*sources):
    """{name: names of its labels} of images."""
    return {
        name: "|".join(source.classes[place] for place in np.flatnonzero(labels))
        for source in sources
        for name, labels in zip(names(source), source.labels, strict=True)
    }


@pytest.mark.parametrize("mark", ["|", ";", ",", ", "])
def test_one_column_lists_the_labels_and_what_parts_them_is_said(tmp_path, mark):
    said = []
    file = table(tmp_path / "t.csv", "image,labels", *rows_of(cell.replace("|", mark) for cell in WISHES))
    whole, _ = opened(heap(tmp_path), file, several=True, need_val=False)
    assert whole.classes == ["bird", "cat", "dog"] and whole.labels.dtype == bool
    assert labels_of(whole) == {f"{i}.png": cell for i, cell in enumerate(WISHES)}
    labelled_images([file], str(tmp_path), several=True, need_val=False, say=said.append)
    assert f"labels: the column labels lists them, parted by {mark.strip()}" in said


def test_numbers_are_places_in_classes_txt(tmp_path):
    cells = ["0|3", "1", "3", "0|1"]
    file = table(heap(tmp_path) / "t.csv", "image,labels", *rows_of(cells))
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\nbird\n")
    whole, _ = opened(tmp_path, file, several=True, need_val=False)
    assert labels_of(whole) == {"0.png": "cat|bird", "1.png": "dog", "2.png": "bird", "3.png": "cat|dog"}
    file = table(tmp_path / "t.csv", "image,labels", *rows_of(["0|4", "1"]))
    with pytest.raises(InputError, match="labels that are no class"):
        opened(tmp_path, file, several=True, need_val=False)


def test_columns_of_0_and_1_and_a_second_table(tmp_path):
    rows = [f"{i},{'cat' in cell:d},{'dog' in cell:d},{'bird' in cell:d},{i * 7}" for i, cell in enumerate(WISHES)]
    head = "image,cat,dog,bird,age"
    first, second = (table(tmp_path / f"{n}.csv", head, *part) for n, part in (("a", rows[:8]), ("b", rows[8:])))
    train, val = opened(heap(tmp_path), first, second, several=True)
    assert train.classes == ["cat", "dog", "bird"] and (len(train), len(val)) == (8, 2)
    wanted = {f"{i}.png": set(cell.split("|")) for i, cell in enumerate(WISHES)}
    assert {name: set(found.split("|")) for name, found in labels_of(train, val).items()} == wanted
    with pytest.raises(InputError, match=r"b.csv: lacks columns of the first table \(bird\)"):
        opened(tmp_path, first, table(tmp_path / "b.csv", "image,cat,dog", "9,1,0"), several=True)


def test_lists_as_pandas_writes_them(tmp_path):
    cells = [str(cell.split("|") if cell else []) for cell in WISHES]
    file = table(heap(tmp_path) / "t.csv", "image,labels", *rows_of(cells))
    whole, _ = opened(tmp_path, file, several=True, need_val=False)
    assert whole.classes == ["bird", "cat", "dog"] and labels_of(whole) == {f"{i}.png": cell for i, cell in enumerate(WISHES)}
    with pytest.raises(InputError, match=r"seems to list labels, such as \['cat', 'dog'\]: --task multilabel reads them"):
        opened(tmp_path, file, need_val=False)
    for cell in ("['cat' 'dog']", "[0 1]", "[cat, dog]", "[" * 5000):
        file = table(tmp_path / "t.csv", "image,labels", *rows_of([*cells[:-1], cell]))
        with pytest.raises(InputError, match="the column labels: found .*; expected a list such as .'cat', 'dog'., or cat"):
            opened(tmp_path, file, several=True, need_val=False)


def test_rows_of_0_and_1_are_no_lists_of_labels(tmp_path):
    bits = [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    write_parquet(heap(tmp_path) / "t.parquet", image=["0", "1", "2", "3"], labels=bits)
    texts = table(tmp_path / "t.csv", "image,labels", *rows_of("|".join(map(str, row)) for row in bits))
    for file in (str(tmp_path / "t.parquet"), texts):
        with pytest.raises(InputError, match="the column labels holds 3 of 0 and 1 in each row, one for each label; expected"):
            opened(tmp_path, file, several=True, need_val=False)
    file = table(tmp_path / "t.csv", "image,labels", "0,0|1", "1,1", "2,0", "3,1|0")  # two classes, called 0 and 1
    assert opened(tmp_path, file, several=True, need_val=False)[0].classes == ["0", "1"]


@pytest.mark.parametrize("cell, found", [("2", "2"), ("x", "x"), ("", "nothing"), ("-1", "-1")])
def test_what_is_neither_0_nor_1_is_refused_by_line_and_column(tmp_path, cell, found):
    file = table(tmp_path / "t.csv", "image,cat,dog", "0,1,0", "1,0,1", f"2,1,{cell}", "3,1,0")
    with pytest.raises(InputError, match=f"t.csv: line 4, column dog holds {found}; expected 0 or 1"):
        opened(heap(tmp_path), file, several=True, need_val=False)


@pytest.mark.parametrize(
    "several, head, rows, line",
    [
        (False, "image,cat,dog", ["0,1,0", "1,0,1"], r"the columns cat, dog hold 0 and 1, .* give --task multilabel"),
        (False, "image,label", ["0,cat|dog", "1,cat", "2,dog"], r"seems to list labels, such as cat\|dog: --task multilabel"),
        (True, "image,label", ["0,cat", "1,dog"], "has one label in each row; leave --task out"),
        (True, "image,a,b", ["0,3,4", "1,5,6"], "which column holds the labels.* expected columns of 0 and 1, or one"),
    ],
)
def test_the_flag_that_the_data_asks_for_is_named(tmp_path, several, head, rows, line):
    file = table(tmp_path / "t.csv", head, *rows)
    with pytest.raises(InputError, match=line):
        opened(heap(tmp_path), file, several=several, need_val=False)


def test_names_with_commas_are_one_label(tmp_path):
    said = []
    file = table(tmp_path / "t.csv", "image,label", *rows_of(["tench, Tinca", "goldfish, Carassius"] * 5))
    whole, _ = labelled_images([file], str(heap(tmp_path)), need_val=False, say=said.append)
    assert whole.classes == ["goldfish, Carassius", "tench, Tinca"] and not re.search("warning", "".join(said))


def test_each_label_is_on_both_sides(tmp_path):
    cells = ["a"] * 40 + ["a|b"] * 20 + ["a|c"] * 4 + [""] * 16
    file = table(tmp_path / "t.csv", "image,labels", *rows_of(cells))
    train, val = opened(heap(tmp_path, 80), file, several=True, val_split=0.25)
    assert val.labels.sum(0).tolist() == [16, 5, 1] and (~val.labels.any(1)).sum() == 4
    assert train.labels.sum(0).tolist() == [48, 15, 3]
    assert strata(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)).tolist() == [1, 0, 3]
    some, _ = select(train, val, max_train_images=12)
    assert len(some) == 12 and some.labels.any(0).all()


def test_classes_are_chosen_and_merged(tmp_path):
    file = table(tmp_path / "t.csv", "image,labels", *rows_of(WISHES))
    whole, _ = opened(heap(tmp_path), file, several=True, need_val=False)
    (tmp_path / "classes").write_text("pet = cat, dog\nbird\n")
    chosen, _ = select(whole, whole, classes=tmp_path / "classes", say=lambda line: None)
    assert chosen.classes == ["pet", "bird"] and len(chosen) == 10
    assert [labels_of(chosen)[f"{i}.png"] for i in range(5)] == ["pet", "", "pet", "pet", "pet|bird"]
    (tmp_path / "classes").write_text("dog\nbird\n")
    chosen, _ = select(whole, whole, classes=tmp_path / "classes", say=lambda line: None)
    assert [labels_of(chosen)[f"{i}.png"] for i in range(5)] == ["dog", "", "dog", "", "bird"]
