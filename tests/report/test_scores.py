"""Scores are told by what they are called, new ones by their own name."""

from utils.report.scores import result_lines, scores_of

SCORES = {"acc1": 91.25, "balanced_accuracy": 80.5, "loss": 0.25, "images": 8}


def test_a_new_score_is_told_by_its_own_name():
    assert result_lines("result", SCORES) == ["result: top-1 91.25000 %, loss 0.250000, balanced accuracy 80.5000 %, 8 images"]
    record = {f"test_{name}{ema}": value for name, value in SCORES.items() for ema in ("", "_ema")} | {"test_iou": [1.0, None]}
    known = scores_of(record)
    assert [name for name in record if name in known] == ["test_acc1", "test_balanced_accuracy", "test_loss"]
    assert known["test_balanced_accuracy"].title == "balanced accuracy, %"
