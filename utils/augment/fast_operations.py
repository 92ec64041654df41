"""The slow operations of timm's RandAugment, AutoAugment and AugMix once more, several times faster, to the same pixels.

timm does them with Pillow, whose affine transforms evaluate 16 neighbours of each pixel. Shears and translations move
whole rows or columns: 4 neighbours do, with the same weights along a row. The drawing of operations and strengths stays timm's.
Source of the formulas: Pillow, Geometry.c (bicubic and bilinear filter) and ImageFilter.SMOOTH; timm, auto_augment.py.
"""

import random

import numpy as np
import torch
from PIL import Image

ROUNDING = 2**-10  # Pillow cuts off fractions; sums in float32 may lie this little below the whole number they stand for


def speed_up(step):
    """Put the functions of this file in place of timm's in a RandAugment, AutoAugment or AugMix; leaves other steps alone."""
    policies = getattr(step, "policy", None) or [getattr(step, "ops", ())]
    for op in (op for policy in policies for op in policy):
        op.aug_fn = FASTER.get(op.name, op.aug_fn)


def shear_x(image, factor, **options):
    return slide_rows(image, factor * (np.arange(image.height) + 0.5), **options)


def shear_y(image, factor, **options):
    return _transposed(shear_x, image, factor, **options)


def translate_x(image, pixels, **options):
    return slide_rows(image, np.full(image.height, float(pixels)), **options)


def translate_y(image, pixels, **options):
    return _transposed(translate_x, image, pixels, **options)


def translate_x_rel(image, share, **options):
    return translate_x(image, share * image.width, **options)


def translate_y_rel(image, share, **options):
    return translate_y(image, share * image.height, **options)


def sharpness(image, factor, **_):
    """ImageEnhance.Sharpness: away from (factor > 1) or towards the image filtered by (1 1 1, 1 5 1, 1 1 1) / 13."""
    pixels = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    smooth, sums = pixels.clone(), pixels.to(torch.int16)
    center = 4 * sums[1:-1, 1:-1]
    sums = sums[:-2] + sums[1:-1] + sums[2:]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    # by way of int16: from float32, torch's conversion to uint8 is several times slower than both steps
    smooth[1:-1, 1:-1] = (sums + center).float().div_(13).add_(0.5).to(torch.int16)  # the border stays, as in Pillow
    return Image.blend(Image.fromarray(smooth.numpy()), image, factor)


def _transposed(function, image, amount, **options):
    turned = function(image.transpose(Image.Transpose.TRANSPOSE), amount, **options)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def slide_rows(image, shift, *, resample, fillcolor):
    """Pillow's affine transform that takes pixel x of row y from x + shift[y], all shifts of one sign.

    image: PIL, RGB. shift: (H,) pixels. resample: bilinear, bicubic or several, one of which is drawn.
    fillcolor: of what comes from outside.
    """
    if isinstance(resample, list | tuple):
        resample = random.choice(resample)
    if resample not in WEIGHTS:
        return image.transform(image.size, Image.Transform.AFFINE, _matrix(shift), resample=resample, fillcolor=fillcolor)
    width, height = image.size
    whole = np.floor(shift)
    weights = WEIGHTS[resample](torch.from_numpy(shift - whole).float()[:, None])  # of neighbours at -1, 0, 1, 2: (H, 1) each

    # Rows with their ends repeated (twice: the reach of the weights) and fillcolor beyond; then each from its own start.
    margin = int(np.abs(whole).max()) + 4
    line = np.tile(np.array(fillcolor, dtype=np.uint8), width + 2 * margin)
    padded = np.tile(line, (height, 1)).reshape(height, -1, 3)
    left, right = margin, margin + width
    padded[:, left:right] = pixels = np.asarray(image)
    padded[:, left - 2 : left], padded[:, right : right + 2] = pixels[:, :1], pixels[:, -1:]
    reach = 3 * (width + 3)
    windows = np.lib.stride_tricks.sliding_window_view(padded.reshape(height, -1), reach, axis=1)[:, ::3]
    rows = np.arange(height)
    taken = torch.from_numpy(windows[rows, whole.astype(int) + margin - 1]).float()  # (H, 3 * (W + 3))

    result = taken[:, : 3 * width] * weights[0]
    for neighbour, weight in enumerate(weights[1:], start=1):
        result.addcmul_(taken[:, 3 * neighbour : 3 * (neighbour + width)], weight)
    result = result.add_(ROUNDING).clamp_(0, 255).numpy().astype(np.uint8).reshape(height, width, 3)

    # Next to the border, the pixels from outside have some of the repeated ends: the last four that are not inside.
    inside = np.ceil(-0.5 - shift if shift[-1] < 0 else width - 0.5 - shift).astype(int)  # first column inside, or after it
    columns = inside[:, None] + (np.arange(-4, 0) if shift[-1] < 0 else np.arange(4))
    there = (columns >= 0) & (columns < width)
    result[np.broadcast_to(rows[:, None], columns.shape)[there], columns[there]] = fillcolor
    return Image.fromarray(result)


def _matrix(shift):
    """Pillow's affine coefficients of a shear or translation of rows."""
    slope = shift[1] - shift[0] if len(shift) > 1 else 0.0
    return 1, slope, shift[0] - slope * 0.5, 0, 1, 0


def _bicubic(d):
    return -d * (1 - d) ** 2, 1 - (2 - d) * d**2, d * (1 + d - d**2), -(1 - d) * d**2


def _bilinear(d):
    return torch.zeros_like(d), 1 - d, d


WEIGHTS = {Image.Resampling.BICUBIC: _bicubic, Image.Resampling.BILINEAR: _bilinear}
FASTER = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "TranslateXRel": translate_x_rel,
    "TranslateYRel": translate_y_rel,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
}
