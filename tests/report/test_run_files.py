"""What the files of a run tell: its best score and the epoch of it."""

import json

import pytest
from made_run import make_run

from utils.report.run_files import read_run

TIE = [(90.0, 0.5), (90.0, 0.2), (80.0, 0.1), (90.0, 0.3)]  # the second is kept


def run_of(folder, scores, *, first=0, kept=None, shown=None):
    """A run whose log.txt has these (score, loss) from the epoch `first`. kept: of finished.json; shown: of evaluation.json,
    its weights, epoch and score."""
    run = make_run(folder, drawn=False, finished=False)
    records = [{"epoch": first + i, "test_acc1": score, "test_loss": loss} for i, (score, loss) in enumerate(scores)]
    (run / "log.txt").write_text("".join(json.dumps(record) + "\n" for record in records))
    if kept is not None:
        (run / "finished.json").write_text(json.dumps({"test_acc1": kept}))
    if shown:
        facts = {"weights": shown[0], "epoch": shown[1], "metric": "acc1", "scores": {"acc1": shown[2]}}
        (run / "evaluation.json").write_text(json.dumps(facts))
    return read_run(run)


@pytest.mark.parametrize(
    ("files", "best"),
    [
        ({"scores": TIE}, (90.0, 2)),
        ({"scores": TIE, "kept": 90.0}, (90.0, 2)),
        ({"scores": [(80.0, 0.1)], "first": 5, "kept": 95.0, "shown": ("best", 3, 95.0)}, (95.0, 3)),  # before its log
        ({"scores": [(80.0, 0.1)], "first": 5, "shown": ("best", 3, 95.0)}, (95.0, 3)),
        ({"scores": [(80.0, 0.1)], "first": 5, "kept": 95.0, "shown": ("best_ema", 3, 97.0)}, (95.0, None)),
        ({"scores": TIE, "shown": ("/weights/of/another", 9, 99.0)}, (90.0, 2)),
        ({"scores": []}, None),
    ],
)
def test_the_best_is_the_one_that_the_run_kept(tmp_path, files, best):
    assert run_of(tmp_path / "run", **files).best == best
