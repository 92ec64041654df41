"""Whether a model is as sure as it is right, and the one temperature that makes it so (Guo et al. 2017).

Logits divided by a temperature keep their order, so that no answer changes: above 1 a model becomes less sure. It is chosen
from TEMPERATURES by the cross-entropy of validation images, whose log-sum-exp at each of them is all that must be kept.
"""

import numpy as np
import torch

TEMPERATURES = tuple(2 ** (step / 6) for step in range(-24, 13))  # 1/16 to 4, in steps of 12 %
FEWEST, BINS = 20, 15  # images, and mistakes are needed too; bins of the error, as published


def calibration_columns(logits, labels):
    """(B, 1 + temperatures) float32: the label's logit below the largest one, and log-sum-exp at each temperature, both of
    logits (B, C) from which the largest was taken. labels (B,) int64; below 0 one does not count."""
    logits = logits - logits.amax(1, keepdim=True)
    gap = logits.gather(1, labels.clamp(min=0)[:, None])
    return torch.cat([gap, *((logits / temperature).logsumexp(1, keepdim=True) for temperature in TEMPERATURES)], 1)


def calibrate(columns, right):
    """{"temperature", "ece", "ece_after", "bins"} of N images, or {} where they are too few to tell.

    columns: (N, 1 + temperatures) float64 as above; right: (N,) bool. ece: expected calibration error in per cent, the mean
    difference of probability and accuracy over BINS of equal width, weighted by their images, before and after. bins: [images,
    mean probability, accuracy] in per cent of each bin that has images, before.
    """
    if len(right) < FEWEST or len(columns) != len(right) or right.all():
        return {}
    gap, sums = columns[:, 0], columns[:, 1:]
    losses = (sums - gap[:, None] / np.array(TEMPERATURES)).mean(0)
    chosen = int(losses.argmin())
    before, after = (_bins(np.exp(-sums[:, place]), right) for place in (TEMPERATURES.index(1.0), chosen))
    found = {"temperature": round(TEMPERATURES[chosen], 4), "ece": _error(before), "ece_after": _error(after)}
    return found | {"bins": [[images, round(p, 2), round(share, 2)] for images, p, share in before]}


def _bins(probability, right):
    """[(images, mean probability, accuracy)] in per cent of each bin that has images."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    inside = (place == number for number in range(BINS))
    return [(int(b.sum()), 100 * float(probability[b].mean()), 100 * float(right[b].mean())) for b in inside if b.any()]


def _error(bins):
    images = sum(number for number, _, _ in bins)
    return round(sum(number * abs(p - share) for number, p, share in bins) / images, 3)
