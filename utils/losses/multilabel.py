"""Losses where an image has several labels, or none: targets (B, classes) float32, mixed ones in between."""

import timm.loss
import torch


class BinaryCrossEntropy(timm.loss.BinaryCrossEntropy):
    """Each label on its own, mean over classes and batch. weight: (classes,), by which the loss of an image that has the label
    is multiplied. smoothing: of single labels; these targets are taken as they are."""

    def __init__(self, smoothing=0.0, target_threshold=None, weight=None):
        super().__init__(smoothing, target_threshold, pos_weight=weight)


class Asymmetric(torch.nn.Module):
    """Asymmetric loss (Ridnik et al. 2021): the many labels that an image lacks count less, the easier they are; sum over the
    classes, mean over the batch. It is timm's, which up to 1.0.22 knows the sum over the batch only."""

    def __init__(self, smoothing=0.0):
        super().__init__()
        try:
            self.total = timm.loss.AsymmetricLossMultiLabel(reduction="sum")
        except TypeError:
            self.total = timm.loss.AsymmetricLossMultiLabel()

    def forward(self, logits, targets):
        return self.total(logits.float(), targets.float()) / len(logits)
