"""What train_segmentation.py opens for its flags of data, and the look at a sample of the files before training."""

import pytest
from small_sources import encoded, encoded_mask, write, write_image, write_mask, write_parquet

from utils.cli.errors import InputError
from utils.cli.registry import load
from utils.cli.segmentation_flags import Data
from utils.mask_folders.pairs import mask_folders
from utils.sources import SEGMENTATION_SETS, segmentation
from utils.sources.segmentation import check_files, check_sources, open_segmentation_data


def opened(**flags):
    dry_run = flags.pop("dry_run", False)
    return open_segmentation_data(Data(**flags), crop_size=32, seed=0, dry_run=dry_run)


def make_pairs(root, train=7, val=1, values=(0, 1, 2, 255), images="images", masks="masks", splits=("train", "val")):
    for split, count in zip(splits, (train, val), strict=True):
        for number in range(count):
            write_image(root / images / split / f"{number}.jpg")
            write_mask(root / masks / split / f"{number}.png", *values)
    return root


def test_every_kind_of_data(tmp_path):
    make_pairs(tmp_path / "own")
    make_pairs(tmp_path / "ade", masks="annotations", splits=("training", "validation"))
    for split, count in (("train", 6), ("test", 2)):
        images, masks = [encoded(i) for i in range(count)], [encoded_mask(i % 3) for i in range(count)]
        write_parquet(tmp_path / "table" / f"{split}.parquet", image=images, mask=masks)
    ade, table = {"data_path": str(tmp_path / "ade"), "data_set": "ade20k"}, str(tmp_path / "table")
    wanted = {
        (600, 150, 11): {},
        (7, 1, 3): {"data_path": str(tmp_path / "own"), "nb_classes": 3},
        (7, 1, 150): ade,
        (8, 1, 150): {**ade, "train_split": "trainval"},
        (6, 2, 3): {"dataset": table},
    }
    for counts, flags in wanted.items():
        train, val = opened(**flags)
        assert (len(train), len(val), len(train.classes)) == counts and train.palette.shape == (counts[2], 3) and train.title
        assert flags or train.read(0)[1].shape == (32, 32)
    stream, val = opened(dataset=table, streaming=True)
    assert (len(stream), len(val)) == (6, 2) and stream.title == f"{table}, streamed"
    with pytest.raises(InputError, match=r"--nb_classes 4: the data has 3 classes \(class 0, class 1, class 2\); leave"):
        opened(data_path=str(tmp_path / "own"), nb_classes=4)


def test_published_data_sets_are_counted_in_a_dry_run(tmp_path):
    nowhere = str(tmp_path / "data")
    for name, known in SEGMENTATION_SETS.items():
        assert callable(load(known.load))
        train, val = opened(data_set=name, data_path=nowhere, dry_run=True)
        assert (len(train), len(val), len(train.classes)) == (known.train_images, known.val_images, known.classes)
        both, _ = opened(data_set=name, data_path=nowhere, dry_run=True, train_split="trainval")
        assert len(both) == known.train_images + known.val_images and both.palette.shape == (known.classes, 3)
        assert train.title == f"{known.title} by its published size ({nowhere} is not here)"
    assert opened(data_set="pets", data_path=str(tmp_path), dry_run=True)  # which would be downloaded otherwise
    for flags in ({"dry_run": True}, {"data_set": "ade20k"}):
        with pytest.raises(InputError, match=f"--data_path {nowhere}: no such folder"):
            opened(data_path=nowhere, **flags)


WRONG_FILES = {
    "class": ("masks", encoded_mask(0, 1, 9), "5.png: the mask holds 9, which is no class; expected 0..2, 255"),
    "size": ("masks", encoded_mask(0, 1, size=(15, 12)), "5.jpg: the image has 16 x 12 pixels, its mask 15 x 12"),
    "mask": ("masks", b"no", "5.png is no image: expected a palette or grey PNG"),
    "image": ("images", b"no", "5.jpg is no image: expected a file that Pillow can"),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_files_are_found_before_training(tmp_path, wrong):
    make_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert [check_files(source) for source in mask_folders(tmp_path)] == [7, 1]
    kind, data, message = WRONG_FILES[wrong]
    write(tmp_path / kind / "train" / f"5.{'jpg' if kind == 'images' else 'png'}", data)
    train, val = mask_folders(tmp_path)
    with pytest.raises(InputError, match=f"1 of 7 samples looked at cannot be used: .*{message}") as error:
        check_files(train)
    assert "\n" not in str(error.value)
    check_files(val)
    if wrong == "image":  # training replaces it, unless there is nothing else
        assert check_files(train, training=True) == 7
        for path in tmp_path.glob("images/train/*"):
            path.write_bytes(b"no")
    with pytest.raises(InputError, match="samples looked at cannot be used"):
        check_files(train, training=True)


def test_a_sample_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "SAMPLE", 3)
    make_pairs(tmp_path, train=9)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    for number in (1, 2, 3, 5):  # the sample is 0, 4 and 8
        write_mask(tmp_path / "masks/train" / f"{number}.png", 0, 77)
    train, _ = mask_folders(tmp_path)
    assert check_files(train) == 3
    monkeypatch.setattr(segmentation, "SAMPLE", 200)
    with pytest.raises(InputError, match=r"4 of 9 samples looked at .*1.png.* \| .*2.png.* \| .*3.png.* \| …"):
        check_files(train)


def test_masks_to_test_on_are_looked_at_before_training(tmp_path):
    make_pairs(tmp_path)
    make_pairs(tmp_path, train=3, val=0, splits=("test", "val"))
    sources = opened(data_path=str(tmp_path))
    check_sources(*sources)
    write_mask(tmp_path / "masks/test/1.png", 0, 77)
    with pytest.raises(InputError, match="masks/test/1.png: the mask holds 77"):
        check_sources(*sources)


def test_masks_of_0_and_255_are_explained(tmp_path):
    make_pairs(tmp_path, values=(0, 255))
    (tmp_path / "classes.txt").write_text("back\nfront\nother\n")
    with pytest.raises(InputError, match="only back and pixels that are ignored; .* --mask_values 0=back 255=NAME makes"):
        check_files(mask_folders(tmp_path)[0])
    make_pairs(tmp_path, values=(255,))
    with pytest.raises(InputError, match="hold no class at all"):
        check_files(mask_folders(tmp_path)[0])
    make_pairs(tmp_path, values=(0,))  # nothing but background, without a pixel that is ignored, is a matter of taste
    assert check_files(mask_folders(tmp_path)[0]) == 7
