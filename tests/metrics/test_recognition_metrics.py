"""Scores of image recognition by hand."""

import torch

from utils.metrics.recognition import recognition_scores


def test_by_hand():
    rows = torch.tensor([[1, 1, 0.25], [0, 1, 1.5], [0, 0, 2.25]], dtype=torch.float64)
    scores = recognition_scores(rows, None)
    assert scores == {"acc1": 33.33333, "acc5": 66.66667, "loss": 1.333333, "images": 3}  # rounded


def test_the_order_of_the_images_does_not_matter():
    rows = torch.rand(1000, 3, dtype=torch.float64) * torch.logspace(-9, 9, 1000)[:, None]
    orders = (rows, rows.flip(0), rows[torch.randperm(1000)])
    assert len({tuple(recognition_scores(order, None).values()) for order in orders}) == 1
