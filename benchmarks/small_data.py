"""Small data sets such as people have: built from what packages ship, without a download, in under a minute each.

    python benchmarks/small_data.py OUT                    # all of them
    python benchmarks/small_data.py OUT emoji cracks       # some

They need scikit-image (its photographs) and Debian's packages fonts-noto-color-emoji, unicode-data (the groups of the emoji),
fontconfig, fonts-dejavu, fonts-liberation, fonts-freefont-ttf, fonts-lato, fonts-comfortaa, fonts-inconsolata and
fonts-open-sans. A set whose parts are missing says so and is left out. Recognition sets are trees
OUT/NAME/{train,val}/CLASS; segmentation sets are OUT/NAME/{images,masks}/{train,val} and classes.txt. What training images
show never comes up in validation images: other regions of a photograph, other emoji, other fonts, other faces.
"""

import argparse
import functools
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 160  # pixels of a side
EMOJI_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_NAMES = "/usr/share/unicode/emoji/emoji-test.txt"
FAMILIES = (  # by name, so that the sets do not follow what else a machine has
    "Comfortaa", "DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "FreeMono", "FreeSans", "FreeSerif", "Inconsolata", "Lato",
    "Liberation Mono", "Liberation Sans", "Liberation Sans Narrow", "Liberation Serif", "Open Sans", "Open Sans Condensed",
)  # fmt: skip
TYPEFACES = ("Comfortaa", "DejaVu Serif", "FreeMono", "Lato", "Liberation Sans Narrow")
COLOUR_PHOTOGRAPHS = "astronaut chelsea coffee rocket motorcycle_left retina ihc hubble_deep_field".split()
TEXTURES = "brick grass gravel coins page text moon cell".split()


# --- what they are made of


@functools.cache
def photograph(name):
    """A photograph of scikit-image or scikit-learn by name, RGB."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage

    folder = pathlib.Path(skimage.__file__).parent / "data"
    return Image.open(next(folder.glob(f"{name}.*"))).convert("RGB")


def crop_of(image, rng, left, right):
    """A square, a third to two thirds of the short side, from the part of the width between the shares left and right."""
    width, height = image.size
    room = int(width * (right - left))
    side = min(int(min(width, height) * rng.uniform(0.33, 0.66)), room)
    x, y = int(width * left) + rng.randint(0, room - side), rng.randint(0, height - side)
    return image.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.BICUBIC)


def background(rng, val):
    """A crop of any colour photograph: its left part for training, its right part for validation."""
    return crop_of(photograph(rng.choice(("china", "flower", *COLOUR_PHOTOGRAPHS))), rng, *((0.6, 1) if val else (0, 0.6)))


@functools.cache
def emoji_by_group():
    """({group: characters}, {subgroup: characters}) of what Unicode calls fully qualified, skin tones left out."""
    groups, subgroups, group, subgroup = {}, {}, None, None
    for line in pathlib.Path(EMOJI_NAMES).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":")[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":")[1].strip()
        elif "; fully-qualified" in line and "skin tone" not in line:
            character = "".join(chr(int(code, 16)) for code in line.split(";")[0].split())
            if len(character.replace("\ufe0f", "")) == 1:  # joined ones need a shaping library
                groups.setdefault(group, []).append(character)
                subgroups.setdefault(subgroup, []).append(character)
    return groups, subgroups


def emoji(character, side):
    """An emoji on transparent ground, RGBA."""
    canvas = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(canvas).text((0, 0), character, font=ImageFont.truetype(EMOJI_FONT, 109), embedded_color=True)
    return canvas.resize((side, side), Image.BICUBIC)


@functools.cache
def fonts():
    """{family: paths} of FAMILIES. Raises OSError where the system lacks one."""
    found = {family: [] for family in FAMILIES}
    lines = subprocess.run(["fc-list", ":lang=en", "family", "file"], capture_output=True, text=True).stdout.splitlines()
    for line in sorted(lines):
        path, family = (part.strip() for part in line.split(":")[:2])
        if family in found:  # "Lato", not "Lato,Lato Thin"
            found[family].append(path)
    if lacking := [family for family in FAMILIES if not found[family]]:
        raise OSError(f"no font {', '.join(lacking)} in the system")
    return found


def written(text, font, rng, size=90):
    """Text in a random colour on a plain ground, turned a little."""
    light = rng.random() < 0.5
    ground, ink = ([rng.randint(150, 255) for _ in range(3)], [rng.randint(0, 100) for _ in range(3)])
    image = Image.new("RGB", (SIZE, SIZE), tuple(ground if light else ink))
    draw = ImageDraw.Draw(image)
    letters = ImageFont.truetype(font, rng.randint(size // 2, size))
    draw.text((SIZE // 2, SIZE // 2), text, font=letters, anchor="mm", fill=tuple(ink if light else ground))
    return image.rotate(rng.uniform(-15, 15), Image.BICUBIC, fillcolor=tuple(ground if light else ink))


def pasted(ground, sign, rng):
    """(image, mask of bool) of an RGBA sign at a random place of the ground."""
    x, y = (rng.randint(0, SIZE - sign.width) for _ in range(2))
    image, mask = ground.copy(), np.zeros((SIZE, SIZE), bool)
    image.paste(sign, (x, y), sign)
    mask[y : y + sign.height, x : x + sign.width] = np.asarray(sign)[:, :, 3] > 127
    return image, mask


def crack(image, rng):
    """(image with a crack, mask of bool): a dark broken line through the image."""
    mask = Image.new("L", image.size)
    x, y, angle = rng.randint(20, SIZE - 20), rng.randint(20, SIZE - 20), rng.uniform(0, 6.28)
    points = [(x, y)]
    for _ in range(rng.randint(6, 12)):
        angle += rng.uniform(-0.7, 0.7)
        x, y = x + 12 * np.cos(angle), y + 12 * np.sin(angle)
        points.append((x, y))
    ImageDraw.Draw(mask).line(points, fill=255, width=rng.randint(2, 4))
    mask = np.asarray(mask) > 0
    pixels = np.asarray(image).copy()
    pixels[mask] = pixels[mask] // 4
    return Image.fromarray(pixels), mask


def digit(number, rng, val, source):
    """A handwritten digit as a sign, RGBA; training and validation have other writings."""
    images, labels = source
    rows = np.flatnonzero(labels == number)
    rows = rows[: len(rows) // 2] if not val else rows[len(rows) // 2 :]
    alpha = Image.fromarray((images[rng.choice(list(rows))] * 15.9).astype(np.uint8)).resize((96, 96), Image.BICUBIC)
    sign = Image.new("RGBA", (96, 96), tuple(rng.randint(0, 255) for _ in range(3)))
    sign.putalpha(alpha)
    return sign


@functools.cache
def handwriting():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


# --- recognition: functions of (rng, val) that give (class, image) one after another


def photographs(rng, val):
    """Which of ten photographs a crop is from: 20 crops of each to learn from."""
    for name in ("china", "flower", *COLOUR_PHOTOGRAPHS):
        for _ in range(12 if val else 20):
            yield name, crop_of(photograph(name), rng, *((0.6, 1) if val else (0, 0.6)))


def textures(rng, val):
    """Which of eight grey surfaces a crop is from: 12 crops of each."""
    for name in TEXTURES:
        for _ in range(12):
            yield name, crop_of(photograph(name), rng, *((0.6, 1) if val else (0, 0.6)))


def faces(rng, val):
    """Faces among other things: 100 images of 25 x 25 pixels, enlarged."""
    import skimage

    images = np.load(pathlib.Path(skimage.__file__).parent / "data" / "lfw_subset.npy")
    for row, image in enumerate(images):
        if (row % 2 == 1) == val:
            pixels = Image.fromarray((image * 255).astype(np.uint8)).convert("RGB")
            yield ("face" if row < 100 else "other"), pixels.resize((SIZE, SIZE), Image.BICUBIC)


def _emoji(named, most, rng, val):
    for name, characters in named.items():
        chosen = random.Random(name).sample(characters, min(len(characters), most))
        half = round(0.7 * len(chosen))
        for character in chosen[half:] if val else chosen[:half]:
            ground = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(200, 255) for _ in range(3)))
            yield name, pasted(ground, emoji(character, rng.randint(90, 140)), rng)[0]


def emoji_groups(rng, val):
    """Smileys, food, travel, …: eight groups, up to 84 emoji of each to learn from."""
    groups = {name: characters for name, characters in emoji_by_group()[0].items() if len(characters) > 40 and name != "Flags"}
    yield from _emoji(groups, 120, rng, val)


def emoji_kinds(rng, val):
    """Mammals, birds, fruit, vegetables, …: twelve narrow kinds, 8 to 40 emoji of each."""
    kinds = "animal-mammal animal-bird animal-marine animal-bug plant-flower plant-other food-fruit food-vegetable food-sweet "
    kinds += "transport-ground transport-air clothing"
    yield from _emoji({name: emoji_by_group()[1][name] for name in kinds.split()}, 60, rng, val)


def digits_on_photographs(rng, val):
    """Handwritten digits in any colour on parts of photographs: 40 of each."""
    for number in range(10):
        for _ in range(20 if val else 40):
            yield str(number), pasted(background(rng, val), digit(number, rng, val, handwriting()), rng)[0]


def letters(rng, val):
    """Ten capital letters in fonts that training does not have: 30 of each."""
    families = FAMILIES[1::3] if val else sorted({*FAMILIES} - {*FAMILIES[1::3]})
    for letter in "ABCDEFGHIK":
        for _ in range(15 if val else 30):
            yield letter, written(letter, rng.choice(fonts()[rng.choice(families)]), rng, 140)


def typefaces(rng, val):
    """Which of five typefaces a word is set in; other words in validation: 60 of each."""
    words = "field paper number image model source layer weight batch epoch".split()
    for family in TYPEFACES:
        for _ in range(20 if val else 60):
            word = rng.choice(words[7:] if val else words[:7])
            yield family, written(word, rng.choice(fonts()[family]), rng, 50)


def cracks(rng, val):
    """Sound and cracked walls, 19 to 1: 285 and 15 images to learn from."""
    for number in range(100 if val else 300):
        wall = crop_of(photograph(rng.choice(("brick", "gravel"))), rng, *((0.6, 1) if val else (0, 0.6)))
        yield ("cracked", crack(wall, rng)[0]) if number % 20 == 0 else ("sound", wall)


# --- segmentation: functions of (rng, val) that give (image, mask of class ids)


def seg_cracks(rng, val):
    """background, crack: a thin line, some 1 % of the pixels; 60 walls."""
    for _ in range(20 if val else 60):
        wall = crop_of(photograph(rng.choice(("brick", "gravel"))), rng, *((0.6, 1) if val else (0, 0.6)))
        image, mask = crack(wall, rng)
        yield image, mask.astype(np.uint8)


def seg_emoji(rng, val):
    """background, animal, food, vehicle: two emoji on a part of a photograph; 80 images."""
    kinds = {1: "animal-mammal", 2: "food-fruit", 3: "transport-ground"}
    for _ in range(20 if val else 80):
        image, ids = background(rng, val), np.zeros((SIZE, SIZE), np.uint8)
        for number in rng.sample(sorted(kinds), 2):
            characters = emoji_by_group()[1][kinds[number]]
            sign = emoji(rng.choice(characters[::3] if val else characters[1::3] + characters[2::3]), rng.randint(50, 90))
            image, mask = pasted(image, sign, rng)
            ids[mask] = number
        yield image, ids


def seg_digits(rng, val):
    """background, even, odd: handwritten digits on parts of photographs; 80 images."""
    for _ in range(20 if val else 80):
        image, ids = background(rng, val), np.zeros((SIZE, SIZE), np.uint8)
        for number in rng.sample(range(10), 2):
            image, mask = pasted(image, digit(number, rng, val, handwriting()), rng)
            ids[mask] = 1 + number % 2
        yield image, ids


def seg_surfaces(rng, val):
    """brick, grass, gravel, coins: which surface each part of an image is; 40 images of two or three parts."""
    for _ in range(20 if val else 40):
        parts = [(number, crop_of(photograph(TEXTURES[number]), rng, *((0.6, 1) if val else (0, 0.6)))) for number in range(4)]
        (ids, image), *others = rng.sample(parts, rng.randint(2, 3))
        image, ids = image.copy(), np.full((SIZE, SIZE), ids, np.uint8)
        for number, other in others:
            mask = Image.new("L", (SIZE, SIZE))
            x, y, r = rng.randint(30, SIZE - 30), rng.randint(30, SIZE - 30), rng.randint(30, 70)
            ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), fill=255)
            image.paste(other, mask=mask)
            ids[np.asarray(mask) > 0] = number
        yield image, ids


RECOGNITION = {
    "photographs": photographs, "textures": textures, "faces": faces, "emoji_groups": emoji_groups, "emoji_kinds": emoji_kinds,
    "digits": digits_on_photographs, "letters": letters, "typefaces": typefaces, "cracks": cracks,
}  # fmt: skip
SEGMENTATION = {"seg_cracks": seg_cracks, "seg_emoji": seg_emoji, "seg_digits": seg_digits, "seg_surfaces": seg_surfaces}


def build(name, folder):
    """Write the data set `name` into folder/name, unless it is there; the same pixels every time. Returns that folder."""
    root = pathlib.Path(folder) / name
    if root.exists():
        return root
    part = root.with_name(f"tmp-{name}")
    for split in ("train", "val"):
        rng = random.Random(f"{name} {split}")
        if name in RECOGNITION:
            for number, (label, image) in enumerate(RECOGNITION[name](rng, split == "val")):
                path = part / split / re.sub(r"[^\w-]+", "_", label) / f"{number:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.convert("RGB").save(path, quality=92)
        else:
            for number, (image, ids) in enumerate(SEGMENTATION[name](rng, split == "val")):
                for kind, picture, ending in (("images", image, "jpg"), ("masks", Image.fromarray(ids), "png")):
                    (part / kind / split).mkdir(parents=True, exist_ok=True)
                    picture.save(part / kind / split / f"{number:04d}.{ending}")
            names = SEGMENTATION[name].__doc__.partition(":")[0].split(", ")
            (part / "classes.txt").write_text("\n".join(names) + "\n")
    part.rename(root)
    return root


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder that gets a folder for each data set")
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*RECOGNITION, *SEGMENTATION])}; none: all")
    args = parser.parse_args(argv)
    for name in args.names or [*RECOGNITION, *SEGMENTATION]:
        try:
            root = build(name, args.out)
        except (ImportError, OSError) as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        counts = {split: sum(path.is_file() for path in root.glob(f"**/{split}/**/*")) for split in ("train", "val")}
        print(f"{root}: {counts['train']} files to train on, {counts['val']} for validation")


if __name__ == "__main__":
    main()
