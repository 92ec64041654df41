"""What `--eval true` leaves: the run's own files again, on any number of processes, and nothing else is touched."""

import json
import os

from conftest import forked, make_folder, train

from utils.result.evaluation import folder_for

FILES = ("classes.json", "predictions.csv", "confusion.png", "mistakes.png")


def test_an_evaluation_writes_beside_the_weights_and_over_nothing_of_others(tmp_path):
    run = tmp_path / "run"
    for name in ("best", "checkpoints/update_00000007"):
        (run / name).mkdir(parents=True)
        assert folder_for(None, str(run / name)) == run / "evaluation"
    assert folder_for(None, "timm/resnet18") is None and folder_for(None, "") is None
    (run / "args.json").touch()
    (run / "evaluation.json").touch()  # the run's own
    assert folder_for(str(run), "x") == run / "evaluation"
    assert folder_for(str(tmp_path / "new"), "x") == tmp_path / "new"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "predictions.csv").touch()  # of --predict
    assert folder_for(str(tmp_path / "new"), "x") == tmp_path / "new" / "evaluation"
    (tmp_path / "new" / "evaluation.json").touch()
    assert folder_for(str(tmp_path / "new"), "x") == tmp_path / "new"  # an earlier evaluation is replaced


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_two_processes_leave_the_files_that_the_run_left(tmp_path):
    """Of an unbalanced set with an odd number of images, and the page is about the evaluated weights."""
    for split, counts in (("train", (24, 4)), ("val", (9, 4))):
        for name, count in zip(("sound", "cracked"), counts, strict=True):
            make_folder(tmp_path / "data" / split, (name,), count, seed=count)
    data = ["--data_path", tmp_path / "data"]
    done = train(*data, "--batch_size", 8, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run, log = tmp_path / "run", json.loads((tmp_path / "run" / "log.txt").read_text())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    facts = json.loads((run / "evaluation.json").read_text())
    assert {f"test_{name}": value for name, value in facts["scores"].items()}.items() <= log.items()
    assert facts["scores"].keys() >= {"auroc", "balanced_acc", "f1"} and facts["intervals"].keys() == {"acc1"}
    words = [*data, "--eval", "true", "--finetune", run / "best", "--num_workers", 0, "--batch_size", 4]
    done = forked("train_recognition", *words, processes=2)
    folder = run / "evaluation"
    assert done.returncode == 0 and f"next: look at {folder / 'report.html'}" in done.stdout, done.stderr
    assert contents(folder) == contents(run)
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["scores"] == facts["scores"] and found["intervals"] == facts["intervals"]
    assert os.fspath(run / "best") in (folder / "report.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in before}
