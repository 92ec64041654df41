"""Scores of semantic segmentation from one confusion matrix, counted in int64 on the device.

Matrices add up over batches and processes, so every number is exact on any number of processes. Nothing is read back
from the device before `scores`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from utils.cli.errors import InputError
from utils.images.read import IGNORE
from utils.metrics.interval import FEWEST, bootstrap
from utils.metrics.per_class import Pairs, class_rows, mean, per_class


class ConfusionMatrix:
    """Sums the confusion matrices of an evaluation. `matrix`: (classes, classes) int64, rows truth, columns prediction.

    images: of each update (B, 3, classes) int64: pixels of each image by class that are right, true, and predicted; losses:
    of each update with scores (B,) float32: the cross-entropy of each image, summed over its labelled pixels.
    """

    def __init__(self, classes, device=None):
        self.classes, self.images, self.losses = classes, [], []
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction, target):
        """prediction: scores (B, C, H, W) or labels (B, H, W) int64; target: (B, H, W) int64, on the matrix' device."""
        scored = prediction.dim() == target.dim() + 1
        matrices = confusion_matrices(predicted_classes(prediction) if scored else prediction, target, self.classes)
        if scored:
            self.losses.append(cross_entropy_sums(prediction, target))
        self.matrix += matrices.sum(0)
        self.images.append(torch.stack([matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1)], 1))


class MaskAnswers(NamedTuple):
    """What a network answered in an evaluation, pixels added up; arrays of whole numbers, and some images to show."""

    matrix: np.ndarray  # (C, C): rows truth, columns prediction
    index: np.ndarray  # (N,): of the images in their source
    pixels: np.ndarray  # (N, 3, C): pixels of each image by class that are right, true, and predicted
    shown: np.ndarray  # (K,): which images are shown
    images: np.ndarray  # (K, 3, S, S) float16, normalised
    truth: np.ndarray  # (K, S, S)
    predicted: np.ndarray  # (K, S, S)

    @classmethod
    def of(cls, matrix, pixels, numbers, samples, examples, size):
        """matrix (C, C), pixels (rows, 3, C): tensors; numbers: the image of each row, `samples` and above only fill up.

        examples: [(index, image (3, H, W) float, mask (H, W), predicted mask)], which are resized to `size` pixels.
        """
        index, pixels = np.asarray(numbers), pixels.cpu().numpy()
        order = np.argsort(index, kind="stable")[: (index < samples).sum()]
        shown, *parts = zip(*examples, strict=True) if examples else ((), (), (), ())
        images = [_resized(image, size, mode="bilinear", antialias=True).half() for image in parts[0]]
        masks = [[_resized(mask[None], size)[0].to(torch.int32) for mask in masks] for masks in parts[1:]]
        parts = [torch.stack(part).numpy() if part else np.zeros(0) for part in (images, *masks)]
        return cls(matrix.cpu().numpy(), index[order], pixels[order], np.array(shown, np.int64), *parts)

    @property
    def pairs(self):
        return Pairs.of_matrix(self.matrix)

    @property
    def calibration(self):
        """Not known of pixels."""
        return {}

    def config(self):
        """What config.json says of the weights that gave these answers: nothing."""
        return {}

    def class_rows(self, names):
        """The rows of classes.json."""
        rows = class_rows(self.pairs, names, ("iou", "f1", "precision", "recall"))
        return [{"dice" if key == "f1" else key: value for key, value in row.items()} for row in rows]

    def image_rows(self, source):
        """The rows of predictions.csv, its head first; source: of the images, with name(index)."""
        yield "image", "miou", "pixacc"
        for index, (right, truth, said) in zip(self.index.tolist(), self.pixels, strict=True):
            pixacc = 100 * right.sum() / truth.sum() if truth.any() else np.nan
            yield source.name(index), f"{mean(_iou(right, truth, said)):.2f}", f"{pixacc:.2f}"

    def interval(self, metric, scores):
        """(low, high): where the true score lies with 95 % confidence, by drawing images; None: not known of this score."""
        if metric not in ("miou", "dice", "pixacc", "pixacc+miou") or len(self.index) < FEWEST or not self.matrix.any():
            return None
        pixels = self.pixels.reshape(len(self.index), -1).astype(np.float64)  # whole numbers, exact

        def score(drawn):
            right, truth, said = (drawn @ pixels).reshape(3, -1)
            miou, pixacc = np.nanmean(_iou(right, truth, said)), 100 * right.sum() / truth.sum()
            dice = np.nanmean(_dice(right, truth, said))
            return {"miou": miou, "dice": dice, "pixacc": pixacc, "pixacc+miou": (pixacc + miou) / 2}[metric]

        return bootstrap(np.ones(len(self.index), np.int64), score)


def _iou(right, truth, said):
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return 100 * right / (truth + said - right)


def _dice(right, truth, said):
    with np.errstate(invalid="ignore"):
        return 200 * right / (truth + said)


def _resized(image, size, **options):
    """(C, H, W) -> (C, size, size); without options by the nearest pixel, which keeps ids."""
    resized = torch.nn.functional.interpolate(image[None].float(), (size, size), **options)[0]
    return resized.to(image.dtype)


def confusion_matrices(prediction, target, classes):
    """(B, H, W) int64 twice -> (B, classes, classes) int64: rows truth, columns prediction, without pixels of label IGNORE.

    prediction is in 0..classes-1. Raises InputError for a label that is neither a class nor ignored (on a GPU it is
    the device that stops, at the next synchronisation).
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} for masks {tuple(target.shape)}: score at the masks' own size (predict does)"
        )
    # Cell 0 takes what is ignored. Not torch.bincount: on a GPU that waits for the largest value, on a CPU it is slower.
    cell = (1 + target * classes + prediction).where(target != IGNORE, 0).flatten(1)
    counts = torch.zeros(len(target), 1 + classes * classes, dtype=torch.int64, device=target.device)
    try:
        counts.scatter_add_(1, cell, torch.ones_like(cell))
    except (RuntimeError, IndexError):
        low, high = target.min().item(), target.max().item()
        raise InputError(
            f"a mask holds labels {low}..{high}: expected 0..{classes - 1}, or {IGNORE} for ignored pixels"
        ) from None
    return counts[:, 1:].view(-1, classes, classes)


def cross_entropy_sums(scores, target):
    """(B,) float32: the cross-entropy of each image, summed over its labelled pixels.

    scores (B, C, H, W): probabilities up to a factor, as windows.predict gives them; target (B, H, W) int64.
    """
    right = scores.gather(1, target.clamp(min=0)[:, None])[:, 0] / scores.sum(1)
    return -right.clamp(min=1e-30).log().where(target != IGNORE, 0).flatten(1).sum(1)


def predicted_classes(scores):
    """(B, C, H, W) -> (B, H, W) int64: the class with the highest score, the first of equals."""
    if scores.device.type != "cpu":
        return scores.argmax(1)
    # torch's argmax on the CPU jumps a plane per class. Whole planes, in pieces that stay in the cache, take a third of the
    # time: among the highest, the largest count of classes from here to the last one is the first class.
    classes = scores.shape[1]
    to_the_last = torch.arange(classes, 0, -1, dtype=torch.int16).view(-1, 1, 1)
    pieces = [((piece == piece.amax(1, keepdim=True)) * to_the_last).amax(1) for piece in scores.split(16, dim=2)]
    return (classes - torch.cat(pieces, 1).long()).clamp(max=classes - 1)  # NaN equals nothing: the last class


def mean_loss(losses, matrix):
    """Cross-entropy, mean over the labelled pixels of all images; the order of the images does not matter.

    losses: (N,) sums of each image, see `ConfusionMatrix`; matrix: of the same images.
    """
    return round(math.fsum(losses.tolist()) / max(int(matrix.sum()), 1), 6)


def scores(matrix):
    """Scores of a confusion matrix (C, C) int64, in per cent, computed in float64.

    {"pixacc": labelled pixels that are right, "macc": mean over the classes in the truth of the share found, "miou", "dice":
    means of "iou" and "class_dice" over the classes in truth or prediction, "classes": how many these are, and lists with a
    number for each class: "iou": intersection / union, "class_dice", "class_precision", "class_recall"}. NaN where nothing was
    labelled, and for a class in neither.
    """
    pairs = Pairs.of_matrix(matrix.cpu().numpy())
    found, right = per_class(pairs, len(matrix)), pairs.count[pairs.truth == pairs.said].sum()
    lists = {"class_dice": found.f1, "class_precision": found.precision, "class_recall": found.recall}
    return {
        "pixacc": 100 * float(right) / pixels if (pixels := int(pairs.count.sum())) else math.nan,
        "macc": mean(found.recall),
        "miou": mean(found.iou),
        "dice": mean(found.f1),
        "classes": int((found.count + found.predicted > 0).sum()),
        "iou": found.iou.tolist(),
        **{name: values.round(3).tolist() for name, values in lists.items()},
    }
