"""The loss of semantic segmentation: cross-entropy of the labelled pixels, auxiliary head and SE-loss included.

Formulas of PyTorch-Encoding, encoding/nn/loss.py (SegmentationLosses), except that a batch without a labelled pixel
gives 0 and not NaN. Nothing here reads a value back from the device.
"""

import torch
import torch.nn.functional as F

from utils.cli.errors import InputError, choose_one
from utils.images import IGNORE


def make_segmentation_loss(options, classes, *, aux):
    """SegmentationLoss of these options (segmentation_flags.LossOptions). aux: whether the network has an auxiliary head."""
    aux_weight, se_weight = options.aux_weight if aux else 0.0, options.se_weight if options.se_loss else 0.0
    ohem = options.ohem and (options.ohem[0], int(options.ohem[1]))
    return SegmentationLoss(classes, aux_weight=aux_weight, se_weight=se_weight, ohem=ohem, mean=options.loss_mean)


class SegmentationLoss(torch.nn.Module):
    """Cross-entropy + aux_weight * cross-entropy of "aux" + se_weight * binary cross-entropy of "se".

    - Cross-entropy: with mean "labelled", the mean over the labelled pixels, those whose label is not IGNORE; with "all", their
      sum divided by the number of all pixels, ignored ones included, as mmsegmentation 0.x has it (losses/utils.py,
      weight_reduce_loss, without avg_non_ignore).
    - aux_weight: of the auxiliary head, an FCN on an earlier stage (Zhao et al. 2017, PSPNet, section 3.3).
    - se_weight: of the SE-loss (Zhang et al. 2018, EncNet, section 3.1): binary cross-entropy of "is the class
      anywhere in the image", mean over images and classes.
    - ohem: None, or (threshold, min_kept): online hard example mining. Cross-entropies are then means over the labelled
      pixels whose own class has a probability below `threshold`, or over the `min_kept` x B least probable ones where
      these are more; threshold 0 always keeps just min_kept x B. Source: mmsegmentation, OHEMPixelSampler; unlike there
      the mean is over the kept pixels, so that the size of the loss does not depend on how many they are.

    Raises InputError for an `ohem` out of range.
    """

    def __init__(self, classes, *, aux_weight=0.0, se_weight=0.0, ohem=None, mean="labelled"):
        super().__init__()
        if ohem is not None and not (0 <= ohem[0] <= 1 and ohem[1] >= 1):
            raise InputError(f"OHEM with threshold {ohem[0]} and {ohem[1]} kept pixels: expected 0..1 and at least 1")
        choose_one(mean, ("labelled", "all"), "mean of the loss")
        self.classes, self.aux_weight, self.se_weight, self.ohem, self.mean = classes, aux_weight, se_weight, ohem, mean

    def forward(self, outputs, target):
        """outputs: "logits" (B, classes, H, W), "aux" alike, "se" (B, classes). target: (B, H, W) int64. Gives a scalar.

        A term whose weight is 0 is left out; so is, in evaluation, one whose output the network left out. Raises InputError
        for logits of another shape, and in training for an output that is missing.
        """
        loss = self._cross_entropy(outputs["logits"], target)
        if self._wants("aux", self.aux_weight, outputs):
            loss = loss + self.aux_weight * self._cross_entropy(outputs["aux"], target)
        if self._wants("se", self.se_weight, outputs):
            present = present_classes(target, self.classes)
            se = F.binary_cross_entropy_with_logits(_wide(outputs["se"]), present)
            loss = loss + self.se_weight * se * (target != IGNORE).any()  # nothing labelled, nothing to learn
        return loss

    def _wants(self, name, weight, outputs):
        if weight and self.training and name not in outputs:
            raise InputError(f"--{name}_weight {weight}: the network has no '{name}' output; build it with one, or give 0")
        return weight and name in outputs

    def _cross_entropy(self, logits, target):
        if logits.shape[1] != self.classes or logits.shape[2:] != target.shape[1:]:
            raise InputError(
                f"logits {tuple(logits.shape)} for masks {tuple(target.shape)}: expected (B, {self.classes}, H, W), (B, H, W)"
            )
        losses = F.cross_entropy(_wide(logits), target, ignore_index=IGNORE, reduction="none")  # (B, H, W)
        labelled = target != IGNORE
        counted = labelled if self.ohem is None else labelled & self._hard(losses.detach())
        weights = counted.to(losses.dtype)
        if self.mean == "all":
            return (losses * weights).mean()
        total = weights.sum()
        return (losses * weights).sum() / total.where(total > 0, 1)

    def _hard(self, losses):
        """The pixels (B, H, W) that OHEM keeps: a small probability is a large loss, an ignored pixel has loss 0."""
        threshold, min_kept = self.ohem
        kept = min(min_kept * len(losses), losses.numel())
        last_kept = losses.flatten().topk(kept, sorted=False).values.amin()
        probabilities = (-losses).exp()
        return (losses >= last_kept) | (probabilities < threshold)


def present_classes(target, classes):
    """(B, H, W) int64 -> (B, classes) float32: 1 where the image has the class. Labels outside 0..classes-1 do not count."""
    inside = (target >= 0) & (target < classes)
    column = target.where(inside, classes).flatten(1)  # the others share a column of their own, dropped below
    return torch.zeros(len(target), classes + 1, device=target.device).scatter_(1, column, 1.0)[:, :classes]


def _wide(tensor):
    """At least float32: sums over pixels need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
