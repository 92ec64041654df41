"""What the tests of pictures share: images and names to draw, and a look at what was drawn."""

import numpy as np
import torch
from PIL import Image

from utils.pictures.canvas import Canvas

PALETTE = np.random.default_rng(0).integers(0, 256, (150, 3), np.uint8)
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
HOSTILE = [
    "$\\frac{$", "<script>alert(1)</script>", "two\nlines\t and\x00more", "猫科动物 🐈", "العربية", "हिन्दी",
    "a" * 5000, "\ud800", "", "%s{}\\",
]  # fmt: skip


def watch(monkeypatch):
    """A list that gets each Canvas that is saved; nothing drawn on it may stand out of it."""
    drawn, save, image = [], Canvas.save, Canvas.image

    def keep(canvas, x, y, width, height, pixels):
        image(canvas, x, y, width, height, pixels)
        assert x >= 0 and y >= 0 and x + width <= canvas.width and y + height <= canvas.height
        canvas.given = [*getattr(canvas, "given", []), pixels]

    def check_and_save(canvas, path):
        save(canvas, path)
        left, low, right, high = canvas.figure.get_tightbbox(canvas.renderer).extents * canvas.figure.dpi  # pixels
        assert left >= 0 and low >= 0 and right <= canvas.width * canvas.scale and high <= canvas.height * canvas.scale
        drawn.append(canvas)

    monkeypatch.setattr(Canvas, "save", check_and_save)
    monkeypatch.setattr(Canvas, "image", keep)
    return drawn


def shown(canvas):
    """The images on the canvas as they were given, (H, W, 3) uint8, in their order."""
    return canvas.given


def texts(canvas):
    return [text.get_text() for text in canvas.figure.texts]


def look(path):
    """The picture's pixels (H, W, 3); it is not blank, and no larger than a screen or two."""
    image = Image.open(path)
    assert image.format == "PNG" and 100 <= image.width <= 1800 and 50 <= image.height <= 2400
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels != 255).any(-1).mean() > 0.005
    return pixels


def images(count, size=(24, 32)):
    return (torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) - 0.5) / 0.25


def names(count):
    return [f"class number {i}" for i in range(count)]


def assert_apart(canvas, among):
    """The texts with one of these words in them do not overlap."""
    boxes = [t.get_window_extent(canvas.renderer) for t in canvas.figure.texts if any(word in t.get_text() for word in among)]
    assert len(boxes) > 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
