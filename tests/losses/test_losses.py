"""Losses by hand and against timm's."""

import math

import pytest
import torch
from timm.loss import BinaryCrossEntropy as TimmBCE
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from utils.losses.recognition import BinaryCrossEntropy, CrossEntropy, smooth_one_hot

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_smooth_one_hot():
    assert smooth_one_hot(torch.tensor([1]), 4, 0.1).tolist()[0] == pytest.approx([0.025, 0.925, 0.025, 0.025])


def test_cross_entropy():
    assert CrossEntropy()(torch.zeros(2, 4), LABELS[:2]).item() == pytest.approx(math.log(4))
    assert CrossEntropy(0.1)(LOGITS, LABELS).item() == pytest.approx(LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS).item())
    soft = smooth_one_hot(LABELS, 4, 0.3)
    assert CrossEntropy(0.1)(LOGITS, soft).item() == pytest.approx(SoftTargetCrossEntropy()(LOGITS, soft).item())


def test_binary_cross_entropy():
    assert BinaryCrossEntropy()(torch.zeros(2, 4), LABELS[:2]).item() == pytest.approx(math.log(2))
    assert BinaryCrossEntropy(0.1)(LOGITS, LABELS).item() == pytest.approx(TimmBCE(0.1)(LOGITS, LABELS).item(), rel=1e-5)
    soft = smooth_one_hot(LABELS, 4, 0.3)
    assert BinaryCrossEntropy(0.1)(LOGITS, soft).item() == pytest.approx(TimmBCE(0.1)(LOGITS, soft).item(), rel=1e-6)
