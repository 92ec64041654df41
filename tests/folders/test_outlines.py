"""Masks drawn from outlines of COCO, YOLO and labelme."""

import json

import numpy as np
import pytest
from conftest import forked
from PIL import Image
from small_sources import ids, names, write, write_image

from utils.cli.errors import InputError
from utils.cli.segmentation_flags import Data
from utils.images.read import IGNORE
from utils.mask_folders.pairs import MaskOptions, mask_folders
from utils.sources.segmentation import open_segmentation_data

LEFT = [0, 0, 8, 0, 8, 12, 0, 12]  # the left half of 16 x 12 pixels
RIGHT = [12, 0, 16, 0, 16, 12, 12, 12]


def write_json(path, content):
    write(path, json.dumps(content).encode())


def coco(count, first=0, segmentation=None):
    shapes = [(3, [LEFT]), (7, [RIGHT])] if segmentation is None else [(3, segmentation)]
    annotations = [
        {"image_id": i, "category_id": category, "segmentation": shape, "area": 9, "bbox": [0, 0, 1, 1]}
        for i in range(count) for category, shape in shapes
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{first + i}.jpg", "height": 12, "width": 16} for i in range(count)]
    categories = [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}, {"id": 9, "name": "never"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def opened(root, **options):
    lines = []
    return *mask_folders(root, say=lines.append, **options), lines


@pytest.mark.parametrize("layout", ["roboflow", "coco", "names"])
def test_coco(tmp_path, layout):
    file, image = {
        "roboflow": ("{}/_annotations.coco.json", "{}/{}.jpg"), "coco": ("annotations/instances_{}.json", "images/{}/{}.jpg"),
        "names": ("my-{}-set.json", "pictures/{}.jpg"),
    }[layout]  # fmt: skip
    for split, count, first in (("train", 3, 0), ("valid", 2, 10)):
        write_json(tmp_path / file.format(split), coco(count, first))
        for number in range(first, first + count):
            write_image(tmp_path / (image.format(split, number) if image.count("{}") == 2 else image.format(number)), number)
    write_image(tmp_path / "more.jpg")
    train, val, lines = opened(tmp_path)
    assert train.left_out == {"images that no JSON file names": 1}
    assert names(train) == ["0.jpg", "1.jpg", "2.jpg"] and names(val) == ["10.jpg", "11.jpg"]
    assert train.classes == ["background", "road", "car"] and ids(train) == ids(val) == [1, 0, 2]
    assert lines == ["data: masks are drawn from outlines of COCO: background and 2 classes (road, car)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco(1, segmentation=[]), "found 1 boxes and no outlines"),
        (coco(2), "1 of 2 images are not below .*: 1.jpg"),
        ({**coco(1), "images": [{"id": 0}]}, "is no instances file of COCO's .KeyError"),
    ],
)
def test_coco_that_cannot_be_meant(tmp_path, content, message):
    write_image(tmp_path / "0.jpg")
    write_json(tmp_path / "train.json", content)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, val_split=0.5)


def test_boxes_among_the_outlines_of_coco_are_counted(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "0.jpg")
        content = coco(1)
        content["annotations"] += [{"image_id": 0, "category_id": 3, "segmentation": [], "bbox": [0, 0, 1, 1]}] * 2
        write_json(tmp_path / split / "coco.json", content if split == "val" else coco(1))
    (note,) = opened(tmp_path)[0].notes
    assert note.startswith(f"warning: {tmp_path}/val/coco.json: 2 of 4 objects have a box and no outline: they are background")


def test_yolo(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            write_image(tmp_path / "images" / split / f"{number}.jpg", number, size=(16 * (number + 1), 12))
            text = "1 0 0 0.5 0 0.5 1 0 1\n0 0.75 0 1 0 1 1 0.75 1\n" if number < 2 else ""
            if number != 2:  # no text: nothing is in the image
                write(tmp_path / "labels" / split / f"{number}.txt", text.encode())
    train, val, lines = opened(tmp_path)
    assert (
        train.classes == ["background", "class 0", "class 1"]
        and ids(train) == ids(train, 1) == [2, 0, 1]
        and ids(train, 2) == [0]
    )
    assert train.read(1)[1].shape == (12, 32) and len(val) == 1 and "of YOLO" in lines[0]
    write(tmp_path / "data.yaml", b"names: {0: car, 1: road}\n")
    assert opened(tmp_path)[0].classes == ["background", "car", "road"]
    around = tmp_path.rename(tmp_path.with_name("archive"))  # as an archive makes it
    tmp_path.mkdir()
    around.rename(tmp_path / "archive")
    assert opened(tmp_path)[0].classes == ["background", "car", "road"]
    tmp_path = tmp_path / "archive"
    for text, message in (
        ("1 0.1 0.1 0.2 0.2", "line 1 is a box"),
        ("1 0 0 x", "line 1 is no outline"),
        ("1 0 0 9 9 1 1", "no outline"),
    ):
        write(tmp_path / "labels/train/0.txt", text.encode())
        with pytest.raises(InputError, match=message):
            opened(tmp_path)


def shape(label, points, kind="polygon"):
    return {"label": label, "points": points, "shape_type": kind}


def test_labelme(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.jpg", number)
        shapes = [shape("road", [[0, 0], [16, 12]], "rectangle"), shape("car", [[0, 0], [8, 0], [8, 12], [0, 12]])]
        shapes += [shape("__ignore__", [[12, 0], [16, 0], [16, 12], [12, 12]])]
        if number < 3:  # what has no outlines yet is left out
            write_json(tmp_path / f"{number}.json", {"shapes": shapes, "imageHeight": 12, "imageWidth": 16})
    with pytest.raises(InputError, match="found images without a split; .* give --val_split 0.1"):
        opened(tmp_path)
    train, val, lines = opened(tmp_path, val_split=0.34)
    assert (len(train), len(val)) == (2, 1) and "labelme" in lines[0]
    assert train.classes == ["background", "car", "road"] and ids(train) == [1, 2, IGNORE]
    assert train.left_out == val.left_out == {"images without a JSON file of labelme's": 1}
    write_json(tmp_path / "0.json", {"shapes": [shape("road", [[0, 0], [3, 3]], "line")], "imageHeight": 12, "imageWidth": 16})
    with pytest.raises(InputError, match="0.json is no file of labelme's .*a shape of the kind line"):
        opened(tmp_path, val_split=0.34)


def test_an_outline_of_the_background_cuts_a_hole(tmp_path):
    shapes = [shape("ring", [[0, 0], [16, 12]], "rectangle"), shape("_background_", [[4, 4], [12, 8]], "rectangle")]
    write_image(tmp_path / "0.jpg", 0)
    write_json(tmp_path / "0.json", {"shapes": shapes, "imageHeight": 12, "imageWidth": 16})
    mask = opened(tmp_path, need_train=False)[0].read(0)[1]
    expected = np.ones((12, 16), int)
    expected[4:8, 4:12] = 0
    assert (mask == expected).all()


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_two_folders_of_one_split_are_refused(tmp_path, kind):
    for number, split in enumerate(("train", "val", "validation")):
        write_image(tmp_path / split / "0.jpg", number)
        left = {"shapes": [shape("road", [[0, 0], [8, 12]], "rectangle")], "imageHeight": 12, "imageWidth": 16}
        write_json(tmp_path / split / "0.json", left if kind == "labelme" else coco(1))
    message = "val/ and validation/ are both the same split" if kind == "labelme" else "are both of the split val; keep one"
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_masks_beside_other_texts_are_no_outlines(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / "0.jpg")
        (tmp_path / "labels" / split).mkdir(parents=True)
        Image.fromarray(np.tile(np.array([0, 1], np.uint8).repeat(8), (12, 1))).save(tmp_path / "labels" / split / "0.png")
        write(tmp_path / "labels" / split / "readme.txt", b"hello")
    write_json(tmp_path / "notes.json", {"images": 3})
    train, _, lines = opened(tmp_path)
    assert ids(train) == [0, 1] and "images from" in lines[0]
    assert opened(tmp_path, options=MaskOptions(values={0: "a", 1: "b"}))[0].classes == ["a", "b"]


def test_classes_and_a_test_split_of_outlines(tmp_path):
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        write_json(tmp_path / split / "_annotations.coco.json", coco(count))
        for number in range(count):
            write_image(tmp_path / split / f"{number}.jpg", number)
    (tmp_path / "my.txt").write_text("car\nrest = background, road\n")
    train, val = open_segmentation_data(Data(data_path=str(tmp_path)), crop_size=32, seed=0, say=lambda line: None)
    assert len(val.test) == 2 and ids(val.test) == [1, 0, 2]
    data = Data(data_path=str(tmp_path), classes=str(tmp_path / "my.txt"))
    train, _ = open_segmentation_data(data, crop_size=32, seed=0, say=lambda line: None)
    assert train.classes == ["car", "rest"] and ids(train) == [1, 0]


def test_outlines_to_test_on_elsewhere_are_counted_in_the_classes_of_the_training(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here / "train", here / "valid", there):
        write_json(path / "_annotations.coco.json", coco(1))
        write_image(path / "0.jpg")
    renamed = coco(1) | {"categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "car"}]}  # no road, all of it cars
    write_json(there / "_annotations.coco.json", renamed)
    data, lines = Data(data_path=str(here), test_data_path=str(there)), []
    _, val = open_segmentation_data(data, crop_size=32, seed=0, say=lines.append)
    assert val.test.classes == ["background", "road", "car"] and ids(val.test) == [2, 0, 2]
    assert "classes: the test images have none of road" in lines
    write_json(there / "_annotations.coco.json", coco(1) | {"categories": [{"id": 3, "name": "owl"}, {"id": 7, "name": "car"}]})
    with pytest.raises(InputError, match=r"the test images have other classes \(owl\) than background, road, car"):
        open_segmentation_data(data, crop_size=32, seed=0, say=lines.append)


def test_a_report_on_outlines(tmp_path):
    for split in ("train", "val"):
        write_json(tmp_path / "data" / f"{split}.json", coco(2, 10 * (split == "val")))
        for number in range(2):
            write_image(tmp_path / "data" / split / f"{number + 10 * (split == 'val')}.jpg", number)
    done = forked("train_segmentation", "--data_path", tmp_path / "data", "--check_data", "only")
    assert done.returncode == 0 and "2 training and 2 validation images, 3 classes; nothing is trained" in done.stdout, (
        done.stderr
    )
