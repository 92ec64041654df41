"""Scores for every pixel of an image of any size, from a network that was trained on crops.

    slide  windows of crop_size over the resized image, averaged where they overlap
    whole  the resized image at once
    crop   the centre of the image only, its short side resized to crop_size: quick, for a look during training

Each can be repeated on mirrored windows, the first two on several scales as well. All of it runs on the image's device
and never waits for it: the layout follows from sizes alone.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.cli.errors import InputError, choose_one

MODES = ("slide", "whole", "crop")
STRIDE_RATE = 2 / 3  # from window to window, of the window's side: 341 pixels of 512
DIVISOR = 32  # "whole" with the edge rule "pad" pads height and width to a multiple of it


class Layout(NamedTuple):
    """The windows of one size on the resized image, which is padded where they reach beyond it."""

    size: tuple[int, int]  # pixels (H, W) of the resized image
    window: tuple[int, int]  # pixels (h, w)
    tops: list[int]
    lefts: list[int]


@torch.no_grad()
def predict(
    logits_of,
    image,
    *,
    classes,
    mean,
    std,
    mode="slide",
    crop_size=None,
    base_size=None,
    scales=(1.0,),
    flip=False,
    edge="pad",
    combine="exp",
    align_corners=True,
    whole_levels=False,
    antialias=False,
    window_batch=8,
    blend=False,
):
    """Scores (B, classes, H, W) float32 of images (B, 3, H, W) float32 at their own size; a pixel's class is their argmax.

    logits_of: (b, 3, h, w) -> (b, classes, h, w), called for at most `window_batch` windows at a time.
    mean, std: with which the images were normalised; padding is black, to the right and below.
    mode: see the top of the file. crop gives NaN outside of `evaluated_region`.
    crop_size: pixels of a window's side (slide), or of the crop's.
    base_size: the image's long side at scale 1, in pixels; or (long, short), as large as fits into both, which is
        mmsegmentation's img_scale; None: the image's own size. Sides keep their ratio.
    edge: "pad": the last window reaches beyond the edge, onto padding (PyTorch-Encoding). "shift": it is moved inwards, and
        is as small as the image where that is smaller; a whole image is not padded (mmsegmentation). "spread": as few windows
        as cover the image, at equal distances (EoMT).
    combine: "exp": exp(logits + the mirrored window's), averaged over windows, summed over scales (PyTorch-Encoding; sums
        above 88 are infinite). "softmax": logits averaged over windows, then mean of the probabilities over the image and
        its mirror image, and over scales (mmsegmentation).
    align_corners: how image and scores are resized; True: corners stay corners (PyTorch-Encoding), False: the image's edges
        stay edges (mmsegmentation, as its heads have it; its images are resized so in any case).
    blend: windows weigh less towards their edges, where they see less around a pixel, so that no edge shows. Published: False.
    antialias: an image that shrinks is averaged over the pixels that become one, as PIL's. Published: False, EoMT True.
    whole_levels: a resized image has whole grey levels, 0..255, as mmsegmentation's, which is resized by OpenCV.

    Sources: PyTorch-Encoding, encoding/models/sseg/base.py (MultiEvalModule); mmsegmentation,
    mmseg/models/segmentors/encoder_decoder.py; tue-mps/eomt, training/lightning_module.py. Raises InputError for arguments
    that do not fit each other, and for logits of another shape.
    """
    _check(mode, crop_size, scales, edge, combine)
    height, width = image.shape[2:]

    def logits_of_windows(windows):
        parts = [logits_of(part).float() for part in windows.split(window_batch)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        expected = (len(windows), classes, *windows.shape[2:])
        if logits.shape != expected:
            raise InputError(f"the network gave logits {tuple(logits.shape)}: expected {expected} for the windows and classes")
        return logits

    def run(windows):  # (b, 3, h, w) -> (b, classes, h, w)
        if combine == "softmax":
            return logits_of_windows(windows)
        if not flip:
            return logits_of_windows(windows).exp()
        logits, mirrored = logits_of_windows(torch.cat([windows, windows.flip(-1)])).chunk(2)
        return (logits + mirrored.flip(-1)).exp()

    total = 0
    for scale in scales:
        layout = _layout(mode, height, width, crop_size, base_size, scale, edge)
        resized = _resize(image, layout.size, align_corners, antialias)
        if whole_levels and resized is not image:
            resized = _round_levels(resized, mean, std)
        if flip and combine == "softmax":
            resized = torch.cat([resized, resized.flip(-1)])
        per_call = max(1, window_batch // (len(image) * (1 + flip)))
        scores = _over_windows(run, _pad(resized, layout, mean, std), layout, per_call, blend)
        scores = _resize(_fit(scores, layout), (height, width), align_corners)
        if combine == "softmax":
            scores = scores.softmax(1) / len(scales)
            if flip:
                straight, mirrored = scores.chunk(2)
                scores = (straight + mirrored.flip(-1)) / 2
        total = total + scores
    if mode == "crop":
        rows, columns = evaluated_region(height, width, mode, crop_size)
        inside, total = total[:, :, rows, columns], torch.full_like(total, math.nan)
        total[:, :, rows, columns] = inside
    return total


def evaluated_region(height, width, mode, crop_size=None):
    """(rows, columns): slices of the pixels of a height x width image that `mode` has scores for; in crop mode those
    that lie in the crop as a whole, otherwise all. Score `scores[:, :, rows, columns]` by `masks[:, rows, columns]`."""
    if mode != "crop":
        return slice(0, height), slice(0, width)
    layout = _crop(height, width, crop_size)
    sides = zip((height, width), layout.size, (layout.tops[0], layout.lefts[0]), strict=True)
    return tuple(slice(-(-start * own // resized), (start + crop_size) * own // resized) for own, resized, start in sides)


def _check(mode, crop_size, scales, edge, combine):
    choose_one(mode, MODES, "evaluation mode")
    choose_one(edge, ("pad", "shift", "spread"), "edge rule")
    choose_one(combine, ("exp", "softmax"), "combination of scores")
    if mode != "whole" and not crop_size:
        raise InputError(f"evaluation mode {mode} without a crop size: give crop_size in pixels")
    if not scales or min(scales) <= 0:
        raise InputError(f"evaluation scales {tuple(scales)}: expected numbers above 0, such as 0.75 1.0 1.25")
    if mode == "crop" and tuple(scales) != (1.0,):
        raise InputError(f"evaluation scales {tuple(scales)} in mode crop, which has one scale: use slide or whole")


def _layout(mode, height, width, crop_size, base_size, scale, edge):
    if mode == "crop":
        return _crop(height, width, crop_size)
    size = resized_to(height, width, base_size, scale)
    if mode == "whole":
        multiple = DIVISOR if edge == "pad" else 1
        return Layout(size, tuple(-(-side // multiple) * multiple for side in size), [0], [0])
    if edge == "spread":
        return Layout(size, tuple(min(side, crop_size) for side in size), *(_spread(side, crop_size) for side in size))
    stride = max(1, int(crop_size * STRIDE_RATE))
    starts = [[i * stride for i in range(-(-max(side - crop_size, 0) // stride) + 1)] for side in size]
    if edge == "pad":
        return Layout(size, (crop_size, crop_size), *starts)
    window = tuple(min(side, crop_size) for side in size)
    return Layout(size, window, *([min(s, size[i] - window[i]) for s in starts[i]] for i in range(2)))


def _spread(side, crop_size):
    """Starts of as few windows as cover `side`, at equal distances."""
    count = -(-side // crop_size)
    return [int(i * (side - crop_size) / max(count - 1, 1)) for i in range(count)]


def _crop(height, width, crop_size):
    short = min(height, width)
    size = tuple(int(side * crop_size / short) for side in (height, width))
    return Layout(size, (crop_size, crop_size), *([round((side - crop_size) / 2)] for side in size))


def resized_to(height, width, base_size, scale=1.0):
    """(H, W) at this scale of an image of height x width; base_size: see `predict`."""
    if isinstance(base_size, (tuple, list)):
        long, short = (int(side * scale) for side in base_size)
        factor = min(long / max(height, width), short / min(height, width))
        return tuple(max(1, int(side * factor + 0.5)) for side in (height, width))
    long = math.ceil((base_size or max(height, width)) * scale)
    return tuple(max(1, int(side * long / max(height, width) + 0.5)) for side in (height, width))


def _round_levels(image, mean, std):
    """The normalised image with values that whole grey levels have: halves go up, as OpenCV's, in spite of float32."""
    channels = zip(image.split(1, 1), mean, std, strict=True)
    return torch.cat([(((x * s + m) * 255 + 0.5001).floor() / 255 - m) / s for x, m, s in channels], 1)


def _pad(image, layout, mean, std):
    """Black pixels, right and below, as far as the windows reach."""
    below = max(0, layout.tops[-1] + layout.window[0] - image.shape[2])
    right = max(0, layout.lefts[-1] + layout.window[1] - image.shape[3])
    if not below and not right:
        return image
    channels = zip(image.split(1, 1), mean, std, strict=True)
    return torch.cat([F.pad(channel, (0, right, 0, below), value=-m / s) for channel, m, s in channels], 1)


def _over_windows(run, image, layout, per_call, blend):
    """Mean of what `run` gives for the windows, over the area they cover; blend: weighted by the distance to the edges."""
    (h, w), corners = layout.window, [(top, left) for top in layout.tops for left in layout.lefts]
    total = count = None
    for start in range(0, len(corners), per_call):
        some = corners[start : start + per_call]
        outputs = run(torch.cat([image[:, :, top : top + h, left : left + w] for top, left in some]))
        if len(corners) == 1:
            return outputs
        if total is None:
            total = outputs.new_zeros(len(image), outputs.shape[1], layout.tops[-1] + h, layout.lefts[-1] + w)
            count = outputs.new_zeros(1, 1, *total.shape[2:])
            weights = _towards_the_middle(h, outputs)[:, None] * _towards_the_middle(w, outputs) if blend else 1
        for (top, left), output in zip(some, outputs.split(len(image)), strict=True):
            total[:, :, top : top + h, left : left + w] += output * weights if blend else output
            count[:, :, top : top + h, left : left + w] += weights
    return total.div_(count)


def _towards_the_middle(side, like):
    """(side,): above 0 at both ends, 1 in the middle, a straight line between."""
    steps = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(steps, steps.flip(0)) / ((side + 1) / 2)


def _fit(scores, layout):
    """Scores over the covered area, cut to the resized image; around a centre crop its border is repeated."""
    (height, width), top, left = layout.size, layout.tops[0], layout.lefts[0]
    scores = scores[:, :, : height - top, : width - left]
    around = (left, width - left - scores.shape[3], top, height - top - scores.shape[2])
    return F.pad(scores, around, mode="replicate") if any(around) else scores


def _resize(images, size, align_corners, antialias=False):
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=align_corners, antialias=antialias)
