"""Scores of image recognition, by hand and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import torch

from utils.metrics.interval import bootstrap
from utils.metrics.recognition import Answers, recognition_scores


def answers_of(label, predicted, classes, probability=None):
    probability = np.full(len(label), 0.5) if probability is None else probability
    return Answers.of_rows(np.arange(len(label)), label, predicted, probability, classes)


def test_by_hand():
    rows = torch.tensor([[1, 1, 0.25], [0, 1, 1.5], [0, 0, 2.25]], dtype=torch.float64)
    scores = recognition_scores(rows, answers_of([0, 0, 2], [0, 1, 0], 4))
    single = {name: value for name, value in scores.items() if not name.startswith("class_")}
    found = {"acc1": 33.33333, "acc5": 66.66667, "loss": 1.333333, "images": 3}  # rounded
    assert single == found | {"balanced_acc": 25.0, "f1": 16.66667}  # recalls 1/2, 0; F1 1/2, 0, 0
    assert scores["class_recall"] == pytest.approx([50, np.nan, 0, np.nan], nan_ok=True)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 5, 300), rng.integers(0, 6, 300)
    scores = recognition_scores(torch.zeros(300, 3, dtype=torch.float64), answers_of(label, predicted, 7))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sklearn.metrics.balanced_accuracy_score(label, predicted)
    assert scores["balanced_acc"] == pytest.approx(100 * balanced, abs=1e-5)
    assert scores["f1"] == pytest.approx(100 * sklearn.metrics.f1_score(label, predicted, average="macro"), abs=1e-5)
    parts = sklearn.metrics.precision_recall_fscore_support(label, predicted, labels=range(7), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1"), parts, strict=False):
        assert scores[f"class_{name}"] == pytest.approx((100 * values).round(3).tolist(), abs=1e-3, nan_ok=True)
    rows = answers_of(label, predicted, 7).class_rows(list("abcdefg"))
    assert [row["count"] for row in rows] == np.bincount(label, minlength=7).tolist()
    taken = np.bincount(predicted[(label == 2) & (predicted != 2)], minlength=7)
    assert rows[2]["taken_for"] == "abcdefg"[taken.argmax()]
    assert rows[2]["taken_for_share"] == pytest.approx(100 * taken.max() / (label == 2).sum())


def test_the_roc_curve_of_two_classes():
    rng = np.random.default_rng(0)
    of_second, label = rng.random(200), rng.integers(0, 2, 200)
    predicted = (of_second > 0.5).astype(int)
    answers = answers_of(label, predicted, 2, np.where(predicted, of_second, 1 - of_second))
    rows = torch.zeros(200, 3, dtype=torch.float64)
    assert recognition_scores(rows, answers)["auroc"] == pytest.approx(
        100 * sklearn.metrics.roc_auc_score(label, of_second), abs=1e-5
    )
    assert "auroc" not in recognition_scores(rows, answers_of(label * 0, predicted, 2))  # one class only: there is none


def test_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(0)
    rows = torch.rand(1000, 3, dtype=torch.float64) * torch.logspace(-9, 9, 1000)[:, None]
    columns = np.arange(1000), rng.integers(0, 9, 1000), rng.integers(0, 9, 1000), rng.random(1000)
    orders = (np.arange(1000), np.arange(1000)[::-1], rng.permutation(1000))
    found = [Answers.of_rows(*(column[order] for column in columns), 9) for order in orders]
    scores = [recognition_scores(rows[order.copy()], answers) for order, answers in zip(orders, found, strict=True)]
    assert scores[0] == scores[1] == scores[2]
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_an_interval_holds_the_true_score_nineteen_times_of_twenty():
    """The balanced accuracy of a known classifier: recalls 0.9 and 0.5, of 400 and 40 images."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(40):
        label = np.repeat([0, 1], [400, 40])
        wrong = rng.random(440) > np.where(label, 0.5, 0.9)
        low, high = answers_of(label, np.where(wrong, 1 - label, label), 2).interval("balanced_acc", {})
        held += low <= 70 <= high
    assert 35 <= held <= 40
    counts = np.array([3, 1, 6])
    assert bootstrap(counts, lambda drawn: drawn[0]) == bootstrap(counts, lambda drawn: drawn[0])
    assert answers_of([0, 1], [0, 1], 2).interval("balanced_acc", {}) is None  # two images tell nothing
