"""Scores of semantic segmentation from one confusion matrix, counted in int64 on the device.

Matrices add up over batches and processes, so every number is exact however the images are shared out. Nothing is
read back from the device before `scores`. The published means of PyTorch-Encoding are at the end.
"""

import math

import torch

from utils.cli.errors import InputError


class ConfusionMatrix:
    """Sums the confusion matrices of an evaluation. `matrix`: (classes, classes) int64, rows truth, columns prediction."""

    def __init__(self, classes, device=None, ignore_index=-1):
        self.classes, self.ignore_index = classes, ignore_index
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction, target):
        """prediction: scores (B, C, H, W) or labels (B, H, W) int64; target: (B, H, W) int64, on the matrix' device."""
        if prediction.dim() == target.dim() + 1:
            prediction = predicted_classes(prediction)
        self.matrix += confusion_matrix(prediction, target, self.classes, self.ignore_index)


def confusion_matrix(prediction, target, classes, ignore_index=-1):
    """(B, H, W) int64 twice -> (classes, classes) int64: rows truth, columns prediction; ignored pixels count nowhere.

    prediction is in 0..classes-1. Raises InputError for a label that is neither a class nor ignored (on a GPU it is
    the device that stops, at the next synchronisation).
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} for masks {tuple(target.shape)}: score at the masks' own size (predict does)"
        )
    # Cell 0 takes what is ignored. Not torch.bincount: on a GPU that waits for the largest value, on a CPU it is slower.
    cell = (1 + target * classes + prediction).where(target != ignore_index, 0).flatten()
    counts = torch.zeros(1 + classes * classes, dtype=torch.int64, device=target.device)
    try:
        counts.scatter_add_(0, cell, torch.ones_like(cell))
    except (RuntimeError, IndexError):
        low, high = target.min().item(), target.max().item()
        raise InputError(
            f"a mask holds labels {low}..{high}: expected 0..{classes - 1}, or {ignore_index} for ignored pixels"
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
    intersection, union = intersection_union(matrix)
    iou = 100 * intersection.double() / union.double()  # 0 / 0 is NaN
    return {
        "pixacc": 100 * (right.sum() / truth.sum()).item(),
        "macc": 100 * (right / truth).nanmean().item(),
        "miou": iou.nanmean().item(),
        "classes": int((union > 0).sum()),
        "iou": iou.tolist(),
    }


def intersection_union(matrix):
    """(C, C) int64 -> pixels in truth and prediction, pixels in truth or prediction: (C,) int64 each."""
    intersection = matrix.diagonal()
    return intersection, matrix.sum(0) + matrix.sum(1) - intersection


def published_scores(matrix):
    """(pixel accuracy, mIoU) of a confusion matrix as PyTorch-Encoding prints them: shares, absent classes count as IoU 0."""
    return get_pixacc_miou(matrix.diagonal().sum(), matrix.sum(), *intersection_union(matrix))


def get_pixacc_miou(correct, labelled, intersection, union):
    """(pixel accuracy, mIoU) as shares, absent classes counting as IoU 0. Scalars, and (C,) sequences or tensors.

    Source: PyTorch-Encoding, encoding/utils/train_helper.py and metrics.py (SegmentationMetric.get).
    """
    tiny = math.ulp(1.0)  # what the published code adds, against a division by 0
    correct, labelled, intersection, union = (
        torch.as_tensor(counts).double().cpu() for counts in (correct, labelled, intersection, union)
    )
    return (correct / (labelled + tiny)).item(), (intersection / (union + tiny)).mean().item()


def batch_pix_accuracy(scores, target):
    """(B, C, H, W), (B, H, W) int64 -> right pixels, labelled pixels: int64 scalars on the device.

    Every label of at least 0 counts as labelled, 255 too (PyTorch-Encoding, encoding/utils/metrics.py).
    """
    labelled = target >= 0
    return ((predicted_classes(scores) == target) & labelled).sum(), labelled.sum()


def batch_intersection_union(scores, target, classes):
    """(B, C, H, W), (B, H, W) int64 -> intersection, union: (classes,) int64 each, on the device.

    What is predicted where the label is no class but at least 0, such as 255, counts in the union (same source).
    """
    prediction = predicted_classes(scores)
    right = _histogram(prediction, (prediction == target) & (target >= 0), classes)
    predicted = _histogram(prediction, target >= 0, classes)
    true = _histogram(target, target >= 0, classes)
    return right, predicted + true - right


def _histogram(labels, counted, classes):
    """(classes,) int64: how many of the counted labels are of each class; those that are none are left out."""
    cell = labels.where(counted & (labels >= 0) & (labels < classes), classes).flatten()
    return torch.zeros(classes + 1, dtype=torch.int64, device=labels.device).scatter_add_(0, cell, torch.ones_like(cell))[:-1]
