"""The loss of masks and their classes against values that are worked out by hand."""

import math

import pytest
import torch

from utils.losses.masks import MaskLoss, at

NOT = -20.0  # the logit of what is as good as impossible


def one_image(queries):
    """Outputs of one pair for one image of 4 x 4 pixels, and its mask: class 2 above, class 0 below.

    queries: [(class, rows that its mask has)], class 3 of 3 classes being no object.
    """
    classes, masks = torch.full((1, len(queries), 4), NOT), torch.full((1, len(queries), 4, 4), NOT)
    for number, (label, rows) in enumerate(queries):
        classes[0, number, label] = 0
        masks[0, number, rows] = -NOT
    return {"queries": [(classes, masks)]}, torch.tensor([[[2] * 4] * 2 + [[0] * 4] * 2])


ABOVE, BELOW, NONE = slice(0, 2), slice(2, 4), slice(0, 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_queries_are_matched_wherever_they_stand(order):
    queries = [(2, ABOVE), (0, BELOW), (3, NONE)]
    outputs, target = one_image([queries[i] for i in order])
    assert MaskLoss(3)(outputs, target).item() == pytest.approx(0, abs=0.2)  # zeros around the map reach into it
    outputs["queries"][0][1].mul_(-1)  # inside out, so that each has the mask of the other: masks cost more than classes
    assert MaskLoss(3)(outputs, target).item() == pytest.approx(2 * (20 + 20) / 2.1, rel=1e-4)


def test_each_term_by_hand():
    outputs, target = one_image([(3, NONE), (3, NONE), (3, NONE)])
    classes, masks = outputs["queries"][0]
    classes.zero_(), masks.zero_()  # undecided: every probability a quarter, every pixel a half
    found = {}
    for name in ("class_weight", "mask_weight", "dice_weight"):
        weights = {"class_weight": 0.0, "mask_weight": 0.0, "dice_weight": 0.0} | {name: 1.0}
        found[name] = MaskLoss(3, **weights)(outputs, target).item()
    assert found["class_weight"] == pytest.approx(math.log(4))  # whatever each counts, it is a mean
    assert found["mask_weight"] == pytest.approx(math.log(2))
    # at 16 pixels of a half, 8 of which are in the mask: 1 - (2 x 4 + 1) / (8 + 8 + 1), the mean of two masks
    assert found["dice_weight"] == pytest.approx(1 - 9 / 17)
    assert MaskLoss(3)(outputs, target).item() == pytest.approx(2 * math.log(4) + 5 * math.log(2) + 5 * (1 - 9 / 17))


def test_no_object_counts_a_tenth_and_classes_by_their_weights():
    outputs, target = one_image([(2, ABOVE), (0, BELOW), (1, NONE)])  # the third says class 1 and should say nothing
    alone = MaskLoss(3, mask_weight=0, dice_weight=0, class_weight=1)
    assert alone(outputs, target).item() == pytest.approx(20 * 0.1 / 2.1, rel=1e-4)
    weighted = MaskLoss(3, mask_weight=0, dice_weight=0, class_weight=1, weights=(3.0, 1.0, 2.0))
    assert weighted(outputs, target).item() == pytest.approx(20 * 0.1 / 5.1, rel=1e-4)


def test_ignored_pixels_are_in_no_mask():
    outputs, target = one_image([(2, ABOVE), (0, BELOW), (3, NONE)])
    few = target.clone()
    few[:, 3] = -1  # as published: the mask of class 0 ends above them
    assert MaskLoss(3)(outputs, few) > MaskLoss(3)(outputs, target) + 5
    nothing = MaskLoss(3, class_weight=1)(outputs, torch.full_like(target, -1))
    assert nothing.item() == pytest.approx(20 * 2 / 3, rel=1e-4)  # the two that say a class should say nothing


def test_more_masks_than_queries_leave_some_unmatched():
    outputs, target = one_image([(2, ABOVE)])
    assert MaskLoss(3)(outputs, target).item() == pytest.approx(0, abs=0.2)


def test_images_and_pairs_do_not_mix():
    """A batch is the mean of its images, for each has two masks; pairs are summed."""
    torch.manual_seed(0)
    outputs, target = {"queries": [(torch.randn(2, 5, 4), torch.randn(2, 5, 8, 8)) for _ in range(2)]}, None
    target = torch.tensor([[[0] * 16] * 6 + [[1] * 16] * 10, [[2] * 16] * 9 + [[1] * 16] * 7])
    loss = MaskLoss(3)
    alone = [
        loss({"queries": [tuple(t[i : i + 1] for t in pair)]}, target[i : i + 1]) for pair in outputs["queries"] for i in (0, 1)
    ]
    assert loss(outputs, target).item() == pytest.approx(sum(alone).item() / 2, rel=1e-5)


def test_points_are_of_torchs_seed_and_most_where_the_mask_is_unsure():
    loss, masks = MaskLoss(3, points=1000), torch.linspace(-4, 4, 64).expand(2, 1, 64, 64)
    truth = torch.zeros(2, 1, 64, 64)
    torch.manual_seed(1)
    first = loss._places(masks, truth)
    torch.manual_seed(1)
    assert torch.equal(first, loss._places(masks, truth))
    assert first.shape == (2, 1000, 2) and first.min() >= 0 and first.max() < 1
    # of 3,000 uniform points the 750 nearest to the middle lie within an eighth of the width from it
    near = ((first[..., 0] - 0.5).abs() < 0.13).float().mean(1)
    assert near.min() > 0.74 and at(masks, first)[:, :750].abs().max() < 1.2
