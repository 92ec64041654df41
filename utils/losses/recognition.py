"""The loss of image recognition by its name, and cross-entropy."""

import torch
import torch.nn.functional as F

from utils.cli.errors import choose_one
from utils.cli.registry import load
from utils.losses import LOSSES


def make_loss(name, smoothing=0.0):
    """The loss `name`, one of LOSSES, for hard labels and soft targets alike. Raises InputError for an unknown name.

    smoothing: this share of a hard label is spread over all classes; soft targets are taken as they are.
    """
    choose_one(name, LOSSES, "loss")
    return load(LOSSES[name])(smoothing)


class CrossEntropy(torch.nn.Module):
    """Cross-entropy with label smoothing, mean over the batch.

    logits (B, classes); targets: labels (B,) int64, or soft targets (B, classes) float32, which are smoothed already.
    timm.loss has one class for each of the two, and other rounding for the first; a run may see both (--mixup_off_epoch).
    """

    def __init__(self, smoothing=0.0):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits, targets):
        if targets.is_floating_point():
            return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
