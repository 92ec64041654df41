"""The loss of image recognition by its name, and cross-entropy."""

import torch
import torch.nn.functional as F

from utils.cli.errors import InputError, choose_one
from utils.cli.registry import load
from utils.losses import LOSSES, MULTILABEL_LOSSES

WEIGHTED = {None: ("ce", "bce"), "multilabel": ("bce",)}  # losses that take --class_weights


def make_loss(name, smoothing=0.0, weights=None, target_threshold=None, task=None):
    """The loss `name`, one of LOSSES or, of the `task` multilabel, of MULTILABEL_LOSSES. Raises InputError for an unknown one.

    smoothing: this share of a hard label is spread over all classes; soft targets are taken as they are. weights: (classes,)
    how much each class counts (of several labels: where an image has it), or None. target_threshold: of bce, see
    --bce_target_thresh.
    """
    losses = MULTILABEL_LOSSES if task else LOSSES
    choose_one(name, losses, "loss")
    options = {} if target_threshold is None else {"target_threshold": target_threshold}
    if weights is None:
        return load(losses[name])(smoothing, **options)
    try:
        return load(losses[name])(smoothing, weight=torch.as_tensor(weights, dtype=torch.float32), **options)
    except TypeError:
        raise InputError(
            f"--class_weights with --loss {name}: that loss takes none; use {' or '.join(WEIGHTED[task])}"
        ) from None


class CrossEntropy(torch.nn.Module):
    """Cross-entropy with label smoothing, mean over the batch.

    logits (B, classes); targets: labels (B,) int64, or soft targets (B, classes) float32, which are smoothed already.
    timm.loss has one class for each of the two, and other rounding for the first; a run may see both (--mixup_off_epoch).
    weight: (classes,) how much each class counts; the mean is then over the weights of the targets, as torch has it for labels.
    """

    def __init__(self, smoothing=0.0, weight=None):
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits, targets):
        if not targets.is_floating_point():
            return F.cross_entropy(logits, targets, self.weight, label_smoothing=self.smoothing)
        if self.weight is None:
            return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()
        weighted = targets * self.weight
        return torch.sum(-weighted * F.log_softmax(logits, dim=-1)) / weighted.sum()
