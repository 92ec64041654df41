"""Built-in data for segmentation: scenes of real handwritten digits on a textured ground, made from numbers alone."""

import numpy as np
from PIL import Image

from utils.sources.palettes import DIGITS
from utils.sources.recognition import stratified_split

SPLITS = ("train", "val")
INK = 0.45  # of a digit's darkest ink: what is darker is its label
HALO = 0.2  # up to here nothing is seen of it; between the two, the ground shines through
CONTRAST = 75  # least difference between ink and ground in brightness, of 255


class Scenes:
    """`count` square scenes of `size` pixels, each a pure function of (seed, split, index) and the size.

    Three to six of scikit-learn's handwritten digits (UCI, optdigits: real 8x8 scans), a quarter to a half of the scene
    high, apart from each other, in any colour that stands out from the ground. The label is the digit's own ink:
    class digit + 1, and 0 for the background. The splits "train" and "val" share no digit: 1,438 and 359 of them.
    """

    title = "built-in scenes of digits"
    classes = ["background", *map(str, range(10))]
    palette = DIGITS

    def __init__(self, split, count, size=96, seed=0):
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.split = split
        members = dict(zip(SPLITS, stratified_split(digits.target, 0.2, seed=0), strict=True))[split]
        inks = (digits.images[members] * (255 / 16)).round().astype(np.uint8)
        self.images = np.empty((count, size, size, 3), np.uint8)
        self.masks = np.empty((count, size, size), np.uint8)
        for index in range(count):
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            self.images[index], self.masks[index] = draw_scene(rng, size, inks, digits.target[members])

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return Image.fromarray(self.images[index]), self.masks[index].astype(np.int64)

    def name(self, index):
        return f"scene {index} ({self.split})"


def draw_scene(rng, size, inks, digits):
    """((size, size, 3) uint8 image, (size, size) uint8 mask) from `inks` (N, 8, 8) uint8 and their `digits` (N,)."""
    image = ground(rng, size)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(3, 7)):
        number = rng.integers(len(inks))
        side = int(rng.integers(round(size / 4), round(size / 2) + 1))
        ink = np.asarray(Image.fromarray(inks[number]).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        ink /= ink.max()
        seen, label = ink > HALO, ink > INK
        for _ in range(8):  # places, until one is free; a digit that finds none is left out
            top, left = rng.integers(0, size - side + 1, 2)
            place = (slice(top, top + side), slice(left, left + side))
            if not mask[place][seen].any():
                break
        else:
            continue
        cover = np.clip((ink - HALO) / (2 * (INK - HALO)), 0, 1)[..., None]  # half covered where the label begins
        image[place] += cover * (_ink_colour(rng, image[place][label].mean()) - image[place])
        mask[place][label] = digits[number] + 1
    image += 6 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def ground(rng, size):
    """(size, size, 3) float32, 0..255: coarse and fine smooth noise around one colour."""
    colour = rng.uniform(40, 215, 3)
    layers = [(int(rng.integers(2, 5)), 40), (int(rng.integers(8, 20)), 15)]  # (grid cells across, amplitude)
    return (colour + sum(_smooth_noise(rng, size, cells, amplitude) for cells, amplitude in layers)).astype(np.float32)


def _smooth_noise(rng, size, cells, amplitude):
    grid = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(smooth, np.float32) - 127.5) * (amplitude / 127.5)


def _ink_colour(rng, brightness):
    """A random colour (3,), made lighter or darker until it differs from the `brightness` behind it by CONTRAST."""
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    lighter = brightness < 127.5
    if CONTRAST < brightness < 255 - CONTRAST:
        lighter = rng.random() < 0.5
    if lighter:
        return 255 - (255 - colour) * min(1, (255 - brightness - CONTRAST) / (255 - colour.mean()))
    return colour * min(1, (brightness - CONTRAST) / colour.mean())
