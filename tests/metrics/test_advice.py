"""What is said of the numbers of a run, on made-up logs; and how sure a score of few images is."""

import pytest

from utils.metrics.advice import first_tenth, never_predicted, not_moving, overfits, small_data
from utils.metrics.interval import wilson


def updates(losses, rate=1.6e-5):
    return [{"update": number, "epoch": 0, "loss": loss, "lr": rate} for number, loss in enumerate(losses)]


def test_a_loss_that_does_not_move_within_the_first_tenth():
    still = updates([6.2 - 0.001 * number for number in range(60)])
    assert not_moving(still, 600) == "the training loss fell by 1% in 60 updates: try --lr 0.0002"
    assert not_moving(still[:59], 600) is None  # the tenth is not over
    assert not_moving(updates([6.2 - 0.01 * number for number in range(60)]), 600) is None
    assert not_moving(updates([2.0 + 0.01 * number for number in range(60)]), 600).startswith("the training loss rose by")
    assert not_moving(updates([2.0] * 30 + [None] * 30), 600) is None  # a damaged line
    assert first_tenth(600) == 60 and first_tenth(50) == 20


def epochs(train, test):
    return [{"epoch": i, "train_loss": a, "test_loss": b} for i, (a, b) in enumerate(zip(train, test, strict=True))]


def test_training_and_validation_part_company():
    falls = [2.0 - 0.18 * number for number in range(11)]
    parted = overfits(epochs(falls, [1.5, 1.2, 1.0, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]))
    assert parted.startswith("since epoch 4 the validation loss rises, from 0.8 to 1.5")
    assert overfits(epochs(falls, falls)) is None
    assert overfits(epochs([1.0] * 11, [0.8] * 5 + [1.5] * 6)) is None  # training has not gone on either
    assert overfits(epochs(falls[:9], [0.8] + [1.5] * 8)) is None  # too early to tell


def test_small_data_and_a_class_that_is_never_said():
    assert "--total_batch_size 16" in small_data(36, 32) and small_data(64, 32) is None
    assert small_data(16, 16) is None  # less than that is no help
    rows = [{"name": name, "count": 5, "predicted": said} for name, said in (("cat", 9), ("owl", 0), ("dog", 1))]
    assert "taken for owl:" in never_predicted(rows, 5)
    assert never_predicted(rows, 2) is None and never_predicted(rows[::2], 5) is None
    assert never_predicted([{"name": "owl", "count": 0, "predicted": 0}, *rows[::2]], 5) is None  # not in the data


def test_the_interval_is_wilsons():
    """Wilson's score interval of 58 right answers of 60, and of none and all of ten, from its formula by hand."""
    assert wilson(58 / 0.6, 60) == pytest.approx((88.64, 99.08), abs=0.01)
    assert wilson(0, 10) == pytest.approx((0, 27.75), abs=0.01) and wilson(100, 10) == pytest.approx((72.25, 100), abs=0.01)
