"""Pictures of images: the first batch, the mistakes of an evaluation, and predicted masks.

Each function replaces the PNG at `path` in one step.
"""

import numpy as np

from utils.images.bands import as_picture
from utils.pictures.canvas import FAINT, GAP, INK, LINE, MARGIN, RED, TITLE, png
from utils.pictures.mask_colours import coloured, mixed

SHOWN_SAMPLES, SHOWN_MASKS, SHOWN_PREDICTIONS, SHOWN_CLASSES = 32, 16, 6, 40  # most that one picture holds
TOP = 60  # pixels above the first row of images


def samples(path, images, targets, classes, mean, std, palette=None, bands=None):
    """The first training batch as the model sees it: up to 32 images with their labels, or 16 beside their masks.

    images: (B, C, H, W) float, normalised by mean and std; targets: (B,) int64 labels, (B, C) soft labels, or (B, H, W)
    int64 masks, which need `palette` (C, 3) uint8. bands: numbers of the channels that are shown; None: they are RGB.
    """
    legend, group = (), 1
    if targets.ndim == 3:
        photos, masks = _pixels(images[:SHOWN_MASKS], mean, std, bands), _array(targets[:SHOWN_MASKS])
        cells = []
        for photo, mask in zip(photos, masks, strict=True):
            cells += [(photo, ()), (mixed(photo, coloured(mask, palette)), ())]
        legend, group = _legend(masks, classes, palette), 2
    else:
        label = _soft_label if targets.ndim == 2 else _hard_label
        photos, targets = _pixels(images[:SHOWN_SAMPLES], mean, std, bands), _array(targets[:SHOWN_SAMPLES])
        cells = [(photo, label(target, classes)) for photo, target in zip(photos, targets, strict=True)]
    _grid(path, "First training batch, as the model sees it", cells, columns=8, group=group, legend=legend)


def answered(path, images, lines, names, title, heats=None):
    """Images in the order given, with what they are, what the model says of them, and their files.

    images: list of (H, W, 3) uint8, all of one size; lines: for each [(before, name, after, whether it is the mistake)], as
    `Answers.mistakes` gives them; names: str; heats: (N, H, W) as of result/heat_maps.py, drawn beside the images.
    """
    cells = []
    for number, (image, parts, name) in enumerate(zip(images, lines, names, strict=True)):
        said = [(before, text, after, RED if wrong else INK) for before, text, after, wrong in parts]
        if heats is None:
            cells.append((image, [*said, ("", name, "", FAINT)]))
        else:
            cells += [(image, [*said[:-1], ("", name, "", FAINT)]), (heated(image, heats[number]), said[-1:])]
    _grid(path, title, cells, columns=6, group=1 if heats is None else 2)


def heated(picture, heat):
    """(H, W, 3) uint8: a picture (H, W, 3) uint8, grey where `heat` (H, W) is 0, coloured with a red glow where it is 1."""
    weight, grey = heat[..., None], picture.mean(-1, keepdims=True) * 0.6 + 60
    glowing = 0.4 * picture + 0.6 * np.float32([255, 40, 0])
    return (grey + weight * (glowing - grey)).clip(0, 255).astype(np.uint8)


def predictions(path, images, truth, predicted, names, of, classes, palette, mean, std, bands=None):
    """Image, true mask and predicted mask of up to 6 samples; hatched where a pixel has no class. names: of the images, str;
    of: from how many they were taken, evenly spread.

    images, bands: as of `samples`; truth, predicted: (B, H, W) int64; palette: (C, 3) uint8.
    """
    photos = _pixels(images[:SHOWN_PREDICTIONS], mean, std, bands)
    masks = np.stack([_array(masks[:SHOWN_PREDICTIONS]) for masks in (truth, predicted)], axis=1)  # (B, 2, H, W)
    cells = []
    for photo, pair, name in zip(photos, masks, names, strict=False):
        parts = zip((name, "truth", "prediction"), (photo, *(coloured(mask, palette) for mask in pair)), strict=True)
        cells += [(pixels, [("", what, "", FAINT)]) for what, pixels in parts]
    title = f"Predictions: {len(photos)} of {of:,} validation images, evenly spread, not chosen by score"
    _grid(path, title, cells, columns=6, group=3, legend=_legend(masks, classes, palette))


def _grid(path, title, cells, columns, group=1, legend=()):
    """Draw images in rows, and a legend below them.

    cells: (pixels (H, W, 3) uint8, lines of text below them), all of one size; a line is (before, name, after, colour), see
    Canvas.text. group: so many cells stand close together. legend: see `_legend`.
    """
    across = max(1, min(columns, len(cells)))
    apart = (GAP, 3)[group > 1]  # pixels within a group
    between = GAP + (apart + 8) * (group > 1)
    wide = 1160 // max(across, columns // 2) - GAP
    tall = round(wide * cells[0][0].shape[0] / cells[0][0].shape[1]) if cells else 0
    row_height = tall + GAP + LINE * max((len(lines) for _, lines in cells), default=0)
    places = [MARGIN + i * wide + i // group * between + (i - i // group) * apart for i in range(across)]
    width = max(places[-1] + wide, 500) + MARGIN
    legend_columns = max(1, (width - 2 * MARGIN) // 170)
    legend_rows = -(-len(legend) // legend_columns)
    legend_top = TOP + 4 + -(-len(cells) // across) * row_height
    with png(path, width, legend_top + (legend_rows * 24 + GAP if legend else 0) + GAP) as canvas:
        canvas.text(MARGIN, MARGIN, title, width - 2 * MARGIN, TITLE, weight="bold")
        for i, (pixels, lines) in enumerate(cells):
            x, y = places[i % across], TOP + i // across * row_height
            canvas.image(x, y, wide, tall, pixels)
            for number, (before, name, after, colour) in enumerate(lines):
                canvas.text(x, y + tall + 3 + LINE * number, name, wide, before=before, after=after, color=colour)
        for i, (name, style) in enumerate(legend):
            x, y = MARGIN + i % legend_columns * 170, legend_top + i // legend_columns * 24
            canvas.box(x, y, 22, 16, edgecolor=FAINT, linewidth=0.8, **style)
            canvas.text(x + 30, y + 1, name, 130)


def _legend(masks, classes, palette):
    """[(name, style of its box)] of the classes that `masks` (of any shape) hold, the 40 largest of them."""
    inside = (masks >= 0) & (masks < len(classes))
    pixels = np.bincount(masks[inside].ravel(), minlength=len(classes))
    present = np.flatnonzero(pixels)
    shown = np.sort(present[np.argsort(-pixels[present], kind="stable")[:SHOWN_CLASSES]])
    legend = [(classes[i], {"facecolor": np.asarray(palette[i]) / 255}) for i in shown]
    if len(present) > len(shown):
        legend.append((f"and {len(present) - len(shown)} more", {"visible": False}))
    return legend + [("no class", {"facecolor": "white", "hatch": "////"})] * (not inside.all())


def _hard_label(label, classes):
    return [("", classes[label] if 0 <= label < len(classes) else "no class", "", INK)]


def _soft_label(weights, classes):
    """The class, or the two that were mixed with their weights; label smoothing alone makes no second one. Of several labels,
    which do not add up to 1, all of them."""
    if abs(weights.sum() - 1) > 0.01 or (len(weights) == 1):
        there = [(classes[i], weights[i]) for i in np.flatnonzero(weights > 0.01)]
        return [("", ", ".join(name if w == 1 else f"{name} {w:.2f}" for name, w in there) or "no label", "", INK)]
    first, second = (*np.argsort(-weights, kind="stable")[:2], 0)[:2]
    smoothing = weights.min() if len(weights) > 2 else 0.0
    if len(weights) < 2 or weights[second] - smoothing < 0.01:
        return [("", classes[first], "", INK)]
    return [("", classes[first], f" {weights[first]:.2f}", INK), ("+ ", classes[second], f" {weights[second]:.2f}", INK)]


def _array(tensor):
    """A tensor on any device, or an array, as an array; bfloat16 as float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        return tensor.cpu().numpy()
    return np.asarray(tensor)


def _pixels(images, mean, std, bands=None):
    """(B, C, H, W) float, normalised -> (B, H, W, 3) uint8."""
    if bands is not None:
        return as_picture(_array(images)[:, bands])
    pixels = _array(images).transpose(0, 2, 3, 1) * np.float32(std) + np.float32(mean)
    return (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
