"""What values in masks mean: found in a sample, said, mapped by flags, and refused where they cannot be meant."""

import functools

import numpy as np
import pytest
from PIL import Image
from small_sources import SIZE, ids, write, write_image, write_mask

from utils.cli.errors import InputError
from utils.cli.segmentation_flags import Data
from utils.data.look import see
from utils.data.masks import read_values, unknown_line, voc_palette
from utils.images.read import IGNORE
from utils.mask_folders.options import mask_options
from utils.mask_folders.pairs import MaskOptions, mask_folders


def columns(*values, dtype=np.uint8):
    """(12, 16) of equal columns of the values."""
    return np.tile(np.repeat(np.array(values, dtype), SIZE[0] // len(values)), (SIZE[1], 1))


def make(root, save, count=3):
    """Images and masks; save(path without ending, number)."""
    for split, numbers in (("train", range(count)), ("val", range(count, count + 1))):
        for number in numbers:
            write_image(root / "images" / split / f"{number}.jpg", shade=number)
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            save(root / "masks" / split / str(number), number)
    return root


def save_as(path, number, kind, **options):
    Image.fromarray(columns(0, 255)).save(f"{path}.{kind}", **options)


@pytest.mark.parametrize("kind", ["jpg", "webp", "avif", "jp2"])
def test_lossy_masks_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match=rf"masks/train/\d.{kind} is a \w+ file, which changes the values"):
        mask_folders(make(tmp_path, functools.partial(save_as, kind=kind)))


def test_a_jpeg_in_png_clothing_is_refused_and_a_lossless_webp_is_not(tmp_path):
    make(tmp_path / "png", lambda path, _: Image.fromarray(columns(0, 1)).save(f"{path}.png", format="JPEG"))
    with pytest.raises(InputError, match="is a JPEG file"):
        mask_folders(tmp_path / "png")
    make(tmp_path / "webp", functools.partial(save_as, kind="webp", lossless=True))
    assert mask_folders(tmp_path / "webp")[0].classes == ["background", "foreground"]


@pytest.mark.parametrize("how", ["jpeg", "resized"])
def test_values_that_were_blended_are_refused(tmp_path, how):
    def save(path, number):
        y, x = np.mgrid[:160, :160]
        mask = Image.fromarray((np.hypot(x - 70, y - 80) < 50).astype(np.uint8) * 255)
        if how == "jpeg":
            mask.save(path.with_suffix(".jpg"), quality=80)
            mask = Image.open(path.with_suffix(".jpg"))
            mask.load()
            path.with_suffix(".jpg").unlink()
        else:
            mask = mask.resize((477, 477), Image.Resampling.BICUBIC)
        mask.save(path.with_suffix(".png"))

    with pytest.raises(InputError, match="values, though 0, .*255 make .* lossy file .JPEG. or a smooth resize"):
        mask_folders(make(tmp_path, save))


def test_masks_of_many_classes_are_not_taken_for_blended_ones(tmp_path):
    rng = np.random.default_rng(0)
    make(tmp_path, lambda path, _: Image.fromarray(rng.integers(0, 150, (64, 64)).astype(np.uint8)).save(f"{path}.png"))
    assert len(mask_folders(tmp_path)[0].classes) == 150


def test_palettes_that_differ_are_refused(tmp_path):
    def save(path, number):
        image = Image.fromarray(columns(0, 1, 2, 2), "P")
        palette = voc_palette(256)
        palette[1] = (200, 10, 10 * (number == 1))
        image.putpalette(palette.tobytes())
        image.save(f"{path}.png")

    make(tmp_path, save)
    with pytest.raises(InputError, match=r"palettes differ: 1 is the colour 200 10 0 in .*0.png, and 200 10 10 in .*1.png"):
        mask_folders(tmp_path)
    named = mask_folders(tmp_path, options=MaskOptions(values={0: "a", 1: "b", 2: "b"}))[0]
    assert named.classes == ["a", "b"] and ids(named) == [0, 1]


def test_a_palette_in_which_only_unused_colours_differ_is_one(tmp_path):
    def save(path, number):
        image = Image.fromarray(columns(0, 1), "P")
        palette = voc_palette(256)
        palette[9] = (1, 2, number)
        image.putpalette(palette.tobytes())
        image.save(f"{path}.png")

    assert len(mask_folders(make(tmp_path, save))[0].classes) == 2


@pytest.mark.parametrize(
    ("values", "options", "classes", "found", "note"),
    [
        ((0, 255), {}, ["background", "foreground"], [0, 1], "0 is background, 255 is foreground"),
        ((0, 1, 255), {}, ["class 0", "class 1"], [0, 1, IGNORE], None),
        ((1, 2), {}, ["class 0", "class 1", "class 2"], [1, 2], "--reduce_zero_label true makes 1 the first class"),
        ((0, 1, 2, 255), {"reduce_zero": True}, ["class 0", "class 1"], [IGNORE, 0, 1, IGNORE], None),
        ((0, 1, 100), {}, None, [0, 1, 100], "only the values 0, 1, 100 occur, and 98 numbers below 100 do not: --mask_values"),
        ((0, 128, 255), {"values": {0: "sky", 128: "road", 255: "road"}}, ["sky", "road"], [0, 1], None),
        ((0, 128, 255), {"values": {0: "sky", 128: "road"}}, ["sky", "road"], [0, 1, IGNORE], None),
        ((0, 7, 9), {"values": {7: "ignore", 0: "sky", 9: "road"}}, ["sky", "road"], [0, IGNORE, 1], None),
    ],
)
def test_values_and_classes(tmp_path, values, options, classes, found, note):
    make(tmp_path, lambda path, _: write_mask(path.with_suffix(".png"), *values))
    train, _ = mask_folders(tmp_path, options=MaskOptions(**options))
    assert (train.classes == classes if classes else len(train.classes) == 101) and ids(train) == found
    assert (note in train.notes[0]) if note else train.notes == ()


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 255)])
def test_two_names_are_those_of_0_and_255_where_masks_hold_nothing_else(tmp_path, values):
    make(tmp_path, lambda path, _: write_mask(path.with_suffix(".png"), *values))
    write(tmp_path / "classes.txt", b"sound\ncrack\n")
    train, _ = mask_folders(tmp_path)
    assert train.classes == ["sound", "crack"] and ids(train) == ([0, 1] if values == (0, 255) else [0, 1, IGNORE])
    assert train.notes == (("masks: 0 and 255 only in 4 of 4 masks: 0 is sound, 255 is crack",) if values == (0, 255) else ())
    if values == (0, 255):  # a mask that was not looked at
        write_mask(tmp_path / "masks/train/0.png", 0, 1)
        with pytest.raises(InputError, match="the mask holds 1, which is no class; expected 0, 255"):
            train.read(0)
    with pytest.raises(InputError, match="no class but 0"):
        make(tmp_path, lambda path, _: write_mask(path.with_suffix(".png"), 0, 255))
        mask_folders(tmp_path, options=MaskOptions(reduce_zero=True))


def test_values_that_are_not_named_are_refused(tmp_path):
    make(tmp_path, lambda path, _: write_mask(path.with_suffix(".png"), 0, 128, 7))
    with pytest.raises(InputError, match="the mask holds 7, which is no class; expected 0, 128, 255"):
        mask_folders(tmp_path, options=MaskOptions(values={0: "sky", 128: "road"}))[0].read(0)
    with pytest.raises(InputError, match="--mask_values: found 1 classes; expected two at least"):
        mask_options(Data(mask_values=[(1, "crack"), (0, "ignore")]))


def test_colours(tmp_path):
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 0), (9, 9, 9)], np.uint8)
    make(tmp_path, lambda path, _: Image.fromarray(colours[columns(0, 1, 2, 3)]).save(f"{path}.png"))
    with pytest.raises(
        InputError, match="the masks hold the colours .*255 0 0.*name them in a file, .* give it as --mask_colors"
    ):
        mask_folders(tmp_path)

    def opened(text):
        (tmp_path / "colours.csv").write_text(text, encoding="utf-8-sig", newline="\r\n")
        return mask_folders(tmp_path, options=mask_options(Data(mask_colors=str(tmp_path / "colours.csv"))))[0]

    train = opened("name,red,green,blue\nsky, 0,0,0\nroad;255;0;0\nroad,0,200,0\nignore,9,9,9\n")
    assert train.classes == ["sky", "road"] and ids(train) == [0, 1, IGNORE]
    assert train.palette.tolist() == [[0, 0, 0], [255, 0, 0]]
    with pytest.raises(InputError, match="colours that --mask_colors does not name .9 9 9.: add them"):
        opened("sky,0,0,0\nroad,255,0,0\nroad,0,200,0\n").read(0)
    for text, message in (
        ("sky,0,0\nroad,1,1,1", "line 1 is"),
        ("a,0,0,0\na,1,1,1", "two classes at least"),
        ("a,0,0,0\nb,0,0,0", "once"),
    ):
        with pytest.raises(InputError, match=message):
            opened(text)


def test_colours_of_more_classes_than_8_bits_count(tmp_path):
    named = [(f"c{number}", number % 256, number // 256, 7) for number in range(300)] + [("ignore", 255, 255, 255)]
    shown = np.array([named[number][1:] for number in (0, 255, 256, 300)], np.uint8)
    make(tmp_path, lambda path, _: Image.fromarray(shown[columns(0, 1, 2, 3)]).save(f"{path}.png"))
    assert ids(mask_folders(tmp_path, options=MaskOptions(colours=named))[0]) == [0, 255, 256, IGNORE]


def test_a_class_that_only_one_mask_holds(tmp_path):
    """Of 400 masks every second one is looked at; number 201 is not."""
    make(tmp_path, lambda path, number: write_mask(path.with_suffix(".png"), 0, 7 if number == 201 else 1), 400)
    train, val = mask_folders(tmp_path)
    assert train.classes == ["class 0", "class 1"] and "counted in 200 of 401 masks" in train.notes[0]
    place = next(i for i in range(400) if train.name(i).endswith("/201.jpg"))
    assert ids(train, place) == [0, IGNORE]
    assert unknown_line((train, val)).startswith("masks hold 7, which none") and unknown_line((train, val)) == ""
    counted, _ = mask_folders(tmp_path, options=MaskOptions(everything=True))
    assert len(counted.classes) == 8 and ids(counted, place) == [0, 7] and counted.ids.unknown is None
    write(tmp_path / "classes.txt", b"a\nb")
    with pytest.raises(InputError, match="the mask holds 7, which is no class; expected 0..1"):
        mask_folders(tmp_path)[0].read(place)


# --- EXIF


def turned(root, orientation, number, mask_lies, split="train", size=(16, 12)):
    """An image that EXIF turns, white in its upper half as it is stored; its mask marks that half. mask_lies: as the image is
    "stored" or "upright", or "own": stored, with an orientation of its own."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2] = 255
    image, mask = Image.fromarray(pixels), Image.fromarray((pixels[..., 0] > 0).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    paths = [root / kind / split / f"{number}.png" for kind in ("images", "masks")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    image.save(paths[0], exif=exif)
    if mask_lies == "upright":
        from PIL import ImageOps

        mask.getexif()[0x0112] = orientation
        mask = ImageOps.exif_transpose(mask)
        mask.save(paths[1])
    else:
        mask.save(paths[1], **({"exif": exif} if mask_lies == "own" else {}))


@pytest.mark.parametrize("lies", ["stored", "upright", "own"])
def test_image_and_mask_are_turned_alike(tmp_path, lies):
    for number, orientation in enumerate((1, 3, 6, 8, 2, 4)):
        turned(tmp_path, orientation, number, lies)
    turned(tmp_path, 1, 0, lies, "val")
    lines, sources = [], mask_folders(tmp_path)
    see(*sources, say=lines.append)
    assert f"all images are {'read as stored' if lies == 'stored' else 'turned'}" in lines[0]
    for index in range(6):
        image, mask = sources[0].read(index)
        assert ((np.asarray(image)[..., 0] > 128) == (mask == 1)).all()


def test_where_no_size_tells_it_is_said(tmp_path):
    turned(tmp_path, 3, 0, "stored")
    turned(tmp_path, 6, 1, "stored", size=(12, 12))
    turned(tmp_path, 1, 0, "stored", "val")
    lines = []
    see(*mask_folders(tmp_path), say=lines.append)
    assert lines[0].startswith("warning: EXIF turns 2 of the images looked at (0.png, 1.png), and no size tells")
    turned(tmp_path, 6, 2, "stored")
    turned(tmp_path, 8, 3, "upright")
    see(*mask_folders(tmp_path), say=lines.append)
    assert "1 of their masks are turned too and 1 are not" in lines[1]


def test_a_mask_has_its_own_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(columns(0, 1)).save(tmp_path / "x.png", exif=exif)
    assert read_values(str(tmp_path / "x.png")).shape == (16, 12) and read_values(str(tmp_path / "x.png"), False).shape == (
        12,
        16,
    )
