"""Masks from files of all kinds and from COCO's shapes, their sizes and colours, and what is none."""

import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from utils.cli.errors import InputError
from utils.data.masks import (
    class_table,
    decode_runs,
    decode_values,
    draw_instances,
    fill_polygon,
    fit_image,
    own_tables,
    read_values,
    to_classes,
    voc_palette,
)
from utils.images.read import IGNORE, pack_masks, read_image, unpack_masks

VALUES = np.array([[0, 1, 2, 7], [7, 2, 1, 0]], np.uint8)


def encoded(values, **options):
    Image.fromarray(values).save(file := io.BytesIO(), "png", **options)
    return file.getvalue()


def palette_png(values):
    image = Image.fromarray(values)
    image.putpalette(voc_palette(256).tobytes())
    image.save(file := io.BytesIO(), "png")
    return file.getvalue()


def test_values_of_files_of_every_kind(tmp_path):
    deep = VALUES.astype(np.uint16) * 300
    for data, values in {
        encoded(VALUES): VALUES,
        palette_png(VALUES): VALUES,
        encoded(VALUES > 1): VALUES > 1,  # of one bit
        encoded(deep): deep,
        encoded(np.repeat(VALUES[..., None], 3, -1)): VALUES,  # a grey that was saved as colours
    }.items():
        (tmp_path / "x.png").write_bytes(data)
        for found in (read_values(str(tmp_path / "x.png")), decode_values(data, "row 5")):
            assert found.dtype == (np.uint16 if values is deep else np.uint8) and np.array_equal(found, values)
    savemat(tmp_path / "x.mat", {"GTcls": {"Segmentation": VALUES, "CategoriesPresent": np.array([1])}})
    assert np.array_equal(read_values(str(tmp_path / "x.mat")), VALUES)


def mat(segmentation):
    savemat(file := io.BytesIO(), {"GTcls": segmentation})
    return file.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 3, (4, 5, 3)).astype(np.uint8)
WRONG = {
    "text.png": (b"no", "is no image: expected a palette or grey PNG as the mask"),
    "cut.png": (encoded(VALUES)[:45], "cannot be read as a mask|is no image"),
    "colours.png": (encoded(COLOURS), "is a picture of mode RGB; expected class ids in a palette or grey PNG"),
    "bomb.png": (encoded(np.zeros((300, 300), np.uint8)), "has 90,000 pixels, expected 40,000 at most; --max_image_pixels"),
    "cut.mat": (b"MATLAB 5.0 but nothing more", "cannot be read as a mask"),
    "number.mat": (mat(3), "cannot be read as a mask"),
    "deep.mat": (
        mat({"Segmentation": np.full((4, 4), 300)}),
        "cannot be read as a mask .*rows of class ids, 0 to 255",
    ),
    "cube.mat": (mat({"Segmentation": np.zeros((2, 2, 2), np.uint8)}), "cannot be read as a mask .*of shape .2, 2, 2."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_mask_is_named_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    data, message = WRONG[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} ({message})") as error:
        read_values(str(tmp_path / name))
    assert "\n" not in str(error.value)
    if name.endswith("png"):
        with pytest.raises(InputError, match=f"^row 5 ({message})"):
            decode_values(data, "row 5")


def test_a_pipe_or_a_missing_file_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", ".", "none.png", "a\0.png"):
        with pytest.raises(InputError, match="is no file: expected a mask"):
            read_values(str(tmp_path / name))


def test_values_become_classes():
    tables = own_tables(8)
    assert np.array_equal(to_classes(VALUES, tables, "x"), VALUES) and to_classes(VALUES, tables, "x").dtype == np.int64
    for dtype, ignored in ((np.uint8, 255), (np.uint16, 65535)):
        assert to_classes(np.array([[3, ignored]], dtype), tables, "x").tolist() == [[3, IGNORE]]
    with pytest.raises(InputError, match="x: the mask holds 255, which is no class; expected 0..7, 65535"):
        to_classes(np.array([[3, 255]], np.uint16), tables, "x")
    table = class_table((7, 4), (0, 255))
    assert table[[7, 4, 0, 255]].tolist() == [0, 1, IGNORE, IGNORE]
    with pytest.raises(InputError, match="x: the mask holds 1, 2, which is no class; expected 0, 4, 7, 255"):
        to_classes(VALUES, (table, table), "x")


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_an_image_is_turned_upright_if_that_fits_its_mask(tmp_path, orientation):
    picture = Image.fromarray(np.zeros((12, 16, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "x.jpg", exif=exif)
    read = functools.partial(read_image, str(tmp_path / "x.jpg"))
    for shape in ((12, 16), (12, 16) if orientation == 1 else (16, 12)):
        assert fit_image(read, shape, "x.jpg", "x.png").size == shape[::-1]
    with pytest.raises(InputError, match=r"x.jpg: the image has .* pixels, its mask 15 x 12; expected the same size \(x.png\)"):
        fit_image(read, (12, 15), "x.jpg", "x.png")


def test_palette_of_voc():
    # devkit: background, aeroplane, bicycle, bird, boat, ..., chair, ..., potted plant, ..., tv monitor
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 16: (0, 64, 0), 20: (0, 64, 128)}  # fmt: skip  # noqa: E501
    assert {i: tuple(voc_palette(21)[i].tolist()) for i in published} == published
    assert tuple(voc_palette(256)[255].tolist()) == (224, 224, 192)
    assert (voc_palette(150, first=1)[:-1] == voc_palette(150)[1:]).all()


# --- COCO's shapes


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
    expected = np.array([[0, 1], [0, 1], [0, 0]])  # column by column: 000 110
    assert (decode_runs([3, 2, 1], 3, 2) == expected).all()
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
    assert drawn.tolist() == [[6, 5], [6, 5], [6, 6]]  # the first shape at a pixel wins


@pytest.mark.parametrize(
    ("height", "width", "segmentation"),
    [
        (10**6, 10**6, []), (-1, 4, []), ("4", 4, []), (True, [], []),  # sizes
        (4, 4, [[float("nan")] * 6]), (4, 4, [[1e300] * 6]), (4, 4, [[]]), (4, 4, [[1, 2, 3]]), (4, 4, ["text"]), (4, 4, 3),
        (4000, 4000, [[0, 0, 1, 4000] * 100_000]),  # polygons
        (4, 4, {"size": [4, 4]}), (4, 4, {"counts": [15]}), (4, 4, {"counts": [2**63, 2**63 + 16]}),
        (4, 4, {"counts": [-4, 20]}), (4, 4, {"counts": [16.0]}), (4, 4, {"counts": None}), (4, 4, {"counts": "32"}),
        (4, 4, {"counts": "o" * 10**6}), (4, 4, {"counts": "\udcff\n"}), (4, 4, {"counts": {"a": 1}}),  # run lengths
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_drawn(height, width, segmentation):
    with pytest.raises(InputError, match=r"^7.jpg: (an instance's shape cannot be drawn|the instances file says)"):
        draw_instances(height, width, [[5, segmentation]], "7.jpg")


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, torch.uint8), (255, torch.uint8), (256, torch.int16), (32767, torch.int16), (32768, torch.int64)]
)
def test_masks_travel_in_few_bytes(classes, dtype):
    masks = torch.tensor([[0, 1, IGNORE], [classes - 1, classes - 2, IGNORE]])
    packed = pack_masks(masks, classes)
    assert packed.dtype == dtype and torch.equal(unpack_masks(packed), masks)
