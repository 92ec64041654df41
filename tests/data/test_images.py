"""Image files of every mode and format, and what is not one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, lines, train
from PIL import Image
from small_tiffs import write_tiff

from utils.cli.errors import InputError
from utils.images.formats import allow_pixels, formats, is_image
from utils.images.read import BadImage, Reading, check_header, decode_image, read_bytes, read_image


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(np.full((9, 7), 128, np.uint8))
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((9, 7), 128 * 257, np.uint16 if mode == "I;16" else np.int32))
    elif mode == "P":
        image = grey.convert("RGB").quantize()
    elif mode == "1":
        image = Image.new("1", (7, 9), 1)
    else:
        image = (grey if mode in ("L", "LA", "F") else grey.convert("RGB")).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F", "I") else "x.png")
    image.save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (9, 7, 3)
    assert pixels[4, 3].tolist() == pytest.approx([255 if mode == "1" else 128] * 3, abs=2)


def test_formats_and_orientation(tmp_path):
    picture = Image.fromarray(np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3))
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tiff", "ppm"):
        picture.save(tmp_path / f"x.{suffix}")
        assert read_image(str(tmp_path / f"x.{suffix}")).size == (20, 12)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees, as telephones write it
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(str(tmp_path / "turned.jpg")).size == (12, 20)
    assert read_image(str(tmp_path / "turned.jpg"), upright=False).size == (20, 12)
    data = read_bytes(str(tmp_path / "turned.jpg"))
    assert np.array_equal(decode_image(data, "x"), read_image(str(tmp_path / "turned.jpg")))
    assert decode_image(data, "x", upright=False).size == (20, 12)


def picture(path, side=60):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


BROKEN = {
    "text": (lambda path, whole: path.write_bytes(b"not an image"), "is no image: expected a file that Pillow can read"),
    "empty": (lambda path, whole: path.write_bytes(b""), "is no image"),
    "truncated": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "cannot be read as an image"),
    "directory": (lambda path, whole: path.mkdir(), "cannot be read as an image .Is a directory"),
    "missing": (lambda path, whole: None, "cannot be read as an image .No such file"),
    "pipe": (lambda path, whole: os.mkfifo(path), "cannot be read as an image .a pipe or device in place of a file"),
    "bomb": (
        lambda path, whole: picture(path, 300),
        "has 90,000 pixels, expected 40,000 at most; --max_image_pixels 90000 reads it",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    path = tmp_path / "5.jpg"
    whole = picture(path)
    path.unlink()
    harm, message = BROKEN[kind]
    harm(path, whole)
    with pytest.raises(BadImage, match=f"5.jpg {message}") as error:
        read_image(str(path))
    assert "\n" not in str(error.value) and isinstance(error.value, InputError)
    if path.is_file():
        with pytest.raises(BadImage, match=f"^row 5 {message}"):
            decode_image(path.read_bytes(), "row 5")
    else:
        with pytest.raises(BadImage, match=f"5.jpg {message}"):
            read_bytes(str(path))
    if kind == "truncated":  # the first bytes are those of an image
        check_header(str(path))
    else:
        with pytest.raises(BadImage, match=f"5.jpg {message}"):
            check_header(str(path))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tiff", "ppm"])
def test_mangled_bytes_give_an_image_or_are_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    whole = picture(tmp_path / f"x.{suffix}", 16)
    rng, broken = np.random.default_rng(0), 0
    for _ in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, min(len(data), 200), 3)  # headers are where Pillow stumbles
        data[places] = rng.integers(0, 256, 3)
        try:
            assert decode_image(data.tobytes(), "x").mode == "RGB"
        except BadImage as error:
            broken += 1
            assert str(error).startswith("x ")
    assert broken


@pytest.mark.parametrize("name", ["x.eps", "x.jpg"])
def test_postscript_is_not_run(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **kwargs: pytest.fail("ran Ghostscript"))
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n%%EOF\n")
    with pytest.raises(BadImage, match=f"{name} is no image"):
        read_image(str(tmp_path / name))
    assert not is_image("x.eps") and is_image("x.PNG")


def deep(path, values, dtype=np.uint16):
    Image.fromarray(np.array(values, dtype).reshape(2, -1)).save(path)
    return str(path)


def test_one_range_for_a_data_set_of_deep_greys(tmp_path):
    from utils.data.look import look, value_range_of

    def found(*files):
        return value_range_of([look(file, "x") for file in files])

    dark, twelve = deep(tmp_path / "dark.png", [10, 200, 3, 150]), deep(tmp_path / "twelve.png", [0, 300, 4000, 2048])
    assert found(dark) == (0, 255) and found(dark, twelve) == (0, 4095)  # a dark one is no image of 8 bits beside others
    assert np.asarray(read_image(dark, reading=Reading((0, 4095))))[..., 0].ravel().tolist() == [0, 12, 0, 9]
    assert np.asarray(read_image(twelve, reading=Reading((0, 4095))))[..., 0].ravel().tolist() == [0, 18, 250, 128]
    full = deep(tmp_path / "full.png", [0, 65535, 256, 300])
    assert found(dark, full) == (0, 65535) and np.asarray(read_image(full))[..., 0].ravel().tolist() == [0, 255, 1, 1]
    whole = deep(tmp_path / "whole.tif", [-500, 1500, 0, 500], np.int32)
    assert found(whole) == (-500, 1500)
    assert np.asarray(read_image(whole))[..., 0].ravel().tolist() == [0, 255, 64, 128]
    unit = deep(tmp_path / "unit.tif", [0, 1, 0.5, np.nan], np.float32)
    assert found(unit) == (0, 1) and np.asarray(read_image(unit))[..., 0].ravel().tolist() == [0, 255, 128, 0]
    large = deep(tmp_path / "large.tif", [0, 100_000, 50_000, 7], np.int32)
    assert found(large) == (0, 131071) and np.asarray(read_image(large))[0, 1, 0] == 195
    Image.new("RGB", (3, 3)).save(tmp_path / "rgb.png")
    assert found(str(tmp_path / "rgb.png")) is None
    assert np.asarray(read_image(twelve))[..., 0].max() == 250 and np.asarray(read_image(dark))[..., 0].max() == 12  # alone


@pytest.mark.parametrize("name", ["x.h5", "x.mpg", "x.grib", "x.wmf"])
def test_what_pillow_knows_and_is_no_photograph(name):
    assert not is_image(name)


def test_heif_is_read_where_its_package_is(without_heif, monkeypatch):
    """The package registers a format with Pillow; here one of Pillow's own stands for it."""
    registered = []

    class Package:
        @staticmethod
        def register_heif_opener():
            registered.append(Image.register_extension("PNG", ".heic"))

    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    assert not is_image("x.HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", Package)
    formats.cache_clear()
    assert is_image("x.HEIC") and len(registered) == 1


@pytest.mark.slow
def test_photographs_of_a_telephone_are_read_upright_and_learned(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for number, name in enumerate(("red", "blue")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (48, 64, 3)) + np.array([150, 0, 0] if number == 0 else [0, 0, 150])
                exif = Image.Exif()
                exif[0x0112] = 6  # to be turned by a quarter
                picture = pillow_heif.from_pillow(Image.fromarray(pixels.astype(np.uint8)))
                picture.save(tmp_path / "data" / split / name / f"{i}.HEIC", quality=90, exif=exif.tobytes())
    image = read_image(tmp_path / "data/train/red/0.HEIC")
    assert image.mode == "RGB" and image.size == (48, 64) and np.asarray(image)[..., 0].mean() > 150
    words = ("--data_path", tmp_path / "data", "--batch_size", 8, "--epochs", 6, "--lr", 8e-3, "--aa", "none")
    done = train(*words, "--num_workers", 1, "--output_dir", tmp_path / "run")
    assert done.returncode == 0 and "training images: HEIF of mode RGB" in done.stdout, done.stderr
    assert max(record["test_acc1"] for record in lines(tmp_path / "run" / "log.txt")) > 90
    done = train("--predict", tmp_path / "data/val", "--finetune", tmp_path / "run/best", "--output_dir", tmp_path)
    assert done.returncode == 0 and "predicted: 8 images" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "shapes, photometric, extra, message",
    [
        ([(8, 8, 5)], 2, (0, 0), "5 bands"),
        ([(8, 8, 4)], 2, (0,), "4 bands"),  # as red, green, blue and infrared are
        ([(8, 8, 2)], 1, (0,), "2 bands"),
        ([(8, 8, 1)] * 5, 1, (), "several pages"),
    ],
)
def test_a_tiff_of_which_a_part_would_be_read_is_refused(tmp_path, shapes, photometric, extra, message):
    write_tiff(tmp_path / "x.tif", [np.zeros(shape, np.uint8) for shape in shapes], photometric, extra)
    for read in (read_image, check_header):
        with pytest.raises(BadImage, match=f"x.tif cannot be read as an image .it has {message}, expected "):
            read(str(tmp_path / "x.tif"))


@pytest.mark.parametrize(("bands", "photometric", "extra"), [(1, 1, ()), (2, 1, (2,)), (3, 2, ()), (4, 2, (2,)), (4, 2, ())])
def test_a_tiff_with_its_transparency_is_read(tmp_path, bands, photometric, extra):
    pixels = np.arange(8 * 8 * bands, dtype=np.uint8).reshape(8, 8, bands)
    write_tiff(tmp_path / "x.tif", [pixels], photometric, extra)
    colours = pixels[..., : 1 if photometric == 1 else 3]
    assert (np.asarray(read_image(str(tmp_path / "x.tif"))) == colours).all()


@pytest.mark.parametrize("compression", [None, "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_tiff_of_one_picture_with_a_thumbnail_is_read(tmp_path, mode, compression):
    if compression == "jpeg" and mode in ("LA", "RGBA", "I;16"):
        pytest.skip("JPEG has no such images")
    picture = Image.new(mode, (8, 8))
    small = Image.new("L", (2, 2))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: a smaller one of another page
    picture.save(tmp_path / "x.tif", compression=compression, save_all=True, append_images=[small])
    assert read_image(str(tmp_path / "x.tif")).size == (8, 8)


def test_transparent_parts_show_what_is_stored_or_the_background(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0] = (10, 20, 30, 255), (10, 20, 30, 0), (200, 100, 0, 51)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    stored = np.asarray(read_image(str(tmp_path / "x.png"))).tolist()
    assert stored == [[[10, 20, 30], [10, 20, 30]], [[200, 100, 0], [0, 0, 0]]]
    shown = np.asarray(read_image(str(tmp_path / "x.png"), reading=Reading(background=(255, 255, 0)))).tolist()
    assert shown == [[[10, 20, 30], [255, 255, 0]], [[244, 224, 0], [255, 255, 0]]]  # 200 x 0.2 + 255 x 0.8 = 244
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    indexed.save(tmp_path / "p.png", transparency=0)
    shown = np.asarray(read_image(str(tmp_path / "p.png"), reading=Reading(background=(0, 0, 255)))).tolist()
    assert shown == [[[0, 0, 255], [200, 0, 0]]]


def test_pixels_that_are_allowed_are_read_in_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    monkeypatch.setenv("STRATA_MAX_IMAGE_PIXELS", "")
    picture(tmp_path / "large.png", 300)
    allow_pixels(89_998)
    with pytest.raises(BadImage, match="has 90,000 pixels, expected 89,998 at most; --max_image_pixels 90000 reads it"):
        read_image(str(tmp_path / "large.png"))
    allow_pixels(90_000)
    assert read_image(str(tmp_path / "large.png")).size == (300, 300)
    code = "import utils.images.read; from PIL import Image; print(Image.MAX_IMAGE_PIXELS)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "45000\n"
