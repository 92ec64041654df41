"""Images of N bands: which files hold them, how their values are scaled, and what is no such image."""

import io
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from utils.augment.recognition import build_transforms
from utils.cli.errors import InputError
from utils.cli.recognition_flags import Augmentation
from utils.data.colours import colours_of
from utils.data.look import see
from utils.folders.class_folders import Folder
from utils.images.bands import to_picture
from utils.images.read import BadImage, Reading, decode_image, read_image

FIVE = Reading(value_range=(0, 1000), in_chans=5)


def values(bands=5, height=6, width=8, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 1000, (height, width, bands)).astype(dtype)


def saved(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return str(tmp_path / "x.npy")


@pytest.mark.parametrize("bands_first", [False, True])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_arrays_of_both_orders_are_scaled_by_the_range(tmp_path, dtype, bands_first):
    array = values(dtype=dtype)
    path = saved(tmp_path, array.transpose(2, 0, 1) if bands_first else array)
    expected = torch.tensor(array.astype(np.float32) / 1000).permute(2, 0, 1)
    torch.testing.assert_close(read_image(path, reading=FIVE), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(decode_image(pathlib.Path(path).read_bytes(), "x", reading=FIVE), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["side by side", "band by band", "a page each"])
def test_tiffs_of_bands(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")
    array, file = values(), io.BytesIO()
    if kind == "side by side":
        tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
    else:
        options = {"planarconfig": "separate"} if kind == "band by band" else {}
        tifffile.imwrite(file, array.transpose(2, 0, 1), photometric="minisblack", **options)
    (tmp_path / "x.tif").write_bytes(file.getvalue())
    found = read_image(tmp_path / "x.tif", reading=FIVE)
    assert torch.equal(found, decode_image(file.getvalue(), "x", reading=FIVE))
    torch.testing.assert_close(found, torch.tensor(array / np.float32(1000)).permute(2, 0, 1), atol=1e-7, rtol=0)


def test_pictures_of_8_bits_are_bands_too(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    for bands, expected in ((4, pixels), (3, pixels[..., :3])):
        found = read_image(tmp_path / "x.png", reading=Reading(in_chans=bands, value_range=(0, 9)))  # which is of deeper ones
        assert torch.equal(found, torch.tensor(expected).permute(2, 0, 1).float() / 255)
    grey = read_image(tmp_path / "x.png", reading=Reading(in_chans=1))
    assert torch.equal(grey[0], torch.tensor(np.array(Image.open(tmp_path / "x.png").convert("L"))).float() / 255)


def test_what_is_no_number_is_black(tmp_path):
    array = np.full((2, 2, 5), 500.0)
    array[0, 0, 0], array[1, 1, 4] = np.nan, -np.inf
    found = read_image(saved(tmp_path, array), reading=FIVE)
    assert found[0, 0, 0] == found[4, 1, 1] == 0 and found.sum() == 18 * 0.5


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (values(4), r"shape 6 x 8 x 4; --in_chans 5 expects height x width x 5, or 5 x height x width"),
        (values(5, height=5), "shape 5 x 8 x 5; --in_chans 5 expects one side only"),
        (np.zeros((6, 8)), "it has 1 bands, and --in_chans says 5"),
        (np.zeros((2, 3, 6, 8)), "shape 2 x 3 x 6 x 8;"),
        (np.zeros((6, 8, 5), complex), "its values are complex128; expected numbers"),
        (np.array([None] * 5), "Python objects"),
    ],
)
def test_what_is_no_such_image_is_named(tmp_path, array, said):
    path = saved(tmp_path, array)
    with pytest.raises(BadImage, match=rf"x\.npy cannot be read as an image \(.*{said}"):
        read_image(path, reading=FIVE)


def test_a_file_of_more_pixels_than_the_memory_is_meant_for_is_refused(tmp_path):
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (20_000, 20_000, 5))  # of which the disk holds nothing
    with pytest.raises(BadImage, match="400,000,000 pixels, expected 178,956,970 at most; --max_image_pixels reads it"):
        read_image(tmp_path / "x.npy", reading=FIVE)


def test_the_sides_of_a_tiff_are_no_bands(tmp_path):
    """5 pages of 3 x 5 pixels, of which an array would leave open what is what."""
    tifffile = pytest.importorskip("tifffile")
    array = values(5, 3, 5).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack")
    found = read_image(tmp_path / "x.tif", reading=FIVE)
    assert found.shape == (5, 3, 5) and np.allclose(found.numpy() * 1000, array, atol=1e-3)
    with pytest.raises(BadImage, match="it has 5 bands, and --in_chans says 3"):
        read_image(tmp_path / "x.tif", reading=Reading(in_chans=3))


def test_a_tiff_of_several_images_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for _ in range(2):
            file.write(values().transpose(2, 0, 1), photometric="minisblack")
    with pytest.raises(BadImage, match="several images of one size"):
        read_image(tmp_path / "x.tif", reading=FIVE)


def test_without_tifffile_a_tiff_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.tif").write_bytes(b"II*\0" + bytes(20))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match="^--in_chans reads TIFF files by tifffile, which is not installed: pip install"):
        read_image(tmp_path / "x.tif", reading=FIVE)


def test_one_range_holds_for_the_data_set_and_colours_are_counted_in_it(tmp_path):
    for number, high in enumerate((100, 3000)):
        array = np.zeros((4, 4, 2), np.uint16)
        array[..., 0], array[0, 0, 1] = 7, high
        np.save(tmp_path / f"{number}.npy", array)
    source = Folder(str(tmp_path), ["0.npy", "1.npy"], [0, 1], ["a", "b"])
    see(source, source, Reading(in_chans=2))
    assert source.reading.value_range == (0, 4095) and source.read(1)[1, 0, 0] == np.float32(3000 / 4095)
    assert [(one.format, one.size, one.mode) for one in source.seen.values()] == [("NPY", (4, 4), "2 x uint16")] * 2
    mean, std = colours_of(source, "data", None, seed=0)
    shares = np.array([100, 3000]) / 16 / 4095
    assert mean == pytest.approx([7 / 4095, shares.mean()], abs=1e-6) and len(std) == 2


def test_no_mean_of_images_that_cannot_be_read_is_one_line_that_says_why(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    source = Folder(str(tmp_path), ["0.png"], [0], ["a"])
    source.reading = Reading(in_chans=4)
    with pytest.raises(InputError, match="^none of 1 training images could be read, such as: .*it has 3 bands, and --in_chans"):
        colours_of(source, "data", None, seed=0)


def test_data_of_photographs_has_no_bands():
    digits = types.SimpleNamespace(title="digits", classes=["0"])
    with pytest.raises(InputError, match="--in_chans 5: digits are photographs in RGB; leave it out"):
        see(digits, digits, Reading(in_chans=5))


def settings(**options):
    plain = {"mean": (0.5,) * 5, "std": (0.25,) * 5, "aa": "none", "reprob": 0.0, "in_chans": 5}
    return Augmentation(**plain | {"input_size": 40} | options)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_evaluation_resizes_each_band_as_torch_does(crop_mode):
    image = torch.rand(5, 50, 60, generator=torch.Generator().manual_seed(0))
    found = build_transforms(settings(crop_pct=1.0, crop_mode=crop_mode)).evaluate(image)
    size = (40, 40) if crop_mode == "squash" else (40, 48)
    resized = torch.nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
    expected = (resized[..., (size[1] - 40) // 2 :][..., :40] - 0.5) / 0.25
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 40])
def test_training_crops_flips_and_erases_all_bands_alike(size):
    image = torch.arange(5.0)[:, None, None].expand(5, 50, 60) / 10 + torch.rand(1, 50, 60)
    train = build_transforms(settings(input_size=size, reprob=1.0, remode="const")).train
    torch.manual_seed(0)
    found, other = train(image), train(image)
    assert found.shape == (5, size, size) and not torch.equal(found, other)
    erased = found == 0
    assert (erased.sum((1, 2)) == erased[0].sum()).all() and 0 < erased[0].sum() < size * size / 2
    inside = ~erased.any(0)
    if size == 40:  # without padding
        torch.testing.assert_close(
            (found[1:] - found[:-1])[:, inside], torch.full((4, int(inside.sum())), 0.4), atol=1e-4, rtol=0
        )


def test_pictures_show_three_bands_or_one():
    image = torch.zeros(5, 4, 4)
    image[3, :2] = 1.0  # of deviation 0.516: 0.5 + 0.5 / 0.516 / 4 of 255
    shown = np.asarray(to_picture(image, (3, 0, 0)))
    assert shown[0, 0].tolist() == [189, 128, 128] and shown[3, 3].tolist() == [66, 128, 128]
    assert np.array_equal(np.asarray(to_picture(image, (3,)))[..., 2], shown[..., 0])
    assert len(np.unique(np.asarray(to_picture(image)))) == 1
    picture = Image.new("RGB", (4, 4))
    assert to_picture(picture) is picture
