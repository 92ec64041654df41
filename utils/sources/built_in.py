"""Built-in data: scikit-learn's handwritten digits for recognition, and scenes that are drawn from them for segmentation.

The digits are real scans of 8x8 pixels in ten classes (UCI, optdigits). A fixed fifth of each class is held out for
validation, the same for every seed: 1,438 digits train and 359 validate, in both tasks.
"""

import numpy as np
from PIL import Image

from utils.data.sampling import stratified_split

SPLITS = ("train", "val")
INK = 0.45  # pixels with more than this part of a digit's darkest ink are its label
HALO = 0.2  # pixels with less ink than this show the ground alone; between HALO and INK the ground shines through
KEPT = 20_000_000  # pixels of all scenes of a split
CONTRAST = 75  # least difference between ink and ground in brightness, of 255

# Black for the background; Okabe and Ito's colours, which any kind of colour vision tells apart, and three more.
PALETTE = np.array(
    [
        (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
        (150, 150, 150), (255, 255, 255), (110, 60, 30),
    ],
    dtype=np.uint8,
)  # fmt: skip


class Pictures:
    """A source of recognition whose images are an array, (N, H, W, 3) or (N, H, W) uint8."""

    def __init__(self, images, labels, classes, title):
        self.images, self.labels = images, np.asarray(labels, dtype=np.int64)
        self.classes, self.title = classes, title

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return Image.fromarray(self.images[index]).convert("RGB")

    def encoded(self, index):
        return None

    def name(self, index):
        return f"{self.title}, image {index}"


def digits():
    """(training, validation) digits as sources of recognition."""
    splits = [_digits(split) for split in SPLITS]
    return tuple(Pictures(*part, [str(digit) for digit in range(10)], "built-in digits") for part in splits)


def _digits(split):
    """(images (N, 8, 8) uint8, labels (N,)) of the split "train" or "val"."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    members = stratified_split(digits.target, 0.2, seed=0)[SPLITS.index(split)]
    return (digits.images[members] * (255 / 16)).round().astype(np.uint8), digits.target[members]


# --- scenes ---------------------------------------------------------------------------------------------------------


def scenes(size=96, seed=0):
    """(training, validation): 600 and 150 scenes, `size` pixels high and wide, as sources of segmentation."""
    return Scenes("train", 600, size, seed), Scenes("val", 150, size, seed)


class Scenes:
    """`count` square scenes of `size` pixels, each a pure function of seed, split, index and size.

    A scene shows three to six digits on a textured ground. A digit is a quarter to a half of the scene high, overlaps no
    other, and has a random colour that stands out from the ground. The pixels of its ink are of class digit + 1; all others
    are of class 0, the background.
    """

    title = "built-in scenes of digits"
    classes = ["background", *map(str, range(10))]
    palette = PALETTE

    def __init__(self, split, count, size=96, seed=0):
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.inks, self.labels = _digits(split)
        # Small ones are kept. Large ones would take gigabytes, and are drawn whenever they are read.
        self.kept = [self._draw(index) for index in range(count)] if count * size * size <= KEPT else None

    def __len__(self):
        return self.count

    def _draw(self, index):
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        return draw_scene(rng, self.size, self.inks, self.labels)

    def read(self, index):
        image, mask = self.kept[index] if self.kept else self._draw(index)
        return Image.fromarray(image), mask.astype(np.int64)

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
        for _ in range(8):  # tries to find a free place; a digit that finds none is left out
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
    """(size, size, 3) float32 in 0..255: coarse and fine smooth noise around one random colour."""
    colour = rng.uniform(40, 215, 3)
    layers = [(int(rng.integers(2, 5)), 40), (int(rng.integers(8, 20)), 15)]  # (grid cells across, amplitude)
    return (colour + sum(_smooth_noise(rng, size, cells, amplitude) for cells, amplitude in layers)).astype(np.float32)


def _smooth_noise(rng, size, cells, amplitude):
    grid = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(smooth, np.float32) - 127.5) * (amplitude / 127.5)


def _ink_colour(rng, brightness):
    """A random colour (3,) in 0..255, made lighter or darker until it differs from `brightness` by CONTRAST."""
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    lighter = brightness < 127.5
    if CONTRAST < brightness < 255 - CONTRAST:
        lighter = rng.random() < 0.5
    if lighter:
        return 255 - (255 - colour) * min(1, (255 - brightness - CONTRAST) / (255 - colour.mean()))
    return colour * min(1, (brightness - CONTRAST) / colour.mean())
