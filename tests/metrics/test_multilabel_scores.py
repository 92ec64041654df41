"""Scores of several labels an image, by hand and against scikit-learn."""

import csv
import io

import numpy as np
import pytest
import sklearn.metrics
import torch

from utils.cli.errors import InputError
from utils.metrics.advice import in_words
from utils.metrics.multilabel import SeveralAnswers, average_precision, best_thresholds, multilabel_scores, stored_thresholds
from utils.metrics.tasks import OneLabel, SeveralLabels


class Source:
    classes = ["cat", "dog", "rare", "none"]

    def name(self, index):
        return f"{index}.png"


def made(images=300, seed=0, digits=2):
    """(labels, probability) of four classes, with ties; the last class has no positive."""
    rng = np.random.default_rng(seed)
    labels = rng.random((images, 4)) < [0.5, 0.3, 0.03, 0]
    return labels, (0.3 * labels + 0.7 * rng.random((images, 4))).round(digits)


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_average_precision_is_scikit_learns(digits):
    labels, probability = made(digits=digits)
    wanted = [sklearn.metrics.average_precision_score(labels[:, c], probability[:, c]) for c in range(3)]
    found = [average_precision(labels[:, c], probability[:, c]) for c in range(4)]
    assert found[:3] == pytest.approx(wanted, abs=1e-12) and np.isnan(found[3])
    answers = SeveralAnswers(np.arange(300), labels, probability, np.full(4, 0.5))
    scores = multilabel_scores([0.5] * 300, answers)
    assert scores["map"] == pytest.approx(100 * np.mean(wanted), abs=1e-10) and scores["classes"] == 3
    for name, average in (("f1", "macro"), ("f1_micro", "micro")):
        f1 = sklearn.metrics.f1_score(labels[:, :3], answers.said[:, :3], average=average)
        assert scores[name] == pytest.approx(100 * f1)
    assert answers.said[:, 3].any() and scores["loss"] == 0.5


def test_no_threshold_gives_a_better_f1():
    labels, probability = made(digits=2)
    thresholds = best_thresholds(labels, probability)
    assert thresholds[3] == 0.5  # of which nothing is known
    for c in range(3):
        f1 = [sklearn.metrics.f1_score(labels[:, c], probability[:, c] >= cut) for cut in np.arange(102) / 100 - 0.005]
        assert sklearn.metrics.f1_score(labels[:, c], probability[:, c] >= thresholds[c]) == max(f1)
    one = best_thresholds(np.array([[True], [True], [False]]), np.array([[0.9], [0.6], [0.2]]))
    assert one.tolist() == [0.4]  # in the middle: rounding elsewhere moves nothing across


@pytest.mark.parametrize("task", [OneLabel(every=True), SeveralLabels()])
def test_the_order_of_the_images_does_not_matter(task):
    torch.manual_seed(0)
    logits, several = torch.randn(200, 4), torch.rand(200, 4) < 0.4
    labels = several.float() if isinstance(task, SeveralLabels) else several.int().argmax(1)
    rows = task.columns(logits, labels).double()
    scores, answers = task.scored(rows, torch.arange(200), classes=4)
    order = torch.randperm(200)
    again, shuffled = task.scored(rows[order], order, classes=4)
    assert again == scores and list(shuffled.image_rows(Source())) == list(answers.image_rows(Source()))
    if isinstance(task, SeveralLabels):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        assert scores["loss"] == pytest.approx(loss.item(), abs=1e-6)
        assert answers.config()["thresholds"] == answers.thresholds.tolist()
        stored, _ = SeveralLabels(np.full(4, 0.9)).scored(rows, torch.arange(200), classes=4)
        assert stored["map"] == scores["map"] and stored["f1"] < scores["f1"]  # the thresholds that are stored hold


def test_each_image_stands_with_its_labels_and_all_probabilities():
    labels, probability = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool), np.array([[0.9, 0.6, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
    answers = SeveralAnswers(np.array([3, 7]), labels, probability, np.full(4, 0.5))
    assert list(answers.image_rows(Source())) == [
        ("image", "labels", "said", "p_cat", "p_dog", "p_rare", "p_none"),
        ("3.png", "cat|rare", "cat|dog", "0.9", "0.6", "0.1", "0.2"),
        ("7.png", "", "", "0.1", "0.2", "0.3", "0.4"),
    ]
    missed, *others = answers.mistakes(Source.classes, 5)
    assert others == []  # the second image is right
    assert missed == (3, 2, [("", "cat, rare", "", False), ("missed: ", "rare", ", 10%", True)])
    rows = answers.class_rows(Source.classes)
    assert rows[3] == {
        "name": "none", "count": 0, "predicted": 0, "ap": None, "f1": None, "precision": None, "recall": None, "threshold": 0.5,
    }  # fmt: skip


def test_all_probabilities_of_one_label_an_image():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    for every in (True, False):
        task = OneLabel(every)
        rows = task.columns(logits, torch.tensor([0, 1])).double()
        _, answers = task.scored(rows, torch.arange(2), classes=4)
        text = io.StringIO()
        csv.writer(text).writerows(answers.image_rows(Source()))
        first, *rows = csv.DictReader(io.StringIO(text.getvalue()))
        assert ("p_none" in first) == every and first["probability"] == f"{logits[0].softmax(0)[0]:.4f}"
        if every:
            found = [float(first[f"p_{name}"]) for name in Source.classes]
            assert found == pytest.approx(logits[0].softmax(0).tolist(), abs=1e-4)


def test_in_words_the_score_stands_beside_chance():
    labels, probability = made()
    answers = SeveralAnswers(np.arange(300), labels, probability, best_thresholds(labels, probability))
    scores = multilabel_scores([0.5] * 300, answers)
    low, high = answers.interval("map", scores)
    assert low < scores["map"] < high and high - low < 45
    rows = answers.class_rows(Source.classes)
    evaluation = {"metric": "map", "scores": scores, "intervals": {"map": (low, high)}}
    first, *_ = in_words([], rows, evaluation, {"class_weights": None})
    chance = 100 * labels[:, :3].mean()
    assert f"chance has {chance:.1f} %, the labels' mean share of the images" in first
    assert first.endswith("Left out, since no validation image has them: none.")  # its name
    noise = evaluation | {"scores": scores | {"map": chance}, "intervals": {"map": (chance - 5, chance + 5)}}
    assert "nothing of use is learned yet" in in_words([], rows, noise, {})[0]


@pytest.mark.parametrize("text", ['{"thresholds": [0.5]}', '{"thresholds": "x"}', '{"thresholds": [2, 0, 0]}'])
def test_odd_thresholds_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"thresholds in config.json; expected 3 numbers of 0 to 1"):
        stored_thresholds(tmp_path, 3)
    (tmp_path / "config.json").write_text('{"thresholds": [0.5, 0.25, 1]}')
    assert stored_thresholds(tmp_path, 3).tolist() == [0.5, 0.25, 1]
    assert stored_thresholds(tmp_path / "elsewhere", 3) is None
