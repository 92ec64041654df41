"""Scores are told by what they are called, new ones by their own name."""

from utils.report.scores import epoch_line, is_better, result_lines, scores_of, value_of

SCORES = {"acc1": 91.25, "balanced_accuracy": 80.5, "loss": 0.25, "images": 8}


def test_a_new_score_is_told_by_its_own_name():
    (line,) = result_lines("result", SCORES)
    assert line.startswith("result: top-1 91.25000 %, loss 0.250000, balanced accuracy 80.5000 %, 8 images")
    assert line.endswith("8 images (top-1 56.9 to 98.8 % with 95 % confidence)")
    record = {f"test_{name}{ema}": value for name, value in SCORES.items() for ema in ("", "_ema")} | {"test_iou": [1.0, None]}
    known = scores_of(record)
    assert [name for name in record if name in known] == ["test_acc1", "test_balanced_accuracy", "test_loss"]
    assert known["test_balanced_accuracy"].title == "balanced accuracy, %"


def test_top_5_is_not_told_of_five_classes():
    for classes in (5, 6):
        (line,) = result_lines("result", SCORES | {"acc5": 100.0, "class_recall": [90.0] * classes})
        assert ("top-5" in line) == (classes > 5)


def test_the_score_that_decides():
    found = {"pixacc": 80.0, "miou": 40.0, "loss": 0.5, "acc1": 70.0}
    assert value_of("miou", found) == 40 and value_of("pixacc+miou", found) == 60  # PyTorch-Encoding: (80 + 40) / 2
    assert is_better("acc1", 0.0, None) and is_better("acc1", 71, 70) and not is_better("acc1", 70, 70)
    assert is_better("loss", 9.0, None) and is_better("loss", 0.4, 0.5) and not is_better("loss", 0.6, 0.5)
    assert not any(is_better(metric, float("nan"), best) for metric in ("miou", "loss") for best in (None, 1.0))


def test_the_line_of_an_epoch_shows_the_score_that_decides():
    record = {"epoch": 1, "train_loss": 2.0, "test_acc1": 70.0, "test_loss": 0.51234, "test_pixacc+miou": 60.0}
    assert epoch_line(record, 3, {"test_acc1": 71.0}, "acc1").endswith("top-1 70.00 % (best 71.00)")
    sure = record | {"test_acc1_interval": [62.4, 77.8]}
    assert epoch_line(sure, 3, {"test_acc1": 71.0}, "acc1").endswith("top-1 70.00 % ± 8 (best 71.00)")
    assert epoch_line(record, 3, {"test_loss": 0.5}, "loss").endswith("loss 0.5123 (best 0.5000)")
    assert epoch_line(record, 3, {"test_pixacc+miou": 61.0}, "pixacc+miou").endswith(
        "(pixel accuracy + mIoU) / 2 60.00 % (best 61.00)"
    )


def test_a_new_score_may_decide():
    assert is_better("balanced_accuracy", 80.5, 80.0) and not is_better("balanced_accuracy", 80.0, 80.5)
    line = epoch_line({"epoch": 0, "train_loss": 1, "test_f1": 80.5}, 3, {"test_f1": 81.0}, "f1")
    assert line == "epoch 1/3: train loss 1.0000, F1 80.50 % (best 81.00)"
