"""Confusions of any number of classes: what they show, and that all of it is on the canvas."""

import drawing
import numpy as np
import pytest
from drawing import assert_apart, look, names, texts

from utils.metrics.per_class import Pairs
from utils.pictures.confusion import confusion

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch):
    return drawing.watch(monkeypatch)


@pytest.mark.parametrize("classes", [2, 10, 20, 21, 40, 41, 1000])
def test_confusions_of_any_number_of_classes(tmp_path, drawn, classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 3000)
    predicted = np.where(rng.random(3000) < 0.8, labels, (labels + 1) % classes)
    confusion(tmp_path / "c.png", Pairs.of_labels(labels, predicted, classes), names(classes))
    look(tmp_path / "c.png")
    axes = drawn[0].figure.axes[0]
    fractions = axes.images[0].get_array()
    assert fractions.shape == (classes, classes) and np.allclose(fractions.sum(1).compressed(), 1)
    assert fractions[0, 1] == (predicted[labels == 0] == 1).mean()
    assert len(axes.texts) == (len(set(zip(labels, predicted, strict=True))) if classes <= 20 else 0)
    listed, named = 2 * min(30, classes) * (classes > 20), 2 * classes * (classes <= 40)
    assert sum("class n" in text for text in texts(drawn[0])) == listed + named
    assert_apart(drawn[0], ["class n", "%)"] if classes > 2 else ["class n"])


def test_of_very_many_classes_those_that_are_confused_are_shown(tmp_path, drawn):
    labels = [7000] * 40 + [5] * 20
    predicted = [7000] * 10 + [123] * 30 + [21_840] * 20
    confusion(tmp_path / "c.png", Pairs.of_labels(labels, predicted, 21_841), names(21_841))
    look(tmp_path / "c.png")
    fractions = drawn[0].figure.axes[0].images[0].get_array()
    assert fractions.shape == (40, 40) and fractions[0, 1] == 0.75 and fractions[2, 3] == 1 and fractions.mask[1].all()
    assert {"class number 7000", "class number 123", "30 (75%)", "20 (100%)"} <= set(texts(drawn[0]))


def test_counts_are_short_and_absent_classes_grey(tmp_path, drawn):
    counts = {(0, 0): 1234, (0, 1): 999_999, (2, 0): 7}
    labels, predicted = (np.repeat(column, [*counts.values()]) for column in zip(*counts, strict=True))
    confusion(tmp_path / "c.png", Pairs.of_labels(labels, predicted, 3), ["a", "b", "c"])
    assert [text.get_text() for text in drawn[0].figure.axes[0].texts] == ["1.23k", "1M", "7"]
    assert any("grey" in text for text in texts(drawn[0]))
    confusion(tmp_path / "0.png", Pairs.of_labels([], [], 3), ["a", "b", "c"])
    look(tmp_path / "0.png")
