"""Images in one heap whose labels stand in a table."""

import numpy as np
import pytest
from small_sources import names, write_image, write_parquet

from utils.cli.arguments import Fold
from utils.cli.errors import InputError
from utils.cli.recognition_flags import Data
from utils.folders.label_rows import Files, read_table
from utils.folders.label_table import labelled_images
from utils.sources.recognition import open_recognition_data


def heap(root, count=10, folder="images", first=0):
    for i in range(first, first + count):
        write_image(root / folder / f"{i}.png", shade=i)
    return root


def table(path, *rows, **options):
    path.write_text("\n".join(rows) + "\n", **options)
    return str(path)


def opened(root, *tables, **options):
    return labelled_images(tables, str(root), say=lambda line: None, **options)


@pytest.mark.parametrize(
    "value", ["{}", "{}.png", "images/{}.png", "./images/{}.png", "/home/me/images/{}.png", "images\\{}.png"]
)
def test_an_image_is_named_by_its_path_or_name(tmp_path, value):
    rows = [f"{value.format(i)},{'cat' if i % 3 else 'dog'}" for i in range(8)]
    file = table(tmp_path / "labels.csv", "id,label", *rows, encoding="utf-8-sig", newline="\r\n")
    train, val = opened(heap(tmp_path), file, val_split=0.25)
    assert train.classes == ["cat", "dog"] and (len(train), len(val)) == (6, 2)
    labels = {name: train.classes[label] for part in (train, val) for name, label in zip(names(part), part.labels, strict=True)}
    assert labels == {f"{i}.png": "cat" if i % 3 else "dog" for i in range(8)}
    assert train.left_out == {"images that the table does not name": 2}


def test_two_tables_and_folders_of_their_names(tmp_path):
    for split in ("train", "val"):
        heap(tmp_path, 4, split)  # the same names in both
        table(tmp_path / f"{split}.tsv", "file\tage\tbreed", *[f"{i}.png\t{i}\t{'ab'[i % 2]}" for i in range(4)])
    tables = [str(tmp_path / f"{split}.tsv") for split in ("train", "val")]
    with pytest.raises(
        InputError, match=r"which column holds the labels\? found age \(numbers\), breed \(text\); name it with"
    ):
        opened(tmp_path, *tables)
    _, val = opened(tmp_path, *tables, label_column="breed")
    assert {name.split("/")[-2] for name in map(val.name, range(4))} == {"val"} and val.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="is a validation set already"):
        opened(tmp_path, *tables, label_column="breed", val_split=0.5)


@pytest.mark.parametrize("head, row", [("id,photo,label", "{0},{1}.png,{2}"), (",photo,label", "{0},photos/{1}.png,{2}")])
def test_a_column_of_file_names_wins_over_row_numbers_and_both_columns_are_said(tmp_path, head, row):
    rows = [row.format(i, 9 - i, "cat" if i < 5 else "dog") for i in range(1, 9)]
    file, said = table(tmp_path / "t.csv", head, *rows), []
    whole, _ = labelled_images([file], str(heap(tmp_path, 8, "photos", 1)), need_train=False, say=said.append)
    assert labels_of(whole) == {9 - i: "cat" if i < 5 else "dog" for i in range(1, 9)}
    assert said == ["labels: images by the column photo, labels by the column label"]


def test_a_row_finds_no_image_of_another_folder(tmp_path):
    heap(heap(tmp_path, 2, "train"), 2, "cats")
    for missing in ("val/1.png", "dogs/1.png", "dogs/1"):
        with pytest.raises(InputError, match=f"no image for 1 of 2 rows .{missing}.$"):
            opened(tmp_path, table(tmp_path / "t.csv", "image,label", "train/1.png,a", f"{missing},b"), need_val=False)
    files = Files(tmp_path)  # which lie deeper, or less deep, than the table says
    for value in ("train/1.png", "train/1", "./train/1.png", "/home/me/train/1.png", "\\home\\train\\1"):
        assert files.find(value, None) == ["train/1.png"]
    assert Files(tmp_path / "train").find("set/train/1", None) == ["1.png"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "train").rename(tmp_path / "deep" / "train")
    assert Files(tmp_path).find("train/1", None) == Files(tmp_path).find("train/1.png", None) == ["deep/train/1.png"]


def test_names_that_look_like_numbers_keep_what_they_are_written_with(tmp_path):
    for name in ("001", "1", "1_1", "11"):
        write_image(tmp_path / f"{name}.png")
    file = table(tmp_path / "t.csv", "id,label", "001,01", "1,1", "1_1,1_0", "11,10")
    whole, _ = opened(tmp_path, file, need_val=False)
    found = {names(whole)[i]: whole.classes[whole.labels[i]] for i in range(4)}
    assert found == {"001.png": "01", "1.png": "1", "1_1.png": "1_0", "11.png": "10"}
    numbers = read_table(table(tmp_path / "t.csv", "a,b,c", "0,-1,7", "10,,x"))
    assert numbers == {"a": [0, 10], "b": [-1, None], "c": ["7", "x"]}


def test_parquet_numbers_and_classes_txt(tmp_path):
    write_parquet(heap(tmp_path) / "t.parquet", image_id=[str(i) for i in range(10)], target=[3, 5] * 5)
    train, _ = opened(tmp_path, str(tmp_path / "t.parquet"), val_split=0.2)
    assert train.classes == ["3", "5"]
    table(tmp_path / "classes.txt", *"abcdef")
    train, _ = opened(tmp_path, str(tmp_path / "t.parquet"), val_split=0.2)
    assert train.classes == list("abcdef") and set(train.labels.tolist()) == {3, 5}


def labels_of(source):
    """{number of the image in its file's name: label}"""
    return {int(source.name(i).split("/")[-1][:-4]): source.classes[source.labels[i]] for i in range(len(source))}


def test_a_column_of_splits_holds_for_its_rows_whatever_their_order(tmp_path):
    splits = ["Train", "valid", "test", "training", "val", "Testing", "train", "val", "train", "test"]
    rows = [f"{i},{'ba'[i % 2]},{split}" for i, split in enumerate(splits)]
    file = table(heap(tmp_path) / "t.csv", "id,class,split", *rows)
    train, val = opened(tmp_path, file)
    assert labels_of(train) == {0: "b", 3: "a", 6: "b", 8: "b"} and labels_of(val) == {1: "a", 4: "b", 7: "a"}
    assert labels_of(val.test) == {2: "b", 5: "a", 9: "a"} and train.classes == ["a", "b"]
    assert labels_of(opened(tmp_path, file, need_train=False)[1]) == labels_of(val)
    with pytest.raises(InputError, match="--val_split 0.5: .*t.csv says what is validated on, in its column of splits"):
        opened(tmp_path, file, val_split=0.5)


def test_rows_of_a_test_split_choose_nothing(tmp_path):
    rows = [f"{i},{'ab'[i % 2]},{'test' if i in (1, 6) else 'train'}" for i in range(10)]
    file = table(heap(tmp_path) / "t.csv", "id,class,split", *rows)
    for held_out in (0.5, Fold(1, 2)):
        train, val = opened(tmp_path, file, val_split=held_out)
        assert labels_of(val.test) == {1: "b", 6: "a"} and len(labels_of(train) | labels_of(val)) == 8
        assert not {1, 6} & {*labels_of(train), *labels_of(val)} and len(val) == 4
    train, val = opened(tmp_path, file)  # without another set to validate on
    assert labels_of(val) == {1: "b", 6: "a"} and "chooses the best weights" in train.notes[0] and not hasattr(val, "test")
    table(tmp_path / "t.csv", "id,class,split", *[row.replace("0,a,train", "0,a,extra") for row in rows])
    with pytest.raises(InputError, match="1 of 10 rows are of no known split, .*; expected train, val or test in each row"):
        opened(tmp_path, file)


def test_of_two_tables_a_column_of_splits_is_heeded(tmp_path):
    splits, said = ["train", "train", "val", "test", "train", "test"], []
    first = table(heap(tmp_path) / "a.csv", "id,label,split", *[f"{i},{'ab'[i % 2]},{split}" for i, split in enumerate(splits)])
    second = table(tmp_path / "b.csv", "id,label", "6,a", "7,b")
    train, val = labelled_images([first, second], str(tmp_path), say=said.append)
    assert sorted(labels_of(train)) == [0, 1, 4] and sorted(labels_of(val)) == [6, 7] and sorted(labels_of(val.test)) == [3, 5]
    assert f"data: 1 rows of {first} are left out, since its column of splits does not call them train" in said
    _, val = opened(tmp_path, second, first)
    assert labels_of(val) == {2: "a"} and sorted(labels_of(val.test)) == [3, 5]
    with pytest.raises(InputError, match="b.csv: found only test in its column of splits; expected rows of train; call"):
        opened(tmp_path, table(tmp_path / "b.csv", "id,label,split", "6,a,test", "7,b,test"), first)


def test_a_column_of_splits_that_names_none_is_said(tmp_path):
    file, said = table(heap(tmp_path) / "t.csv", "id,label,split", *[f"{i},{'ab'[i % 2]},part{i % 2}" for i in range(10)]), []
    labelled_images([file], str(tmp_path), val_split=0.2, say=said.append)
    assert f"note: the column split of {file} parts nothing: found part0, part1; expected train, val or test" in said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["id,label", "77,a", "0,b"], "no image for 1 of 2 rows .77."),
        (["id,label", "0,a", "1,"], "1 of 2 rows have no label in the column label"),
        (["id,label", "0,-1", "1,-1", "2,0"], "2 of 3 rows have no label"),
        (["id,label", "0,a", "0,b"], "images/0.png has two labels, a and b"),
        (["id,label", "0,a,x"], "line 2 has 3 cells, the first line 2"),
        (["x,y", "hello,0.5"], "no column names images that lie there; found x .hello., y .0.5."),
        (["id,label"], "found no rows"),
        (["id,x,y", "0,1,2", "1,2,1"], "which column holds the labels. found x .numbers., y .numbers."),
        (["id,label", "0,a", "1,b"], "found one table; give a second one to validate on, or --val_split 0.1"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        opened(heap(tmp_path), table(tmp_path / "t.csv", *rows))


def test_names_that_are_there_twice_and_other_encodings(tmp_path):
    heap(heap(tmp_path), 10, "again")
    with pytest.raises(InputError, match="again/0.png and images/0.png have the same name; write paths"):
        opened(tmp_path, table(tmp_path / "t.csv", "id,label", "0,a", "1,b"))
    with pytest.raises(InputError, match="cannot be read as text in UTF-8 .it is UTF-16.; .* save it as UTF-8"):
        opened(tmp_path, table(tmp_path / "t.csv", "id,label", "0,a", encoding="utf-16"))
    with pytest.raises(InputError, match="perhaps it is Windows-1252"):
        opened(tmp_path, table(tmp_path / "t.csv", "id,label", "0,Käse", encoding="cp1252"))


def test_by_the_flags(tmp_path):
    file = table(heap(tmp_path) / "t.csv", "id,label", *[f"{i},{'ab'[i % 2]}" for i in range(10)])
    train, val = open_recognition_data(Data(labels=[file], data_path=str(tmp_path), val_split=0.2), seed=0)
    evaluated = open_recognition_data(Data(labels=[file], data_path=str(tmp_path)), seed=0, need_train=None)[1]
    assert len(evaluated) == 10  # one table, to score weights on
    assert (len(train), len(val)) == (8, 2) and train.seen and np.bincount(train.labels).tolist() == [4, 4]
