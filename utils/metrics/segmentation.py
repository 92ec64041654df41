"""Scores of semantic segmentation from one confusion matrix, counted in int64 on the device.

Matrices add up over batches and processes, so every number is exact on any number of processes. Nothing is read back
from the device before `scores`.
"""

import torch

from utils.cli.errors import InputError
from utils.images import IGNORE


class ConfusionMatrix:
    """Sums the confusion matrices of an evaluation. `matrix`: (classes, classes) int64, rows truth, columns prediction."""

    def __init__(self, classes, device=None):
        self.classes = classes
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction, target):
        """prediction: scores (B, C, H, W) or labels (B, H, W) int64; target: (B, H, W) int64, on the matrix' device."""
        if prediction.dim() == target.dim() + 1:
            prediction = predicted_classes(prediction)
        self.matrix += confusion_matrix(prediction, target, self.classes)


def confusion_matrix(prediction, target, classes):
    """(B, H, W) int64 twice -> (classes, classes) int64: rows truth, columns prediction. Pixels with label IGNORE are left out.

    prediction is in 0..classes-1. Raises InputError for a label that is neither a class nor ignored (on a GPU it is
    the device that stops, at the next synchronisation).
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} for masks {tuple(target.shape)}: score at the masks' own size (predict does)"
        )
    # Cell 0 takes what is ignored. Not torch.bincount: on a GPU that waits for the largest value, on a CPU it is slower.
    cell = (1 + target * classes + prediction).where(target != IGNORE, 0).flatten()
    counts = torch.zeros(1 + classes * classes, dtype=torch.int64, device=target.device)
    try:
        counts.scatter_add_(0, cell, torch.ones_like(cell))
    except (RuntimeError, IndexError):
        low, high = target.min().item(), target.max().item()
        raise InputError(
            f"a mask holds labels {low}..{high}: expected 0..{classes - 1}, or {IGNORE} for ignored pixels"
        ) from None
    return counts[1:].view(classes, classes)


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


def scores(matrix):
    """Scores of a confusion matrix (C, C) int64, in per cent, computed in float64.

    {"pixacc": labelled pixels that are right, "macc": mean over the classes in the truth of the share found,
    "miou": mean of "iou" over the classes in truth or prediction, "classes": how many these are,
    "iou": intersection / union per class (list), NaN for a class in neither}. NaN where nothing was labelled.
    """
    matrix = matrix.cpu()
    right, truth = matrix.diagonal().double(), matrix.sum(1).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()  # pixels with the class in truth or prediction
    iou = 100 * right / union.double()  # 0 / 0 is NaN
    return {
        "pixacc": 100 * (right.sum() / truth.sum()).item(),
        "macc": 100 * (right / truth).nanmean().item(),
        "miou": iou.nanmean().item(),
        "classes": int((union > 0).sum()),
        "iou": iou.tolist(),
    }
