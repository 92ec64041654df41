"""Prediction for segmentation: masks and overlays of any images, in their own sizes; no file is mixed up with another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_networks import one_thread  # noqa: F401, a fixture

from utils.cli.errors import InputError
from utils.result.image_files import find_images, png_names
from utils.result.predict_segmentation import Segmenter, predict_folder

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
CLASSES = ["r", "g", "b"]


def strongest_channel(image):
    return np.asarray(image).argmax(-1)


def quiet(images, output_dir, segment=strongest_channel, classes=CLASSES, palette=PALETTE, **options):
    """The lines that `predict_folder` says."""
    said = []
    predict_folder(segment, images, output_dir, classes=classes, palette=palette, say=said.append, **options)
    return said


def picture(path, size=(9, 7), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_folder_of_any_sizes_is_predicted_in_the_sizes_of_the_originals(tmp_path):
    sizes = {"a.png": (40, 30), "b.jpg": (17, 53), "deep/a.png": (8, 8)}
    for seed, (name, size) in enumerate(sizes.items()):
        picture(tmp_path / "in" / name, size, seed)
    quiet(tmp_path / "in", tmp_path / "out", process=1, processes=2, gather=list)
    said = quiet(tmp_path / "in", tmp_path / "out", process=0, processes=2, gather=list)
    for name, size in sizes.items():
        mask = Image.open((tmp_path / "out/masks" / name).with_suffix(".png"))
        assert mask.size == size == Image.open((tmp_path / "out/overlays" / name).with_suffix(".png")).size
        assert (np.asarray(mask) == strongest_channel(Image.open(tmp_path / "in" / name).convert("RGB"))).all()
    assert (tmp_path / "out/legend.png").exists() and "3 images" in said[-1]
    quiet(tmp_path / "in" / "b.jpg", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one/masks").iterdir()] == ["b.png"]


def test_each_image_has_a_result_of_its_own(tmp_path):
    names = ["a.jpg", "a.jpg.png", "a.png", "b.png", "deep/a.png"]
    assert len({*png_names(names)}) == len(names) and png_names(names)[3:] == ["b.png", "deep/a.png"]
    for seed, name in enumerate(("a.bmp", "a.png", "b.png")):
        picture(tmp_path / "in" / name, seed=seed)
    quiet(tmp_path / "in", tmp_path / "out")
    for image, mask in (("a.bmp", "a.bmp.png"), ("a.png", "a.png.png"), ("b.png", "b.png")):
        found = np.asarray(Image.open(tmp_path / "out/masks" / mask))
        assert (found == strongest_channel(Image.open(tmp_path / "in" / image))).all()


def test_hidden_and_broken_files_are_named_and_left_out(tmp_path):
    picture(tmp_path / "in/b.png")
    for name in ("._a.jpg", ".hidden/c.png", "broken.jpg"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("no picture")
    said = quiet(tmp_path / "in", tmp_path / "out")
    assert said[0] == "left out: 2 hidden (._a.jpg, .hidden/c.png)"
    assert said[-2].startswith("warning: ") and "broken.jpg is no image" in said[-2]
    assert "predicted: 1 image, 1 more could not be read;" in said[-1]
    (tmp_path / "in/b.png").write_text("no picture")
    with pytest.raises(InputError, match="b.png is no image.*nor can the other 1 below"):
        quiet(tmp_path / "in", tmp_path / "new")


def test_results_in_the_input_folder_are_not_read_again_and_replaced_with_a_word(tmp_path):
    picture(tmp_path / "a.png")
    assert "1 image;" in quiet(tmp_path, tmp_path)[-1]
    said = quiet(tmp_path, tmp_path)
    assert said[0] == "left out: 3 of an earlier prediction (legend.png, masks/a.png, overlays/a.png)"
    assert said[1] == f"replaced: 1 masks of an earlier prediction in {tmp_path}" and "predicted: 1 image;" in said[-1]


@pytest.mark.parametrize("name", ["masks/a.png", "overlays/a.png", "legend.png"])
def test_files_that_no_prediction_wrote_are_not_replaced(tmp_path, name):
    picture(tmp_path / "in/a.png")
    truth = picture(tmp_path / "out" / name, seed=1)
    before = truth.read_bytes()
    with pytest.raises(InputError, match=f"{name}: would be replaced, and no --predict wrote it; name another --output_dir"):
        quiet(tmp_path / "in", tmp_path / "out")
    assert truth.read_bytes() == before and [*(tmp_path / "out").rglob("*.png")] == [truth]


def test_many_classes_give_masks_of_16_bits(tmp_path):
    picture(tmp_path / "in/a.png", (40, 20))
    mask = np.arange(800).reshape(20, 40) - 1
    palette = np.random.default_rng(0).integers(0, 255, (799, 3)).astype(np.uint8)
    quiet(tmp_path / "in", tmp_path / "out", lambda image: mask, [f"class {i}" for i in range(799)], palette)
    found = np.asarray(Image.open(tmp_path / "out/masks/a.png")).astype(int)
    assert found[0, 0] == 65535 and (found.ravel()[1:] == mask.ravel()[1:]).all()


@pytest.mark.parametrize("first, clear", [("Background", True), ("sky", False)])
def test_the_background_stays_clear_in_overlays(tmp_path, first, clear):
    original = np.asarray(Image.open(picture(tmp_path / "in/a.png")))
    quiet(tmp_path / "in", tmp_path / "out", lambda image: np.eye(7, 9, dtype=int), [first, "x"], PALETTE)
    over = np.asarray(Image.open(tmp_path / "out/overlays/a.png"))
    assert ((over == original).all(-1)[np.eye(7, 9) == 0]).all() == clear and (over[0, 0] != original[0, 0]).any()


class Finder(torch.nn.Module):
    """Finds white squares of 8 to 12 pixels, as a network does that has learned them at that size; no others."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, only_logits):
        red = images[:, :1]
        inside, around = (F.avg_pool2d(F.avg_pool2d(red, (k, 1), 1, (k // 2, 0)), (1, k), 1, (0, k // 2)) for k in (7, 33))
        return {"logits": torch.cat([torch.full_like(inside, 0.9), inside - (around > 0.3).float()], 1)}


def test_a_small_object_in_a_large_picture_is_found_at_the_scale_of_the_training():
    pixels = np.zeros((2000, 3000, 3), np.uint8)
    pixels[1500:1540, 2400:2440] = 255
    view = {"classes": 2, "mode": "whole", "crop_size": 240, "base_size": 260, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    view |= {"combine": "softmax"}
    image = Image.fromarray(pixels)
    assert not Segmenter(Finder(), view)(image.reduce(4)).any()  # in 260 pixels it is smaller than four
    segment = Segmenter(Finder(), view, trained_on=(1040, 780))  # which were shrunk to 260: the picture to 750
    found = np.argwhere(segment(image) == 1)
    assert len(found) and found.min(0).tolist() >= [1492, 2392] and found.max(0).tolist() <= [1548, 2448]
    assert segment.is_large(2000, 3000) and not segment.is_large(780, 1200)  # as evaluated
    same = Segmenter(Finder(), view, trained_on=(3000, 2000))  # such pictures were shrunk in training, too
    assert not same.is_large(2000, 3000) and same.factor() == pytest.approx(260 / 3000, rel=1e-3)


def test_images_that_are_not_there_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("none", "no such file or folder"),
        ("empty", "no images in it"),
        ("x" * 300, "no such file|too long"),
    ):
        with pytest.raises(InputError, match=message):
            find_images(tmp_path / path)
