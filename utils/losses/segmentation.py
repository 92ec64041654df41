"""The loss of semantic segmentation: cross-entropy of the labelled pixels, auxiliary head and SE-loss included.

Formulas of PyTorch-Encoding, encoding/nn/loss.py (SegmentationLosses), except that a batch without a labelled pixel
gives 0 and not NaN. Nothing here reads a value back from the device.
"""

import torch
import torch.nn.functional as F

from utils.cli.errors import InputError, choose_one
from utils.images.read import IGNORE
from utils.losses.masks import MaskLoss, present_classes


def make_segmentation_loss(options, classes, *, aux, weights=None):
    """SegmentationLoss, or MaskLoss, of these options (segmentation_flags.LossOptions). aux: whether the network has an
    auxiliary head; weights: (classes,) how much each class counts, or None."""
    if options.loss == "masks":
        return MaskLoss(classes, weights=weights)
    aux_weight, se_weight = options.aux_weight if aux else 0.0, options.se_weight if options.se_loss else 0.0
    ohem = options.ohem and (options.ohem[0], int(options.ohem[1]))
    return SegmentationLoss(
        classes, aux_weight=aux_weight, se_weight=se_weight, ohem=ohem, mean=options.loss_mean, kind=options.loss,
        weights=weights,
    )  # fmt: skip


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

    - kind, of SEGMENTATION_LOSSES: "ce": the above. "ce+dice": and `dice_loss`. "focal": cross-entropy in which a pixel of
      probability p counts (1 - p)^2 times (Lin et al. 2017). "lovasz": `lovasz_loss` alone. It holds for "aux", too.
    - weights: (classes,) how much the pixels of each class count in cross-entropy and focal loss, whose mean is then over the
      weights of the pixels, and each class in the SE-loss, as published; with mean "all" it is over the pixels.

    Ignored pixels are in neither value nor gradient. Raises InputError for an `ohem` out of range.
    """

    def __init__(self, classes, *, aux_weight=0.0, se_weight=0.0, ohem=None, mean="labelled", kind="ce", weights=None):
        super().__init__()
        self.kind = kind
        self.register_buffer("weights", None if weights is None else torch.as_tensor(weights, dtype=torch.float32))
        if ohem is not None and not (0 <= ohem[0] <= 1 and ohem[1] >= 1):
            raise InputError(f"OHEM with threshold {ohem[0]} and {ohem[1]} kept pixels: expected 0..1 and at least 1")
        choose_one(mean, ("labelled", "all"), "mean of the loss")
        self.classes, self.aux_weight, self.se_weight, self.ohem, self.mean = classes, aux_weight, se_weight, ohem, mean

    def forward(self, outputs, target):
        """outputs: "logits" (B, classes, H, W), "aux" alike, "se" (B, classes). target: (B, H, W) int64. Gives a scalar.

        A term whose weight is 0 is left out; so is, in evaluation, one whose output the network left out. Raises InputError
        for logits of another shape, and in training for an output that is missing.
        """
        loss = self._of_pixels(outputs["logits"], target)
        if self._wants("aux", self.aux_weight, outputs):
            loss = loss + self.aux_weight * self._of_pixels(outputs["aux"], target)
        if self._wants("se", self.se_weight, outputs):
            present = present_classes(target, self.classes)
            se = F.binary_cross_entropy_with_logits(_wide(outputs["se"]), present, self.weights)
            loss = loss + self.se_weight * se * (target != IGNORE).any()  # nothing labelled, nothing to learn
        return loss

    def _wants(self, name, weight, outputs):
        if weight and self.training and name not in outputs:
            raise InputError(f"--{name}_weight {weight}: the network has no '{name}' output; build it with one, or give 0")
        return weight and name in outputs

    def _of_pixels(self, logits, target):
        if logits.shape[1] != self.classes or logits.shape[2:] != target.shape[1:]:
            raise InputError(
                f"logits {tuple(logits.shape)} for masks {tuple(target.shape)}: expected (B, {self.classes}, H, W), (B, H, W)"
            )
        logits = _wide(logits)
        if self.kind == "lovasz":
            return lovasz_loss(logits, target)
        loss = self._cross_entropy(logits, target)
        return loss + dice_loss(logits, target) if self.kind == "ce+dice" else loss

    def _cross_entropy(self, logits, target):
        losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")  # (B, H, W)
        if self.kind == "focal":
            losses = (1 - (-losses).exp()).square() * losses
        labelled = target != IGNORE
        counted = labelled if self.ohem is None else labelled & self._hard(losses.detach())
        weights = counted.to(losses.dtype)
        if self.weights is not None:
            weights = weights * self.weights[target.clamp(min=0)]
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


def dice_loss(logits, target):
    """1 - Dice of the probabilities, mean over the classes that the batch has (Milletari et al. 2016). logits (B, C, H, W) at
    least float32; target (B, H, W) int64. 0 where nothing is labelled."""
    probabilities, truth, present = _flat(logits, target)
    overlap, both = (probabilities * truth).sum(0), (probabilities + truth).sum(0)  # (C,)
    return ((1 - 2 * overlap / both.clamp(min=1e-7)) * present).sum() / present.sum().clamp(min=1)


def lovasz_loss(logits, target):
    """Lovász-Softmax: the extension of 1 - IoU to probabilities, mean over the classes that the batch has (Berman et al. 2018,
    algorithm 1). Arguments as of `dice_loss`."""
    probabilities, truth, present = _flat(logits, target)
    labelled = truth.sum(1, keepdim=True)  # (P, 1)
    total = 0
    for c in range(logits.shape[1]):  # one class at a time, for the sake of memory
        errors = (truth[:, c] - probabilities[:, c]).abs()
        # What is ignored comes last, so that it is in no union before.
        order = (errors.detach() * labelled[:, 0] + labelled[:, 0]).argsort(descending=True)
        inside = truth[order, c]
        left = inside.sum() - inside.cumsum(0)
        jaccard = 1 - left / (inside.sum() + (1 - inside).cumsum(0)).clamp(min=1)
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        total = total + present[c] * (errors[order] * steps * labelled[order, 0]).sum()
    return total / present.sum().clamp(min=1)


def _flat(logits, target):
    """(probabilities, truth) (B x H x W, C), both 0 where nothing is labelled, and which classes the truth has, (C,) floats."""
    classes, labelled = logits.shape[1], (target != IGNORE).to(logits.dtype).flatten()[:, None]
    probabilities = logits.softmax(1).movedim(1, -1).flatten(0, -2) * labelled
    truth = F.one_hot(target.clamp(min=0).flatten(), classes) * labelled
    return probabilities, truth, (truth.sum(0) > 0).to(logits.dtype)


def _wide(tensor):
    """At least float32: sums over pixels need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
