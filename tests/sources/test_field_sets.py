"""The field's segmentation data sets in the layouts that they are published in, and what is missing or wrong in them."""

import json
import pickle

import numpy as np
import pytest
from small_sources import SIZE, ids, names, write_image, write_mask

from utils.cli.errors import InputError
from utils.data.masks import class_table
from utils.images.read import IGNORE
from utils.sources import SEGMENTATION_SETS, field_sets
from utils.sources.field_sets import ade20k, cityscapes, coco, pascal_aug, pascal_context, pascal_voc


def make_ade20k(root):
    base = root / "ADEChallengeData2016"
    for split, stems in (("training", ("ADE_train_1", "ADE_train_2")), ("validation", ("ADE_val_1",))):
        for stem in stems:
            write_image(base / "images" / split / f"{stem}.jpg")
            write_mask(base / "annotations" / split / f"{stem}.png", 0, 1, 2, 150)
    return base


def make_cityscapes(root, ending="labelIds", values=(0, 7, 8, 10, 33)):
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("munster",))):
        for city in cities:
            stem = f"{city}_000000_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            write_mask(root / "gtFine" / split / city / f"{stem}_gtFine_{ending}.png", *values)
            write_mask(root / "gtFine" / split / city / f"{stem}_gtFine_color.png", 99)
    return root


def make_voc(
    root, below="VOCdevkit/VOC2012", masks="SegmentationClass", lists="Segmentation", train="train", values=(0, 1, 20, 255)
):
    base = root / below
    for stem in ("2007_1", "2007_2", "2007_3", "2007_4"):
        write_image(base / "JPEGImages" / f"{stem}.jpg")
        if stem != "2007_4":  # most of VOC's images have no mask
            write_mask(base / masks / f"{stem}.png", *values)
    (base / "ImageSets" / lists).mkdir(parents=True)
    (base / "ImageSets" / lists / f"{train}.txt").write_text("2007_1\n2007_3\n")
    (base / "ImageSets" / lists / "val.txt").write_text("2007_2\n\n")
    return base


def make_sbd(root):
    from scipy.io import savemat

    base = root / "VOCaug" / "dataset"
    (base / "cls").mkdir(parents=True)
    for stem in ("2008_1", "2008_2", "2008_3"):
        write_image(base / "img" / f"{stem}.jpg")
        labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        labels[:, 8:] = 20
        savemat(base / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": labels, "CategoriesPresent": np.array([20])}})
    (base / "train.txt").write_text("2008_1\n2008_2\n")
    (base / "val.txt").write_text("2008_3")
    return base


def square(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def make_coco(root, below="images/"):
    """Three training images: a person over a car, a crowd of dogs, and a person of 900 pixels."""
    for split, count in (("train2017", 4), ("val2017", 1)):
        for number in range(1, count + 1):
            write_image(root / f"{below}{split}" / f"{number}.jpg", size=(60, 50))
        runs = [50 * 20, 50 * 30, 50 * 10]
        instances = [
            {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 40)], "area": 1600},
            {"image_id": 1, "category_id": 3, "segmentation": [square(20, 0, 40)], "area": 1600},
            {"image_id": 1, "category_id": 13, "segmentation": [square(0, 0, 9)], "area": 81},  # a stop sign: no class of VOC
            {"image_id": 2, "category_id": 18, "segmentation": {"size": [50, 60], "counts": runs}, "area": 1500, "iscrowd": 1},
            {"image_id": 3, "category_id": 1, "segmentation": [square(0, 0, 30)], "area": 900},
            {"image_id": 4, "category_id": 13, "segmentation": [square(0, 0, 40)], "area": 1600},
        ]
        content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "height": 50, "width": 60} for n in range(1, count + 1)],
            "annotations": [instance for instance in instances if instance["image_id"] <= count],
        }
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_ade20k(tmp_path):
    make_ade20k(tmp_path)
    train, val = ade20k(tmp_path)
    assert names(train) == ["ADE_train_1.jpg", "ADE_train_2.jpg"] and names(val) == ["ADE_val_1.jpg"]
    assert len(train.classes) == 150 and train.classes[0] == "wall" and train.classes[149] == "flag"
    assert train.palette.shape == (150, 3) and (train.palette.sum(1) > 0).all()  # black is for what has no class
    assert ids(train) == [IGNORE, 0, 1, 149]
    picture, found = train.read(1)
    assert picture.mode == "RGB" and picture.size == SIZE and found.shape == (12, 16) and found.dtype == np.int64
    assert names(ade20k(tmp_path / "ADEChallengeData2016")[1]) == ["ADE_val_1.jpg"]  # given the folder itself
    assert len(ade20k(tmp_path, "trainval")[0]) == 3 and len(ade20k(tmp_path, "trainval")[1]) == 1


def test_cityscapes(tmp_path):
    make_cityscapes(tmp_path)
    train, val = cityscapes(tmp_path)
    assert (len(train), len(val)) == (2, 1) and train.name(1).endswith("train/ulm/ulm_000000_000019_leftImg8bit.png")
    assert ids(train) == [IGNORE, 0, 1, IGNORE, 18]  # 0 and 10 are no classes of the benchmark
    assert train.classes[13] == "car" and train.palette[13].tolist() == [0, 0, 142]
    make_cityscapes(tmp_path, "labelTrainIds", (255, 0, 18))
    assert ids(cityscapes(tmp_path)[1]) == [IGNORE, 0, 18]


def test_every_id_of_cityscapes_has_its_class():
    """The whole table of the benchmark: id -> train id."""
    table = class_table(field_sets.CITYSCAPES_IDS, ())
    published = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip  # noqa: E501
    assert {value: table[value] for value in range(40) if table[value] >= 0} == published


def test_pascal_voc(tmp_path):
    make_voc(tmp_path)
    train, val = pascal_voc(tmp_path)
    assert names(train) == ["2007_1.jpg", "2007_3.jpg"] and names(val) == ["2007_2.jpg"]
    assert ids(train) == [0, 1, 20, IGNORE] and train.classes[20] == "tvmonitor" and len(train.classes) == 21
    assert names(pascal_voc(tmp_path, "trainval")[0]) == ["2007_1.jpg", "2007_3.jpg", "2007_2.jpg"]
    with pytest.raises(InputError, match="unknown training split 'all'"):
        pascal_voc(tmp_path, "all")


def test_pascal_augmented(tmp_path):
    make_sbd(tmp_path)
    train, val = pascal_aug(tmp_path)
    assert names(train) == ["2008_1.jpg", "2008_2.jpg"] and names(val) == ["2008_3.jpg"] and ids(val) == [0, 20]
    base = make_voc(tmp_path, masks="SegmentationClassAug", train="trainaug")  # is taken where it is there
    train, val = pascal_aug(tmp_path)
    assert names(train) == ["2007_1.jpg", "2007_3.jpg"] and names(val) == ["2007_2.jpg"] and ids(val) == [0, 1, 20, IGNORE]
    lists = base / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").rename(lists / "aug.txt")
    (lists / "train.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n")
    assert names(pascal_aug(tmp_path)[0]) == ["2007_1.jpg", "2007_3.jpg"]


def test_pascal_context(tmp_path):
    make_voc(tmp_path, "VOCdevkit/VOC2010", "SegmentationClassContext", "SegmentationContext", values=(0, 1, 59))
    train, _ = pascal_context(tmp_path)
    assert ids(train) == [IGNORE, 0, 58] and len(train.classes) == 59 and train.classes[58] == "wood"
    assert train.classes == sorted(train.classes)


@pytest.mark.parametrize("below", ["images/", ""])
def test_coco(tmp_path, below):
    make_coco(tmp_path, below)
    train, val = coco(tmp_path)
    assert names(train) == ["1.jpg", "2.jpg"] and names(val) == ["1.jpg"]  # 3 has 900 labelled pixels, 4 none of VOC's
    first = train.read(0)[1]
    assert first.shape == (50, 60) and first.dtype == np.int64
    assert (first[:40, :40] == 15).all() and (first[:40, 40:] == 7).all() and (first[40:] == 0).all()  # person before car
    crowd = train.read(1)[1]
    assert (crowd[:, 20:50] == 12).all() and (crowd == 12).sum() == 1500
    assert names(coco(tmp_path, "trainval")[0]) == ["1.jpg", "2.jpg", "1.jpg"]
    assert len(pickle.dumps(train)) < 3000  # no objects to copy


def test_coco_keeps_small_images_for_validation(tmp_path):
    make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    file.write_text(json.dumps(content))
    assert (coco(tmp_path)[1].read(0)[1] == 0).all()


ARCHIVES = {
    ade20k: ("ADEChallengeData2016 with images/training", "ADEChallengeData2016.zip"),
    cityscapes: ("leftImg8bit/train, leftImg8bit/val, gtFine/train", "gtFine_trainvaltest.zip"),
    pascal_voc: ("VOCdevkit/VOC2012 with JPEGImages, SegmentationClass, ImageSets/Segm", "VOCtrainval_11-May-2012.tar"),
    pascal_aug: ("VOCaug/dataset with img, cls, train.txt, val.txt", "benchmark.tgz"),
    pascal_context: ("VOCdevkit/VOC2010 with JPEGImages, SegmentationClassContext", "VOCtrainval_03-May-2010.tar"),
    coco: ("coco with annotations/instances_train2017.json", "annotations_trainval2017.zip"),
}


def test_missing_data_sets_say_how_to_get_them(tmp_path):
    (tmp_path / "data" / "holidays").mkdir(parents=True)
    for open_set, (layout, archive) in ARCHIVES.items():
        for root, found in (("data", "found holidays"), ("dada", "no such folder, did you mean data?")):
            with pytest.raises(InputError) as error:
                open_set(tmp_path / root)
            message = str(error.value)
            assert found in message and layout in message and archive in message and "\n" not in message


def test_every_data_set_has_its_line_and_as_many_classes(tmp_path):
    listed = {known.load.partition(":")[2]: known for known in SEGMENTATION_SETS.values() if "field_sets" in known.load}
    assert set(listed) == {open_set.__name__ for open_set in ARCHIVES}
    make_voc(tmp_path)
    make_coco(tmp_path / "coco")
    for open_set, root in ((pascal_voc, tmp_path), (coco, tmp_path)):
        assert len(open_set(root)[0].classes) == listed[open_set.__name__].classes
    named = {"VOC": pascal_aug, "CITYSCAPES": cityscapes, "ADE20K": ade20k, "PASCAL_CONTEXT": pascal_context}
    for name, open_set in named.items():
        classes = getattr(field_sets, name)
        assert len(set(classes)) == listed[open_set.__name__].classes and all(label == label.strip() for label in classes)
    assert len(field_sets.CITYSCAPES_PALETTE) == 19


def test_files_without_a_counterpart_are_named(tmp_path):
    base = make_ade20k(tmp_path / "ade")
    (base / "annotations/training/ADE_train_2.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*ADE_train_2.jpg"):
        ade20k(tmp_path / "ade")
    (base / "images/training/ADE_train_2.jpg").unlink()
    write_mask(base / "annotations/training/odd.png", 1)
    with pytest.raises(InputError, match=r"no image for 1 of \d masks: .*odd.png"):
        ade20k(tmp_path / "ade")
    base = make_voc(tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_1\n2007_4\n2007_9\n")
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*2007_4.jpg"):
        pascal_voc(tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_1\n2007_9\n")
    with pytest.raises(InputError, match=r"no image for 1 of 2 names in .*train.txt: 2007_9"):
        pascal_voc(tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train.txt: no names in it"):
        pascal_voc(tmp_path / "voc")
    make_cityscapes(tmp_path / "city")
    (tmp_path / "city/gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*munster_000000_000019_leftImg8bit.png"):
        cityscapes(tmp_path / "city")
    make_coco(tmp_path / "coco")
    (tmp_path / "coco/images/train2017/3.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of the images that instances_train2017.json lists: 3.jpg"):
        coco(tmp_path / "coco")
    (tmp_path / "coco/annotations/instances_train2017.json").write_text('{"images": 3')
    with pytest.raises(InputError, match=r"instances_train2017.json is no instances file"):
        coco(tmp_path / "coco")
    make_coco(tmp_path / "empty", "elsewhere/")
    with pytest.raises(InputError, match=r"no folder images/train2017 or train2017"):
        coco(tmp_path / "empty")


@pytest.mark.parametrize(
    "lines",
    [b"../../x", b"/etc/hostname", b"../SegmentationClass/x", b"\xff\xfe", b"\0", b"x\x1b[2J", b"..", b"x" * 10**6],
)
def test_lists_that_lead_elsewhere(tmp_path, lines):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    write_image(base / "JPEGImages" / "x.jpg")
    for folder in (base / "SegmentationClass", base):
        write_mask(folder / "x.png", 0, 1)
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ("train", "val"):
        (base / "ImageSets" / "Segmentation" / f"{name}.txt").write_bytes(b"x\n" + lines)
    try:
        train, _ = pascal_voc(tmp_path)
    except InputError as error:
        assert "\n" not in str(error) and "\x1b" not in str(error)
    else:  # the last part of a path is the name, as in PyTorch-Encoding's lists; it is one in the folder
        assert [train.name(i) for i in range(len(train))] == [str(base / "JPEGImages" / "x.jpg")]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("images file_name", "../x.png"), ("images file_name", "1.jpg\0"), ("images file_name", 3), ("images height", "50"),
        ("images height", 10**6), ("images id", []), ("images", None), ("annotations image_id", 99),
        ("annotations segmentation", [[1, 2, 3]]), ("annotations", 3),
    ],
)  # fmt: skip
def test_instances_with_wrong_values(tmp_path, where, value):
    make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    key, _, name = where.partition(" ")
    if name:
        content[key][0][name] = value
    else:
        content[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        coco(tmp_path)[0].read(0)
    assert "\n" not in str(error.value)
