"""What is said of the numbers of a run, on made-up logs; and how sure a score of few images is."""

import pytest

from utils.metrics.advice import first_tenth, in_words, never_predicted, not_moving, overfits, small_data
from utils.metrics.interval import wilson


def updates(losses):
    return [{"update": number, "epoch": 0, "loss": loss, "lr": 1e-9} for number, loss in enumerate(losses)]


def test_a_loss_that_does_not_move_within_the_first_tenth():
    """The advice is a multiple of the peak rate, not of what the warm-up has reached by then."""
    still = updates([6.2 - 0.001 * number for number in range(60)])
    assert not_moving(still, 600, 1.6e-5) == "the training loss fell by 1% in 60 updates: try --lr 0.0002"
    assert not_moving(still[:59], 600, 1.6e-5) is None  # the tenth is not over
    assert not_moving(updates([6.2 - 0.01 * number for number in range(60)]), 600, 1.6e-5) is None
    rising = updates([2.0 + 0.01 * number for number in range(60)])
    assert not_moving(rising, 600, 0.3) == "the training loss rose by 27% in 60 updates: try --lr 0.03"
    assert not_moving(updates([2.0] * 30 + [None] * 30), 600, 0.3) is None  # a damaged line
    assert first_tenth(600) == 60 and first_tenth(50) == 20


def epochs(train, test):
    return [{"epoch": i, "train_loss": a, "test_loss": b} for i, (a, b) in enumerate(zip(train, test, strict=True))]


def test_training_and_validation_part_company():
    falls = [2.0 - 0.18 * number for number in range(11)]
    parted = overfits(epochs(falls, [1.5, 1.2, 1.0, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]))
    assert parted.startswith("since epoch 4 the validation loss rises, from 0.8 to 1.5")
    assert overfits(epochs(falls, falls)) is None
    lucky = [1.5, 1.2, 0.5, 1.0, 0.95, 0.9, 0.85, 0.8, 0.78, 0.77, 0.76]  # one epoch, and it falls
    assert overfits(epochs(falls, lucky)) is None
    assert overfits(epochs([1.0] * 11, [0.8] * 5 + [1.5] * 6)) is None  # training has not gone on either
    assert overfits(epochs(falls[:9], [0.8] + [1.5] * 8)) is None  # too early to tell


def test_small_data_and_a_class_that_is_never_said():
    assert "--total_batch_size 16" in small_data(36, 32) and small_data(64, 32) is None
    assert small_data(16, 16) is None  # less than that is no help
    # what the best epoch said, which the rows are of, does not count
    rows = [{"name": name, "count": 5, "predicted": 3} for name in ("cat", "owl", "dog")]
    said = [{"epoch": number, "test_class_precision": [50.0, None, 90.0]} for number in range(5)]
    assert never_predicted(rows, said).startswith("in epoch 5 no validation image is taken for owl:")
    assert never_predicted(rows, said[:2]) is None
    assert never_predicted(rows, [*said, {"epoch": 5, "test_class_precision": [50.0, 1.0, 90.0]}]) is None
    assert never_predicted(rows, [*said, {"epoch": 5}]) is None  # not evaluated
    assert never_predicted([rows[0], {"name": "owl", "count": 0}, rows[2]], said) is None  # not in the data


def test_the_interval_is_wilsons():
    """Wilson's score interval of 58 right answers of 60, and of none and all of ten, from its formula by hand."""
    assert wilson(58 / 0.6, 60) == pytest.approx((88.64, 99.08), abs=0.01)
    assert wilson(0, 10) == pytest.approx((0, 27.75), abs=0.01) and wilson(100, 10) == pytest.approx((72.25, 100), abs=0.01)


# --- in words: what the top of report.html says of made-up runs


def tiles(found, count=(900, 80, 20)):
    """Rows of classes.json of sound, cracked and chipped tiles of which these shares are found."""
    rows = [{"name": name, "recall": share, "count": number} for name, share, number in zip(
        ("sound", "cracked", "chipped"), found, count, strict=True)]  # fmt: skip
    for row in rows[1:]:
        row |= {"taken_for": "sound", "taken_for_share": 100 - row["recall"]}
    return rows


def found(acc1, low, high, epoch=1, **scores):
    return {"metric": "acc1", "epoch": epoch, "scores": {"acc1": acc1, **scores}, "intervals": {"acc1": [low, high]}}


def logged(*accuracies):
    return [{"epoch": i, "test_acc1": value} for i, value in enumerate(accuracies)]


def test_a_model_that_says_the_commonest_class_has_learned_nothing():
    first, second, third = in_words([], tiles((100, 0, 0)), found(90.0, 88.0, 91.7), {})
    assert first.startswith(
        "The top-1 accuracy is 90.0 % (88.0 to 91.7 with 95 % confidence); always saying sound, the commonest"
    )
    assert "would reach 90.0 %: by this score nothing of use is learned yet." in first
    assert second == "Hardest: cracked (0 % found, 100 % taken for sound); chipped (0 % found, 100 % taken for sound)."
    assert third.startswith("Try next: --sampling balanced or --class_weights auto") and "chipped is 45 times rarer" in third


def test_what_was_done_already_is_not_advised():
    rows, score = tiles((99, 80, 40)), found(96.0, 95.0, 97.0, balanced_acc=73.0)
    (how, _, advice) = in_words([], rows, score, {"data_path": "x", "pretrained": True})
    assert "Over the classes the mean is 73.0 %: rare ones are found less often." in how and "--sampling" in advice
    for done in ({"sampling": "sqrt"}, {"class_weights": ["auto"]}):
        assert not any("Try next" in line for line in in_words([], rows, score, {"data_path": "x", "pretrained": True} | done))
    assert any("--pretrained true" in line for line in in_words([], rows, score, {"data_path": "x", "sampling": "sqrt"}))
    assert not any("--pretrained" in line for line in in_words([], rows, score, {}))  # of the built-in digits there is none
    even = tiles((99, 98, 97), (400, 300, 300))
    assert not any("Try next" in line for line in in_words([], even, score, {}))  # rare enough for nobody


def test_how_a_run_went_on():
    rows = tiles((99, 99, 99), (10, 10, 10))
    rising = in_words(logged(50, 60, 70, 80, 85), rows, found(85.0, 80.0, 90.0, epoch=5), {})
    assert "It still improves: the best epoch, 5, is one of the last of 5. Try next: --epochs 10." in rising
    flat = in_words(logged(50, 85, 84, 85, 83, 84), rows, found(85.0, 80.0, 90.0, epoch=2), {})
    assert "Since epoch 2 of 6 it became no better: --patience 3 would end it sooner." in flat
    neither = in_words(logged(50, 60, 70, 80, 85, 84, 83), rows, found(85.0, 80.0, 90.0, epoch=5), {})
    assert not any("epoch" in line for line in neither)
    assert not any(
        "epoch" in line for line in in_words(logged(50, 60), rows, found(60.0, 50.0, 70.0, epoch=2), {})
    )  # too early
    records = [{"epoch": i, "train_loss": 2 - i / 6, "test_loss": abs(i - 3) + 1.0, "test_acc1": 50.0} for i in range(11)]
    assert any(line.startswith("It overfits: since epoch 4") for line in in_words(records, rows, found(50.0, 40, 60), {}))


def test_classes_that_are_taken_for_each_other():
    rows = [{"name": "3", "recall": 70.0, "count": 50, "taken_for": "5", "taken_for_share": 25.0},
            {"name": "5", "recall": 60.0, "count": 50, "taken_for": "3", "taken_for_share": 40.0}]  # fmt: skip
    assert "Try next: look at 3 and 5, which are taken for each other" in in_words([], rows, found(65.0, 55, 75), {})[-1]
    rows[0]["taken_for_share"] = 5.0
    assert not any("each other" in line for line in in_words([], rows, found(65.0, 55, 75), {}))


def test_small_objects_of_a_segmentation():
    """Of ten pixels in a thousand, which is 99 % pixel accuracy without finding one."""
    rows = [{"name": "ground", "iou": 99.0, "count": 99_600}, {"name": "screw", "iou": 3.0, "count": 400}]
    evaluation = {"metric": "miou", "epoch": 1, "scores": {"miou": 51.0}, "intervals": {"miou": [49.0, 53.0]}}
    how, hardest, weights, dice = in_words([], rows, evaluation, {"loss": "ce"}, segments=True)
    assert how.startswith(
        "The mean IoU is 51.0 % (49.0 to 53.0 with 95 % confidence); always saying ground, the commonest class"
    )
    assert "would reach 49.8 %: by this score nothing of use is learned yet. Try next: more --epochs, or another --lr." in how
    assert hardest.startswith("Hardest: screw (3 % IoU)") and "--class_weights auto" in weights
    assert dice.startswith("Try next: --loss ce+dice, or a larger --crop_size: screw take")
    assert not any("--loss" in line for line in in_words([], rows, evaluation, {"loss": "ce+dice"}, segments=True))


def test_damaged_files_are_told_nothing_of():
    assert in_words([], [], {}, {}) == []
    assert in_words([{"epoch": 0}], [{"name": None, "recall": None, "count": "x"}], found(1.0, 0, 2), {}) == []
