"""A temperature makes a model as sure as it is right, and is found in sums that can be gathered."""

import numpy as np
import pytest
import torch

from utils.metrics.calibration import TEMPERATURES, calibrate, calibration_columns


def drawn(images=4000, classes=5, sharpness=1.0):
    """(logits, labels): labels are drawn by the logits' own probabilities, and then the logits are made sharper."""
    logits = 2 * torch.randn(images, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    return sharpness * logits, labels


def found_of(logits, labels):
    return calibrate(calibration_columns(logits, labels).double().numpy(), (logits.argmax(1) == labels).numpy())


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 2.0])
def test_the_temperature_that_was_put_in_is_found(sharpness):
    found = found_of(*drawn(sharpness=sharpness))
    assert found["temperature"] == pytest.approx(sharpness, rel=0.13)  # a step of the grid
    assert found["ece_after"] < 3 and (sharpness == 1 or found["ece"] > 2 * found["ece_after"])
    assert sum(images for images, _, _ in found["bins"]) == 4000


def test_the_sums_are_those_of_the_logits():
    logits, labels = drawn(images=50)
    logits = 30 * logits - 1000  # far from 0
    columns = calibration_columns(logits, labels).double()
    for place, temperature in enumerate(TEMPERATURES):
        expected = torch.nn.functional.cross_entropy(logits.double() / temperature, labels, reduction="none")
        torch.testing.assert_close(columns[:, 1 + place] - columns[:, 0] / temperature, expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose((-columns[:, 1 + TEMPERATURES.index(1.0)]).exp(), logits.double().softmax(1).amax(1), atol=1e-5)


def test_the_error_by_hand():
    """Thirty answers of 90 % of which 24 are right, and ten of 60 % of which all are: off by 10 and by 40 points."""
    p, right = np.repeat([0.9, 0.6], [30, 10]), np.arange(40) >= 6
    logits = torch.tensor(np.stack([np.log(p), np.log(1 - p)], 1))
    found = found_of(logits, torch.tensor(np.where(right, 0, 1)))
    assert found["ece"] == pytest.approx((30 * 10 + 10 * 40) / 40, abs=1e-3)
    assert found["bins"] == [[10, 60.0, 100.0], [30, 90.0, 80.0]]


def test_few_images_and_none_that_is_wrong_tell_nothing():
    logits, labels = drawn(images=19)
    assert found_of(logits, labels) == {}
    logits, _ = drawn(images=100)
    assert found_of(logits, logits.argmax(1)) == {}
