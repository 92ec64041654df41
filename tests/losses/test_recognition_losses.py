"""Losses of image recognition against the published numbers, timm's, and by hand."""

import math

import pytest
import timm.loss
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from utils.cli.errors import InputError
from utils.losses.recognition import make_loss

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
SOFT = 0.3 * torch.nn.functional.one_hot(LABELS, 4) + 0.7 / 4


def test_as_published(golden):
    cases = golden("5_losses_metrics/losses_metrics.json")["losses"]
    cases = [case for case in cases if case["kind"] in ("LabelSmoothing", "NLLMultiLabelSmooth")]
    tensors = load_file(GOLDEN / "5_losses_metrics/losses_metrics.safetensors")
    assert len(cases) == 7
    for case in cases:
        smoothing, target = case["config"]["smoothing"], tensors[f"{case['id']}.target"]
        x = tensors[f"{case['id']}.x"].requires_grad_()
        if case["kind"] == "NLLMultiLabelSmooth":  # ours takes soft targets that are smoothed already
            smoothing = smoothing if case["config"]["training"] else 0
            target = (1 - smoothing) * target + smoothing / x.shape[1]
        loss = make_loss("ce", smoothing)(x, target)
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
        torch.testing.assert_close(x.grad, tensors[f"{case['id']}.grad_x"], rtol=1e-5, atol=1e-8)


def test_cross_entropy_takes_labels_and_soft_targets():
    loss = make_loss("ce", 0.1)
    assert loss(LOGITS, LABELS).item() == pytest.approx(timm.loss.LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS).item())
    assert torch.equal(loss(LOGITS, SOFT), timm.loss.SoftTargetCrossEntropy()(LOGITS, SOFT))


def test_binary_cross_entropy_takes_labels_and_soft_targets():
    assert make_loss("bce")(torch.zeros(2, 4), LABELS[:2]).item() == pytest.approx(math.log(2))
    smooth = 0.9 * torch.nn.functional.one_hot(LABELS, 4) + 0.1 / 4
    for targets, expected in ((LABELS, smooth), (SOFT, SOFT)):
        by_hand = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, expected)
        assert make_loss("bce", 0.1)(LOGITS, targets).item() == pytest.approx(by_hand.item())


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(InputError, match="unknown loss 'bec', did you mean bce"):
        make_loss("bec")


def test_a_target_above_the_threshold_counts_as_one():
    """Mixed with 0.3 and 0.7, and smoothed by 0.1 over four classes: both classes are there, at a threshold of 0.2."""
    logits = torch.tensor([[2.0, -1.0, 0.0, 1.0]])
    targets = torch.tensor([[0.3 * 0.925 + 0.7 * 0.025, 0.3 * 0.025 + 0.7 * 0.925, 0.025, 0.025]])
    loss = make_loss("bce", 0.1, target_threshold=0.2)(logits, targets)
    signs = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    assert loss.item() == pytest.approx((1 + (signs * logits).exp()).log().mean().item(), rel=1e-6)


def test_several_labels_an_image():
    """A positive weight multiplies the loss of images that have the label; asymmetric loss by its paper's formula."""
    targets = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0.3, 1, 0, 0.7]])
    logits, weights = LOGITS[:3], [1.0, 2.0, 3.0, 4.0]
    p = logits.sigmoid()
    by_hand = -(targets * torch.tensor(weights) * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert make_loss("bce", 0.0, weights, task="multilabel")(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-6)
    hard = (targets > 0.5).float()
    shifted = (p - 0.05).clamp(min=0)  # gamma+ 1, gamma- 4, a margin of 0.05
    by_hand = -(hard * (1 - p) * p.log() + (1 - hard) * shifted**4 * (1 - shifted).log()).sum() / 3
    loss = make_loss("asl", task="multilabel")
    assert loss(logits, hard).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert loss(logits.to(torch.bfloat16), hard).dtype == torch.float32
    with pytest.raises(InputError, match="--class_weights with --loss asl: that loss takes none; use bce"):
        make_loss("asl", weights=weights, task="multilabel")
    with pytest.raises(InputError, match="unknown loss 'ce'"):
        make_loss("ce", task="multilabel")
