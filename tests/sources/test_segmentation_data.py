"""Sources of images and masks: the layouts of the field's data sets, own folders, tables, and what is wrong with them."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from utils.augment.segmentation import encoding_transform, eval_transform
from utils.cli.errors import InputError
from utils.data.masks import decode_runs, draw_instances, fill_polygon, read_values
from utils.data.sampling import Key
from utils.sources import class_names, palettes
from utils.sources import segmentation as segmentation_data
from utils.sources.segmentation import DATASETS, IGNORE, SegmentationDataset, check_files, folder, hub_table, open_data

SIZE = (16, 12)  # width, height


def save(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values))
    if palette:
        picture.putpalette(palettes.voc_palette(256).tobytes())
        assert picture.mode == "P"
    picture.save(path)


def image(path, shade=100, size=SIZE):
    save(path, np.full((size[1], size[0], 3), shade, np.uint8))


def mask(path, *values, dtype=np.uint8, size=SIZE, palette=False):
    """Equal columns of the `values`, the last one in what is left over."""
    columns = np.minimum(np.arange(size[0]) * len(values) // size[0], len(values) - 1)
    save(path, np.tile(np.array(values, dtype)[columns], (size[1], 1)), palette)


def ids(source, index=0):
    """The ids in the first row of a mask, in order, without repetition."""
    row = source.read(index)[1][0]
    return row[np.flatnonzero(np.diff(row, prepend=-9))].tolist()


def names(source):
    return [source.name(index).rpartition("/")[2] for index in range(len(source))]


# --- the field's data sets


def make_ade20k(root):
    base = root / "ADEChallengeData2016"
    for split, stems in (("training", ("ADE_train_1", "ADE_train_2")), ("validation", ("ADE_val_1",))):
        for stem in stems:
            image(base / "images" / split / f"{stem}.jpg")
            mask(base / "annotations" / split / f"{stem}.png", 0, 1, 2, 150)
    return base


def make_cityscapes(root, ending="labelIds", values=(0, 7, 8, 10, 33)):
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("munster",))):
        for city in cities:
            stem = f"{city}_000000_000019"
            image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            mask(root / "gtFine" / split / city / f"{stem}_gtFine_{ending}.png", *values)
            mask(root / "gtFine" / split / city / f"{stem}_gtFine_color.png", 99)
    return root


def make_voc(
    root, below="VOCdevkit/VOC2012", masks="SegmentationClass", lists="Segmentation", train="train", values=(0, 1, 20, 255)
):
    base = root / below
    for stem in ("2007_1", "2007_2", "2007_3", "2007_4"):
        image(base / "JPEGImages" / f"{stem}.jpg")
        if stem != "2007_4":  # most of VOC's images have no mask
            mask(base / masks / f"{stem}.png", *values, palette=True)
    (base / "ImageSets" / lists).mkdir(parents=True)
    (base / "ImageSets" / lists / f"{train}.txt").write_text("2007_1\n2007_3\n")
    (base / "ImageSets" / lists / "val.txt").write_text("2007_2\n\n")
    return base


def make_sbd(root):
    from scipy.io import savemat

    base = root / "VOCaug" / "dataset"
    (base / "cls").mkdir(parents=True)
    for stem in ("2008_1", "2008_2", "2008_3"):
        image(base / "img" / f"{stem}.jpg")
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
            image(root / f"{below}{split}" / f"{number}.jpg", size=(60, 50))
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
    train, val = open_data("ADE20K", tmp_path)
    assert names(train) == ["ADE_train_1.jpg", "ADE_train_2.jpg"] and names(val) == ["ADE_val_1.jpg"]
    assert len(train.classes) == 150 and train.classes[0] == "wall" and train.classes[149] == "flag"
    assert train.palette.shape == (150, 3) and (train.palette.sum(1) > 0).all()  # black is for what has no class
    assert ids(train) == [IGNORE, 0, 1, 149]
    picture, found = train.read(1)
    assert picture.mode == "RGB" and picture.size == SIZE and found.shape == (12, 16) and found.dtype == np.int64
    assert names(open_data("ade20k", tmp_path / "ADEChallengeData2016")[1]) == ["ADE_val_1.jpg"]  # given the folder itself
    assert len(open_data("ade20k", tmp_path, "trainval")[0]) == 3 and len(open_data("ade20k", tmp_path, "trainval")[1]) == 1


def test_cityscapes(tmp_path):
    make_cityscapes(tmp_path)
    train, val = DATASETS["citys"](tmp_path)
    assert (len(train), len(val)) == (2, 1) and train.name(1).endswith("train/ulm/ulm_000000_000019_leftImg8bit.png")
    assert ids(train) == [IGNORE, 0, 1, IGNORE, 18]  # 0 and 10 are no classes of the benchmark
    assert train.classes[13] == "car" and train.palette[13].tolist() == [0, 0, 142]
    make_cityscapes(tmp_path, "labelTrainIds", (255, 0, 18))
    assert ids(DATASETS["citys"](tmp_path)[1]) == [IGNORE, 0, 18]


def test_every_id_of_cityscapes_has_its_class():
    """The whole table of the benchmark: id -> train id."""
    table = segmentation_data.class_table(segmentation_data._CITYSCAPES_IDS, ())
    published = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip  # noqa: E501
    assert {value: table[value] for value in range(40) if table[value] >= 0} == published


def test_pascal_voc(tmp_path):
    make_voc(tmp_path)
    train, val = DATASETS["pascal_voc"](tmp_path)
    assert names(train) == ["2007_1.jpg", "2007_3.jpg"] and names(val) == ["2007_2.jpg"]
    assert ids(train) == [0, 1, 20, IGNORE] and train.classes[20] == "tvmonitor" and len(train.classes) == 21
    assert names(DATASETS["pascal_voc"](tmp_path, "trainval")[0]) == ["2007_1.jpg", "2007_3.jpg", "2007_2.jpg"]
    with pytest.raises(InputError, match="unknown training split 'all'"):
        DATASETS["pascal_voc"](tmp_path, "all")
    with pytest.raises(InputError, match="unknown data set 'pascal': did you mean pascal_"):
        open_data("pascal", tmp_path)


def test_pascal_augmented(tmp_path):
    make_sbd(tmp_path)
    train, val = DATASETS["pascal_aug"](tmp_path)
    assert names(train) == ["2008_1.jpg", "2008_2.jpg"] and names(val) == ["2008_3.jpg"] and ids(val) == [0, 20]
    base = make_voc(tmp_path, masks="SegmentationClassAug", train="trainaug")  # is taken where it is there
    train, val = DATASETS["pascal_aug"](tmp_path)
    assert names(train) == ["2007_1.jpg", "2007_3.jpg"] and names(val) == ["2007_2.jpg"] and ids(val) == [0, 1, 20, IGNORE]
    lists = base / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").rename(lists / "aug.txt")
    (lists / "train.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n")
    assert names(DATASETS["pascal_aug"](tmp_path)[0]) == ["2007_1.jpg", "2007_3.jpg"]


def test_pascal_context(tmp_path):
    make_voc(tmp_path, "VOCdevkit/VOC2010", "SegmentationClassContext", "SegmentationContext", values=(0, 1, 59))
    train, _ = DATASETS["pcontext"](tmp_path)
    assert ids(train) == [IGNORE, 0, 58] and len(train.classes) == 59 and train.classes[58] == "wood"
    assert train.classes == sorted(train.classes)


@pytest.mark.parametrize("below", ["images/", ""])
def test_coco(tmp_path, below):
    make_coco(tmp_path, below)
    train, val = DATASETS["coco"](tmp_path)
    assert names(train) == ["1.jpg", "2.jpg"] and names(val) == ["1.jpg"]  # 3 has 900 labelled pixels, 4 none of VOC's
    first = train.read(0)[1]
    assert first.shape == (50, 60) and first.dtype == np.int64
    assert (first[:40, :40] == 15).all() and (first[:40, 40:] == 7).all() and (first[40:] == 0).all()  # person before car
    crowd = train.read(1)[1]
    assert (crowd[:, 20:50] == 12).all() and (crowd == 12).sum() == 1500
    assert names(DATASETS["coco"](tmp_path, "trainval")[0]) == ["1.jpg", "2.jpg", "1.jpg"]
    assert len(pickle.dumps(train)) < 3000  # no objects to copy
    assert check_files(train) == 2


def test_coco_keeps_small_images_for_validation(tmp_path):
    make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    file.write_text(json.dumps(content))
    assert (DATASETS["coco"](tmp_path)[1].read(0)[1] == 0).all()


ARCHIVES = {
    "ade20k": ("ADEChallengeData2016/|ADEChallengeData2016 with images/training", "ADEChallengeData2016.zip"),
    "citys": ("leftImg8bit/train, leftImg8bit/val, gtFine/train", "gtFine_trainvaltest.zip"),
    "pascal_voc": ("VOCdevkit/VOC2012 with JPEGImages, SegmentationClass, ImageSets/Segm", "VOCtrainval_11-May-2012.tar"),
    "pascal_aug": ("VOCaug/dataset with img, cls, train.txt, val.txt", "benchmark.tgz"),
    "pcontext": ("VOCdevkit/VOC2010 with JPEGImages, SegmentationClassContext", "VOCtrainval_03-May-2010.tar"),
    "coco": ("coco with annotations/instances_train2017.json", "annotations_trainval2017.zip"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_missing_data_sets_say_how_to_get_them(tmp_path, name):
    layout, archive = ARCHIVES[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "holidays").mkdir()
    for root, found in (("data", "found holidays"), ("dada", "no such folder, did you mean data?")):
        with pytest.raises(InputError) as error:
            DATASETS[name](tmp_path / root)
        message = str(error.value)
        assert found in message and any(part in message for part in layout.split("|")) and archive in message
        assert "\n" not in message
    assert set(ARCHIVES) == set(DATASETS)


def test_files_without_a_counterpart_are_named(tmp_path):
    base = make_ade20k(tmp_path / "ade")
    (base / "annotations/training/ADE_train_2.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*ADE_train_2.jpg"):
        DATASETS["ade20k"](tmp_path / "ade")
    (base / "images/training/ADE_train_2.jpg").unlink()
    mask(base / "annotations/training/odd.png", 1)
    with pytest.raises(InputError, match=r"no image for 1 of \d masks: .*odd.png"):
        DATASETS["ade20k"](tmp_path / "ade")
    base = make_voc(tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_1\n2007_4\n2007_9\n")
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*2007_4.jpg"):
        DATASETS["pascal_voc"](tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_1\n2007_9\n")
    with pytest.raises(InputError, match=r"no image for 1 of 2 names in .*train.txt: 2007_9"):
        DATASETS["pascal_voc"](tmp_path / "voc")
    (base / "ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train.txt: no names in it"):
        DATASETS["pascal_voc"](tmp_path / "voc")
    make_cityscapes(tmp_path / "city")
    (tmp_path / "city/gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of \d images: .*munster_000000_000019_leftImg8bit.png"):
        DATASETS["citys"](tmp_path / "city")
    make_coco(tmp_path / "coco")
    (tmp_path / "coco/images/train2017/3.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of the images that instances_train2017.json lists: 3.jpg"):
        DATASETS["coco"](tmp_path / "coco")
    (tmp_path / "coco/annotations/instances_train2017.json").write_text('{"images": 3')
    with pytest.raises(InputError, match=r"instances_train2017.json is no instances file"):
        DATASETS["coco"](tmp_path / "coco")
    make_coco(tmp_path / "empty", "elsewhere/")
    with pytest.raises(InputError, match=r"no folder images/train2017 or train2017"):
        DATASETS["coco"](tmp_path / "empty")


# --- own folders


def make_own(root, train=2, val=1, values=(0, 1, 2, 255), **more):
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            image(root / "images" / split / f"{number}.jpg")
            mask(root / "masks" / split / f"{number}.png", *values, **more)
    return root


@pytest.mark.parametrize("palette", [False, True])
def test_own_folder(tmp_path, palette):
    make_own(tmp_path, palette=palette)
    image(tmp_path / "images/train/deeper/x.y.png")
    mask(tmp_path / "masks/train/deeper/x.y.png", 2, 0, palette=palette)
    (tmp_path / "masks/train/.DS_Store").write_text("")
    (tmp_path / "images/train/notes.txt").write_text("no image by its name")
    train, val = folder(tmp_path)
    assert names(train) == ["0.jpg", "1.jpg", "x.y.png"] and names(val) == ["0.jpg"]
    assert train.classes == ["class 0", "class 1", "class 2"] and ids(train) == [0, 1, 2, IGNORE] and ids(train, 2) == [2, 0]
    (tmp_path / "classes.txt").write_text("sky\n\n tree \nhouse\ncar\n")
    train, _ = folder(str(tmp_path))
    assert train.classes == ["sky", "tree", "house", "car"] and train.palette.tolist()[1] == [128, 0, 0]
    (tmp_path / "classes.txt").write_text("sky\n")
    with pytest.raises(InputError, match="found 1 names, expected two classes at least"):
        folder(tmp_path)


def test_masks_of_sixteen_bits(tmp_path):
    make_own(tmp_path, values=(0, 255, 299, 65535), dtype=np.uint16)
    assert Image.open(tmp_path / "masks/train/0.png").mode.startswith("I")
    train, _ = folder(tmp_path)
    assert len(train.classes) == 300 and ids(train) == [0, 255, 299, IGNORE]
    assert train.palette.shape == (300, 3) and len(np.unique(train.palette, axis=0)) == 300
    mask(tmp_path / "masks/train/1.png", 0, 7, 255)  # one of 8 bits among them has its own ignored value
    assert ids(folder(tmp_path)[0], 1) == [0, 7, IGNORE]


def test_masks_of_one_bit_and_grey_saved_as_colours(tmp_path):
    make_own(tmp_path, values=(False, True), dtype=bool)
    assert Image.open(tmp_path / "masks/train/0.png").mode == "1"
    assert ids(folder(tmp_path)[0]) == [0, 1]
    grey = np.repeat(np.array([[0, 1, 2, 255]], np.uint8).repeat(4, 1)[..., None], 3, -1).repeat(12, 0)
    save(tmp_path / "masks/train/0.png", grey)
    assert ids(folder(tmp_path)[0]) == [0, 1, 2, IGNORE]


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_an_image_is_turned_upright_if_that_fits_its_mask(tmp_path, orientation):
    make_own(tmp_path, train=1)
    picture = Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))  # stored 16 wide, 12 high
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "images/train/0.jpg", exif=exif)
    upright = SIZE if orientation == 1 else SIZE[::-1]
    for size in {SIZE, upright}:
        mask(tmp_path / "masks/train/0.png", 0, 1, size=size)
        assert folder(tmp_path)[0].read(0)[0].size == size


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


COLOURS = np.random.default_rng(0).integers(0, 3, (12, 16, 3)).astype(np.uint8)
WRONG_FILES = {
    "no class": (
        lambda to: mask(to / "masks/train/5.png", 0, 1, 9), "5.png: the mask holds 9, which is no class; expected 0..2, 255"
    ),
    "size": (
        lambda to: mask(to / "masks/train/5.png", 0, 1, size=(15, 12)), "5.jpg: the image has 16 x 12 pixels, its mask 15 x 12"
    ),
    "colours": (lambda to: save(to / "masks/train/5.png", COLOURS), "5.png is a picture of mode RGB; expected class ids in a"),
    "text": (lambda to: (to / "masks/train/5.png").write_bytes(b"no"), "5.png is no image: expected a palette or grey PNG"),
    "image": (lambda to: (to / "images/train/5.jpg").write_bytes(b"no"), "5.jpg is no image: expected a file that Pillow can"),
    "cut mask": (lambda to: cut(to / "masks/train/5.png"), "5.png (cannot be read as a mask|is no image)"),
    "cut image": (lambda to: cut(to / "images/train/5.jpg"), "5.jpg (cannot be read as an image|is no image)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_files_are_found_before_training(tmp_path, wrong):
    make_own(tmp_path, train=7)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert [check_files(source) for source in folder(tmp_path)] == [7, 1]
    break_it, message = WRONG_FILES[wrong]
    break_it(tmp_path)
    train, val = folder(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        check_files(train)
    assert "1 of 7 samples looked at cannot be used" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        train.read(5)
    check_files(val)


def test_a_sample_is_looked_at_or_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation_data, "SAMPLE", 3)
    make_own(tmp_path, train=9)
    for number in (1, 2, 3, 5):  # the sample is 0, 4 and 8
        mask(tmp_path / "masks/train" / f"{number}.png", 0, 77)
    train, _ = folder(tmp_path)
    assert len(train.classes) == 3 and check_files(train) == 3
    bars = []

    def progress(samples, total):
        bars.append(total)
        return samples

    with pytest.raises(InputError, match=r"4 of 9 samples cannot be used: .*1.png.* \| .*2.png.* \| .*3.png.* \| …"):
        check_files(train, everything=True, progress=progress)
    assert bars == [9]


def test_masks_of_0_and_255_are_explained(tmp_path):
    make_own(tmp_path, values=(0, 255))
    with pytest.raises(InputError, match="hold no class but 0 .* 0 and 1 for two"):
        folder(tmp_path)
    (tmp_path / "classes.txt").write_text("back\nfront\n")
    with pytest.raises(InputError, match="only back and pixels that are ignored; .*write masks of 0 and 255 as 0 and 1"):
        check_files(folder(tmp_path)[0])
    make_own(tmp_path, values=(255,))
    with pytest.raises(InputError, match="hold no class at all"):
        check_files(folder(tmp_path)[0])
    make_own(tmp_path, values=(0,))  # nothing but background, without a pixel that is ignored, is a matter of taste
    assert check_files(folder(tmp_path)[0]) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("none", "nothing in it; expected images/train, images/val, masks/train, masks/val"),
        ("no val", "found images, masks; expected images/train"),
        ("empty", "masks/val: no such files in it; expected images such as .jpg or .png"),
        ("no mask", r"no mask for 1 of \d images: .*train/1.jpg"),
        ("no image", r"no image for 1 of \d masks: .*val/0.png"),
        ("twice", r"0.(jpg|png) and .*0.(jpg|png) have the same name"),
    ],
)
def test_wrong_folders(tmp_path, wrong, message):
    if wrong != "none":
        make_own(tmp_path)
    if wrong == "no val":
        (tmp_path / "images/val").rename(tmp_path / "images/test")
    if wrong == "empty":
        (tmp_path / "masks/val/0.png").unlink()
    if wrong == "no mask":
        (tmp_path / "masks/train/1.png").unlink()
    if wrong == "no image":
        (tmp_path / "images/val/0.jpg").rename(tmp_path / "images/val/1.jpg")
        mask(tmp_path / "masks/val/1.png", 0, 1)
    if wrong == "twice":
        image(tmp_path / "images/train/0.png")
    with pytest.raises(InputError, match=message):
        folder(tmp_path)


# --- the library datasets


def png(values):
    import io

    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def parquet(path, rows, image_column="image", mask_column="mask", first=0, size=SIZE):
    """Row n: an image of shade first + n, whose mask is n % 3 everywhere but for an ignored pixel."""
    import pyarrow
    import pyarrow.parquet

    images, masks = [], []
    for n in range(first, first + rows):
        labels = np.full((size[1], size[0]), n % 3, np.uint8)
        labels[0, 0] = 255
        images.append(png(np.full((SIZE[1], SIZE[0], 3), n, np.uint8)))
        masks.append(png(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"id": list(range(rows)), mask_column: masks, image_column: images})
    pyarrow.parquet.write_table(table, path)


def test_table_with_two_splits(tmp_path):
    parquet(tmp_path / "train.parquet", 6)
    parquet(tmp_path / "validation.parquet", 2, first=6)
    train, val = hub_table(str(tmp_path))
    assert (len(train), len(val)) == (6, 2) and train.classes == val.classes == ["class 0", "class 1", "class 2"]
    picture, labels = val.read(1)
    assert np.asarray(picture)[0, 0].tolist() == [7, 7, 7] and labels[0, 0] == IGNORE and (labels[1:] == 1).all()
    assert labels.dtype == np.int64 and "row 1" in val.name(1) and check_files(train, everything=True) == 6


@pytest.mark.parametrize("columns", [("img", "label"), ("pixel_values", "segmentation_map"), ("image", "what_is_where")])
def test_columns_are_found_by_their_names(tmp_path, columns):
    parquet(tmp_path / "train.parquet", 10, *columns)
    with pytest.raises(InputError, match="give --val_split"):
        hub_table(str(tmp_path))
    train, val = hub_table(str(tmp_path), val_split=0.3, seed=1)
    again = hub_table(str(tmp_path), val_split=0.3, seed=1)[1]
    assert (len(train), len(val)) == (7, 3) and val.rows.tolist() == again.rows.tolist()
    assert sorted([*train.rows, *val.rows]) == list(range(10))
    assert val.rows.tolist() != hub_table(str(tmp_path), val_split=0.3, seed=2)[1].rows.tolist()
    for index in range(3):
        picture, labels = val.read(index)
        assert labels[1, 0] == np.asarray(picture)[0, 0, 0] % 3  # image and mask belong together


def test_columns_by_flag_and_what_is_wrong_with_tables(tmp_path):
    parquet(tmp_path / "a" / "train.parquet", 6, "photo", "truth")
    with pytest.raises(InputError, match="which column holds the images.*--image_column"):
        hub_table(str(tmp_path / "a"), val_split=0.5)
    assert hub_table(str(tmp_path / "a"), "photo", "truth", 0.5)[0].read(0)[1].shape == (12, 16)
    with pytest.raises(InputError, match="--mask_column moon: no such column"):
        hub_table(str(tmp_path / "a"), "photo", "moon", 0.5)
    with pytest.raises(InputError, match="cannot load it"):
        hub_table(str(tmp_path / "nothing"))
    parquet(tmp_path / "b" / "train.parquet", 3)
    parquet(tmp_path / "b" / "test.parquet", 3)
    with pytest.raises(InputError, match="has a split 'test' already"):
        hub_table(str(tmp_path / "b"), val_split=0.5)
    parquet(tmp_path / "c" / "train.parquet", 3, size=(16, 13))
    train, _ = hub_table(str(tmp_path / "c"), val_split=0.4)
    with pytest.raises(InputError, match="row 0, .*: the image has 16 x 12 pixels, its mask 16 x 13"):
        check_files(train)


# --- the data set that training sees


class Counting:
    """A source of constant images."""

    classes, title = ["a", "b"], "constant"

    def __len__(self):
        return 5

    def read(self, index):
        return Image.new("RGB", (20, 10), (index, 0, 0)), np.full((10, 20), index % 2, np.int64)

    def name(self, index):
        return str(index)


def test_data_set_is_indexed_by_keys():
    dataset = SegmentationDataset(Counting(), eval_transform((0.0,) * 3, (1.0,) * 3))
    image_, mask_ = dataset[Key(3)]
    assert len(dataset) == 5 and image_.shape == (3, 10, 20) and image_.dtype == torch.float32
    assert mask_.shape == (10, 20) and mask_.dtype == torch.int64 and (mask_ == 1).all()
    same, left_out = dataset[Key(3, 0, False)]
    assert torch.equal(same, image_) and (left_out == IGNORE).all() and left_out.dtype == torch.int64
    assert torch.equal(dataset[3][1], mask_)


def test_random_numbers_are_keyed_by_seed_epoch_and_sample():
    def size(seed, *key):
        dataset = SegmentationDataset(Counting(), encoding_transform(200, 400), seed)
        return int((dataset[Key(*key)][1] != IGNORE).sum())

    assert size(0, 1, 2) == size(0, 1, 2)
    assert len({size(0, 1, 2), size(0, 1, 3), size(0, 3, 2), size(1, 1, 2)}) == 4


def test_scenes_and_published_sizes():
    train, val = segmentation_data.scenes(32)
    assert (len(train), len(val)) == (600, 150) and train.read(0)[1].shape == (32, 32) and check_files(val) == 150
    train, val = segmentation_data.published_sizes("nowhere", "ade20k")
    assert (len(train), len(val), len(train.classes)) == (20210, 2000, 150) and "nowhere" in train.title
    with pytest.raises(InputError, match="--data_path nowhere: no such folder"):
        segmentation_data.published_sizes("nowhere", None)


# --- names, colours and shapes


def test_names_and_palettes():
    sizes = {"VOC": 21, "CITYSCAPES": 19, "ADE20K": 150, "PASCAL_CONTEXT": 59}
    for name, size in sizes.items():
        listed = getattr(class_names, name)
        assert len(listed) == len(set(listed)) == size and all(label == label.strip() for label in listed)
    # devkit: aeroplane, bicycle, bird, boat, ..., potted plant, ..., tv monitor
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 16: (0, 64, 0), 20: (0, 64, 128)}  # fmt: skip  # noqa: E501
    assert {i: tuple(palettes.voc_palette(21)[i].tolist()) for i in published} == published
    assert tuple(palettes.voc_palette(256)[255].tolist()) == (224, 224, 192)
    assert (palettes.voc_palette(150, first=1)[:-1] == palettes.voc_palette(150)[1:]).all()
    assert palettes.CITYSCAPES.shape == (19, 3)


def test_polygons_cover_the_pixels_whose_centre_is_inside():
    inside, top = fill_polygon([2, 3, 7, 3, 7, 6, 2, 6], 10, 10)
    assert top == 3 and inside.shape == (3, 10) and (inside == [[2 <= x < 7 for x in range(10)]] * 3).all()
    inside, top = fill_polygon([2.4, 3.6, 7.6, 3.6, 7.6, 6.4, 2.4, 6.4], 10, 10)  # centres 2.5..7.5 and 4.5, 5.5
    assert np.argwhere(inside).min(0).tolist() == [1, 2] and inside.sum() == 6 * 2 and top == 3
    inside, top = fill_polygon([0, 0, 8, 0, 0, 8], 10, 10)  # a triangle: x + y < 8 at the centres
    rows, columns = np.nonzero(inside)
    assert {*zip(rows + top, columns, strict=True)} == {(y, x) for y in range(8) for x in range(8) if x + y + 1 < 8}
    inside, _ = fill_polygon([-5, -5, 20, -5, 20, 20, -5, 20], 10, 10)
    assert inside.shape == (10, 10) and inside.all()  # what is outside of the image is cut off
    ring = [0, 0, 9, 0, 9, 9, 0, 9, 0, 0, 3, 3, 3, 6, 6, 6, 6, 3, 3, 3]
    inside, _ = fill_polygon(ring, 9, 9)
    assert inside.sum() == 81 - 9 and not inside[4, 4]


def pack(counts):
    """COCO's packed run lengths, written from the description of the format."""
    text = ""
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        while True:
            low, number = number & 31, number >> 5
            done = (number == 0 and not low & 16) or (number == -1 and low & 16)
            text += chr(48 + (low if done else low | 32))
            if done:
                break
    return text


def test_run_lengths():
    counts = [3, 2, 1]
    expected = np.array([[0, 1], [0, 1], [0, 0]])  # column by column: 000 110
    assert (decode_runs(counts, 3, 2) == expected).all()
    assert (decode_runs("321", 3, 2) == expected).all()  # written by hand: small numbers are one character from "0" on
    # By hand: 70 is 6 + 2 * 32, so "V" (48 + 32 + 6) and "2"; the fourth number, 5, is 70 less than the second, 75, which is
    # 11 + 2 * 32, "[2"; -70 is 26 - 3 * 32, "j" (48 + 32 + 26) and 29, "M".
    assert (decode_runs("V2[20jM", 15, 10).T.ravel() == [0] * 70 + [1] * 75 + [1] * 5).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = [int(n) for n in rng.integers(0, 3000, rng.integers(1, 30))]
        height, width = 1, sum(counts)
        assert (decode_runs(pack(counts), height, width) == decode_runs(counts, height, width)).all()
    drawn = draw_instances(3, 2, [[5, {"size": [3, 2], "counts": "321"}], [6, [[0, 0, 2, 0, 2, 3, 0, 3]]]], "x")
    assert drawn.tolist() == [[6, 5], [6, 5], [6, 6]]
    for broken in ({"size": [3, 2], "counts": [3, 2]}, {"counts": "32"}, [[1, 2, 3]], {"size": [3, 2]}):
        with pytest.raises(InputError, match="7.jpg: an instance's shape cannot be drawn"):
            draw_instances(3, 2, [[5, broken]], "7.jpg")


def test_a_damaged_mat_file_is_named(tmp_path):
    base = make_sbd(tmp_path)
    (base / "cls/2008_1.mat").write_bytes(b"MATLAB 5.0 but nothing more")
    with pytest.raises(InputError, match=r"2008_1.mat cannot be read as a mask"):
        read_values(str(base / "cls/2008_1.mat"))
