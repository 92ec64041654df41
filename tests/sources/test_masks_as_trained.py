"""An evaluation reads masks as the training of its weights did, by config.json beside them."""

import json

import numpy as np
import pytest
from PIL import Image
from small_sources import ids, write, write_image, write_mask

from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.cli.segmentation_flags import Data
from utils.data.masks import unknown_line
from utils.images.read import IGNORE
from utils.mask_folders.options import mask_config
from utils.run.start import take_start
from utils.sources.segmentation import open_segmentation_data

NETWORK = {"crop_size": 32, "base_size": 32, "transforms": "none", "mean": [0.5] * 3, "std": [0.5] * 3}


def make(root, train, val, suffix=""):
    """An image and its mask in each split, and no classes.txt."""
    for split, values in (("train", train), ("val", val)):
        write_image(root / "images" / split / "0.jpg")
        write_mask(root / "masks" / split / f"0{suffix}.png", *values)
    return root


def opened(words, **options):
    """(sources, what is said, what the weights told) of this command line."""
    args = parse("train_segmentation.py", "", words.split())
    start, told = take_start(args, args.backbone, ())
    if args.eval:
        options |= {"need_train": False, "trained": start.classes if start.evaluation.get("mask_numbers") else None}
    lines = []
    sources = open_segmentation_data(Data.of(args), crop_size=32, seed=0, say=lines.append, **options)
    return args, sources, lines, told


def trained(folder, words):
    """`folder` with the config.json of a run with these words."""
    args, (train, _), *_ = opened(words)
    network = {"backbone": "resnet10t", "head": "fcn", "classes": len(train.classes)}
    config = NETWORK | {"network": network, "classes": train.classes, "palette": train.palette.tolist()}
    write(folder / "config.json", json.dumps(config | mask_config(Data.of(args), train)).encode())
    return folder


@pytest.mark.parametrize(
    ("train", "val", "flags", "classes", "found", "read"),
    [
        ((0, 1, 2), (0, 1, 1), "--reduce_zero_label true", ["class 0", "class 1"], [IGNORE, 0], "--reduce_zero_label"),
        ((0, 7, 9), (0, 9), "--mask_values 0=sky 9=car 7=road", ["sky", "car", "road"], [0, 1], "--mask_values"),
        ((0, 255), (255, 255), "", ["background", "foreground"], [1], "--mask_values"),
        ((0, 1, 255), (0, 0, 255), "", ["class 0", "class 1"], [0, IGNORE], None),
        ((0, 1, 3), (0, 1), "", ["class 0", "class 1", "class 2", "class 3"], [0, 1], None),
    ],
)
def test_flags_of_masks_are_those_of_the_training(tmp_path, train, val, flags, classes, found, read):
    data = f"--data_path {make(tmp_path / 'data', train, val)} "
    words = f"{data} --eval true --finetune {trained(tmp_path / 'best', data + flags)} "
    _, (_, source), lines, told = opened(words)
    assert source.classes == classes and ids(source) == found
    assert told[1:] == ([f"masks are read as in training: {read}"] if read else [])
    assert read or any("there is no classes.txt" in line for line in lines)


def test_colours_and_a_suffix_need_no_file_of_the_training(tmp_path):
    make(tmp_path / "data", (0,), (0,), "_mask")
    colours = np.array([(0, 0, 0), (255, 0, 0), (9, 9, 9)], np.uint8)[np.tile(np.arange(16) // 6, (12, 1))]
    for split in ("train", "val"):
        Image.fromarray(colours).save(tmp_path / f"data/masks/{split}/0_mask.png")
    write(tmp_path / "colours.csv", b"sky,0,0,0\nroad,255,0,0\nignore,9,9,9\n")
    data = f"--data_path {tmp_path / 'data'} "
    best = trained(tmp_path / "best", f"{data} --mask_suffix _mask --mask_colors {tmp_path / 'colours.csv'}")
    (tmp_path / "colours.csv").unlink()
    _, (_, source), _, told = opened(f"{data} --eval true --finetune {best}")
    assert source.classes == ["sky", "road"] and ids(source) == [0, 1, IGNORE]
    assert told[1] == "masks are read as in training: --mask_suffix --mask_colors"


def test_a_flag_on_the_line_and_a_data_set_win(tmp_path):
    data = f"--data_path {make(tmp_path / 'data', (0, 1, 2), (0, 1, 2))} "
    words = f"{data} --eval true --finetune {trained(tmp_path / 'best', data + '--reduce_zero_label true')} "
    _, (_, source), *_ = opened(words + "--mask_values 0=class_1 1=class_0 2=class_0")
    assert ids(source) == [0, 1]
    args = parse("train_segmentation.py", "", (words + "--data_set ade20k").split())
    assert take_start(args, args.backbone, ())[1][1:] == [] and not args.reduce_zero_label
    args = parse("train_segmentation.py", "", (words + "--reduce_zero_label false").split())
    take_start(args, args.backbone, ())
    assert args.reduce_zero_label is False


def test_the_weights_classes_count_where_there_is_no_list(tmp_path):
    root = make(tmp_path / "data", (0, 1), (0, 1, 1, 6))
    write(root / "classes.txt", b"sky\nroad\ncar\n")
    data = f"--data_path {root} "
    words = f"{data} --eval true --finetune {trained(tmp_path / 'best', data)}"
    with pytest.raises(InputError, match="the mask holds 6, which is no class"):
        opened(words)[1][1].read(0)
    (root / "classes.txt").unlink()
    _, (_, source), lines, _ = opened(words)
    assert source.classes == ["sky", "road", "car"] and ids(source) == [0, 1, IGNORE]
    assert lines[-1] == "masks: there is no classes.txt; numbers from 0 on are taken for the weights' classes (sky, road, car)"
    assert unknown_line([source], learned=False).startswith("masks hold 6, which is none of the classes")
    write(root / "classes.txt", b"a\nb\nc\nd\ne\nf\ng\n")  # which wins
    assert ids(opened(words)[1][1]) == [0, 1, 6]


def test_255_is_a_class_of_two_names_only_where_it_was_one_in_training(tmp_path):
    root = make(tmp_path / "data", (0, 1, 255), (0, 0, 255))
    write(root / "classes.txt", b"sound\ncrack\n")
    data = f"--data_path {root} "
    words = f"{data} --eval true --finetune {trained(tmp_path / 'best', data)}"
    assert ids(opened(words)[1][1]) == [0, IGNORE]
    make(tmp_path / "data", (0, 255), (0, 0, 255))
    trained(tmp_path / "best", data)
    assert ids(opened(words)[1][1]) == [0, 1]


def test_numbers_of_masks_are_not_taken_for_merged_classes(tmp_path):
    root = make(tmp_path / "data", (0, 1, 2), (0, 1, 2))
    write(tmp_path / "some.txt", b"class 2\nclass 0\n")
    data = f"--data_path {root} "
    words = f"{data} --eval true --finetune {trained(tmp_path / 'best', f'{data} --classes {tmp_path}/some.txt')}"
    assert opened(words)[1][1].classes == ["class 0", "class 1", "class 2"]  # which in_classes refuses
    assert ids(opened(f"{words} --classes {tmp_path}/some.txt")[1][1]) == [1, IGNORE, 0]


@pytest.mark.parametrize(
    "wrong", [{"mask_values": [[70000, "a"]]}, {"mask_values": 3}, {"mask_colors": [["a", 1, 2, 256]]}, {"mask_suffix": 1}]
)
def test_a_config_that_no_training_writes(tmp_path, wrong):
    data = f"--data_path {make(tmp_path / 'data', (0, 1), (0, 1))} "
    best = trained(tmp_path / "best", data)
    write(best / "config.json", json.dumps(json.loads((best / "config.json").read_text()) | wrong).encode())
    with pytest.raises(InputError, match=f"config.json: {next(iter(wrong))}: expected"):
        opened(f"{data} --eval true --finetune {best}")
