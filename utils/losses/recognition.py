"""Losses of image recognition, for hard labels (B,) int64 and soft targets (B, classes) alike.

Each returns the mean over the batch; cross-entropy takes soft targets as torch's own does.
"""

import torch
import torch.nn.functional as F


class CrossEntropy(torch.nn.Module):
    """Cross-entropy with label smoothing; soft targets (from mixup) come smoothed and are taken as they are."""

    def __init__(self, smoothing=0.0):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits, targets):
        if targets.is_floating_point():
            return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)


class BinaryCrossEntropy(torch.nn.Module):
    """Each class on its own, mean over classes and batch (Wightman et al. 2021, ResNet strikes back, section 2.1)."""

    def __init__(self, smoothing=0.0):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits, targets):
        if not targets.is_floating_point():
            targets = smooth_one_hot(targets, logits.shape[-1], self.smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def smooth_one_hot(labels, classes, smoothing=0.0):
    """(B,) int64 -> (B, classes) float32 with 1 - smoothing + smoothing / classes at the label."""
    off = smoothing / classes
    target = torch.full((*labels.shape, classes), off, device=labels.device)
    return target.scatter_(-1, labels.unsqueeze(-1), 1.0 - smoothing + off)
