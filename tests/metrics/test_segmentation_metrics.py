"""Scores of semantic segmentation by hand, against scikit-learn, and against the published code's numbers."""

import math
import types

import numpy as np
import pytest
import sklearn.metrics
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from utils.cli.errors import InputError
from utils.metrics.segmentation import ConfusionMatrix, MaskAnswers, confusion_matrices, predicted_classes, scores

# Truth 0 0 0 1 1 3 and one ignored pixel; class 2 is only predicted, class 4 is nowhere.
TARGET = torch.tensor([[[0, 0, 0, 1, 1, 3, -1]]])
PREDICTION = torch.tensor([[[0, 0, 2, 1, 0, 3, 1]]])
MATRIX = [[2, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def random_batch(classes, seed=0, shape=(3, 20, 30)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], classes, *shape[1:], generator=generator)
    return logits, torch.randint(-1, classes, shape, generator=generator)


def test_by_hand():
    matrix = confusion_matrices(PREDICTION, TARGET, 5)[0]
    assert matrix.dtype == torch.int64 and matrix.tolist() == MATRIX
    result = scores(matrix)
    assert result["pixacc"] == pytest.approx(100 * 4 / 6)
    assert result["macc"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)  # of the classes in the truth: 0, 1, 3
    assert result["iou"] == pytest.approx([50, 50, 0, 100, math.nan], nan_ok=True)
    assert result["miou"] == pytest.approx(200 / 4) and result["classes"] == 4


@pytest.mark.slow
def test_against_scikit_learn():
    logits, target = random_batch(7)
    total = ConfusionMatrix(7)
    total.update(logits[:2], target[:2])
    total.update(logits[2:].argmax(1), target[2:])
    labelled = (target >= 0).numpy()
    truth, prediction = target.numpy()[labelled], logits.argmax(1).numpy()[labelled]
    assert total.matrix.tolist() == sklearn.metrics.confusion_matrix(truth, prediction, labels=range(7)).tolist()
    result = scores(total.matrix)
    assert result["pixacc"] == pytest.approx(100 * sklearn.metrics.accuracy_score(truth, prediction), rel=1e-14)
    assert result["macc"] == pytest.approx(100 * sklearn.metrics.balanced_accuracy_score(truth, prediction), rel=1e-14)
    assert result["dice"] == pytest.approx(100 * sklearn.metrics.f1_score(truth, prediction, average="macro"), rel=1e-14)
    assert result["miou"] == pytest.approx(100 * sklearn.metrics.jaccard_score(truth, prediction, average="macro"), rel=1e-14)


def test_ignored_images_change_nothing():
    """What fills up the last batch has masks of -1, so the matrices of all processes simply add up."""
    logits, target = random_batch(4)
    total = ConfusionMatrix(4)
    total.update(torch.cat([logits, logits[:1]]), torch.cat([target, torch.full_like(target[:1], -1)]))
    assert torch.equal(total.matrix, confusion_matrices(logits.argmax(1), target, 4).sum(0))


def test_beyond_float32():
    result = scores(torch.tensor([[2**25, 1], [0, 2**40]]))
    assert result["iou"][0] == 100 * 2**25 / (2**25 + 1)
    assert result["pixacc"] == 100 * (2**25 + 2**40) / (2**25 + 2**40 + 1)
    total = ConfusionMatrix(2)
    total.matrix[0, 0] = 2**53  # the next number is none of float64
    total.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert total.matrix[0, 0].item() == 2**53 + 1


def test_nothing_labelled():
    result = scores(torch.zeros(3, 3, dtype=torch.int64))
    assert math.isnan(result["miou"]) and math.isnan(result["pixacc"]) and result["classes"] == 0


def test_predicted_classes():
    logits = random_batch(9)[0].round()  # many equals
    assert predicted_classes(logits).tolist() == np.argmax(logits.numpy(), 1).tolist()
    logits[0, :, 3] = torch.nan  # of a network that diverged: any class, but a class
    assert predicted_classes(logits).min() >= 0 and predicted_classes(logits).max() < 9


@pytest.mark.parametrize("label", [5, 255, -2])
def test_a_label_that_is_no_class(label):
    with pytest.raises(InputError, match=r"expected 0\.\.4, or -1"):
        confusion_matrices(PREDICTION, TARGET.where(TARGET != 3, label), 5)


def test_another_size():
    with pytest.raises(InputError, match="masks' own size"):
        ConfusionMatrix(5).update(torch.zeros(1, 5, 1, 4), TARGET)


def test_never_waits_for_the_device():
    """On the meta device nothing has a value: reading one back raises."""
    target = torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")
    ConfusionMatrix(3, "meta").update(torch.zeros(2, 3, 8, 8, device="meta"), target)


def test_as_published(golden):
    """Its counts are ours. Its mean has a class that occurs nowhere as IoU 0, ours leaves it out."""
    cases = golden("5_losses_metrics/losses_metrics.json")["metrics"]
    tensors = load_file(GOLDEN / "5_losses_metrics/losses_metrics.safetensors")
    checked = 0
    for case in cases:
        config, name = case["config"], case["id"]
        if (
            case["kind"] == "seg_metrics" and config["ignore_in_target"] == -1
        ):  # there 255 counts as labelled, here it is refused
            batches = [(tensors[f"{name}.output"], tensors[f"{name}.target"])]
        elif case["kind"] == "SegmentationMetric":
            batches = [(tensors[f"{name}.output{i}"], tensors[f"{name}.target{i}"]) for i in range(config["updates"])]
        else:
            continue
        total = ConfusionMatrix(config["nclass"])
        for output, target in batches:
            total.update(output, target)
        result, matrix = scores(total.matrix), total.matrix
        if "area_inter" in case:
            assert matrix.diagonal().tolist() == case["area_inter"]
            assert (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).tolist() == case["area_union"]
            assert (matrix.diagonal().sum(), matrix.sum()) == (case["pixel_correct"], case["pixel_labeled"])
        if matrix.any():
            assert result["pixacc"] == pytest.approx(100 * case["pixAcc"], rel=1e-13)
            assert result["miou"] * result["classes"] / config["nclass"] == pytest.approx(100 * case["mIoU"], rel=1e-13)
        checked += 1
    assert checked == 4


def test_the_pixels_of_each_image_and_how_sure_their_score_is():
    logits, target = random_batch(4, shape=(12, 20, 30))
    total = ConfusionMatrix(4)
    for rows in (slice(0, 8), slice(8, 12)):
        total.update(logits[rows], target[rows])
    filled = torch.cat([*total.images, torch.zeros(2, 3, 4, dtype=torch.int64)])  # rows that fill up the last batch
    numbers = [*range(6, 12), *range(6), 12, 13]  # as two processes gather them
    filled = torch.cat([filled[6:12], filled[:6], filled[12:]])
    answers = MaskAnswers.of(total.matrix, filled, numbers, 12, [], 8)
    assert answers.index.tolist() == list(range(12))
    alone = scores(confusion_matrices(logits[5:6].argmax(1), target[5:6], 4)[0])
    rows = list(answers.image_rows(types.SimpleNamespace(name=str)))
    assert rows[6] == ("5", f"{alone['miou']:.2f}", f"{alone['pixacc']:.2f}")
    low, high = answers.interval("miou", {})
    assert low < scores(total.matrix)["miou"] < high and high - low < 3
    classes = answers.class_rows(list("abcd"))
    assert [row["iou"] for row in classes] == scores(total.matrix)["iou"] and classes[0].keys() >= {
        "dice",
        "precision",
        "recall",
    }
