"""--task multilabel as users run it: training, several processes, a resumed run, evaluation, prediction, the card's code."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import sklearn.metrics
from conftest import lines, run, train
from PIL import Image
from safetensors.torch import load_file

COLOURS = ["red", "green", "blue"]
FLAGS = ("--task", "multilabel", "--batch_size", 8, "--aa", "none", "--reprob", 0, "--lr", 4e-3, "--warmup_epochs", 0)


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """48 images with bands of the colours that their labels name, and a table of 0 and 1."""
    root, rng = tmp_path_factory.mktemp("heap"), np.random.default_rng(0)
    rows = []
    for i in range(48):
        has = rng.random(3) < 0.4
        pixels = rng.integers(0, 60, (36, 36, 3))
        for c in np.flatnonzero(has):
            pixels[12 * c : 12 * c + 12, :, c] += 180
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{i}.png")
        rows.append(f"{i}," + ",".join(map(str, has.astype(int))))
    for name, part in (("train", rows[:32]), ("val", rows[32:])):
        (root / f"{name}.csv").write_text(f"image,{','.join(COLOURS)}\n" + "\n".join(part) + "\n")
    return root


def tables(root):
    return "--labels", root / "train.csv", root / "val.csv"


@pytest.fixture(scope="module")
def trained(heap, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(*tables(heap), *FLAGS, "--epochs", 4, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def rows_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def answers_of(folder):
    """(labels (N, 3) bool, probabilities (N, 3), said (N, 3) bool) of predictions.csv."""
    rows = rows_of(folder)
    there, said = (np.array([[name in row[key].split("|") for name in COLOURS] for row in rows]) for key in ("labels", "said"))
    return there, np.array([[float(row[f"p_{name}"]) for name in COLOURS] for row in rows]), said


def test_it_learns_and_everything_is_about_the_best_weights(trained):
    folder, text = trained
    evaluation, config = (json.loads((folder / name).read_text()) for name in ("evaluation.json", "best/config.json"))
    there, probability, said = answers_of(folder)
    wanted = 100 * sklearn.metrics.average_precision_score(there, probability, average="macro")
    assert evaluation["metric"] == "map" and evaluation["scores"]["map"] == pytest.approx(wanted, abs=1e-9)
    assert (said == (probability >= config["thresholds"])).all() and config["task"] == "multilabel"
    assert evaluation["scores"]["f1"] == pytest.approx(100 * sklearn.metrics.f1_score(there, said, average="macro"))
    assert wanted > 100 * there.mean() + 25
    records = lines(folder / "log.txt")
    assert max(record["test_map"] for record in records) == pytest.approx(wanted, abs=1e-9)
    assert len(records[0]["test_class_ap"]) == 3
    assert re.search(r"epoch 4/4: train loss [\d.]+, mAP [\d.]+ % ± \d+ \(best", text) and "top-1" not in text
    assert (
        re.search(r"images per class, to train on \+ to validate on: red \d+ \+ \d+, green", text)
        and "images have no label" in text
    )
    report = (folder / "report.html").read_text()
    assert "chance has" in report and "threshold" in report and "top-1" not in report
    assert not (folder / "confusion.png").exists() and not (folder / "warnings.txt").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_takes_the_stored_thresholds_on_any_number_of_processes(trained, heap, tmp_path, processes):
    best, out = trained[0] / "best", tmp_path / "out"
    words = ("--eval", "true", "--finetune", best, "--labels", heap / "val.csv", "--output_dir", out)
    done = train(*words, processes=processes)
    assert done.returncode == 0, done.stderr
    assert f"thresholds: those of {best}" in done.stdout
    found, before = (json.loads((folder / "evaluation.json").read_text())["scores"] for folder in (out, trained[0]))
    assert found == pytest.approx(before, abs=1e-5)
    there, probability, _ = answers_of(out)
    wanted = 100 * sklearn.metrics.average_precision_score(there, probability, average="macro")
    assert found["map"] == pytest.approx(wanted, abs=1e-10)


def test_a_resumed_run_ends_with_the_same_bits(heap, tmp_path):
    words = (*tables(heap), *FLAGS, "--epochs", 2, "--mixup", 0.5, "--cutmix", 1, "--loss", "asl", "--save_ckpt_updates", 3)
    words = (*words, "--save_ckpt_num", 9)
    assert train(*words, "--output_dir", tmp_path / "a").returncode == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("finished.json", "checkpoints/update_00000004", "checkpoints/update_00000006", "checkpoints/update_00000008"):
        path = tmp_path / "b" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = train(*words, "--output_dir", tmp_path / "b")
    assert done.returncode == 0 and "after 3 updates" in done.stdout, done.stderr
    first, second = (load_file(tmp_path / name / "last/model.safetensors") for name in "ab")
    assert all((first[key] == second[key]).all() for key in first)
    one, two = (lines(tmp_path / name / "log.txt") for name in "ab")
    assert one == two


@pytest.mark.slow
def test_all_labels_above_their_thresholds_are_predicted(trained, heap, tmp_path):
    best = trained[0] / "best"
    words = ("--predict", heap / "images", "--finetune", best, "--output_dir", tmp_path)
    done = train(*words)
    assert done.returncode == 0, done.stderr
    thresholds = json.loads((trained[0] / "best/config.json").read_text())["thresholds"]
    rows = rows_of(tmp_path)
    of_val = {pathlib.PurePath(row["image"]).name: row for row in rows_of(trained[0])}
    assert len(rows) == 48 and (tmp_path / "predictions.png").is_file()
    for row in rows:
        values = [float(row[f"p_{name}"]) for name in COLOURS]
        above = {name for name, p, least in zip(COLOURS, values, thresholds, strict=True) if p >= least}
        assert set(filter(None, row["labels"].split("|"))) == above
        if known := of_val.get(row["image"]):
            assert set(row["labels"].split("|")) == set(known["said"].split("|"))
    both = train("--predict", heap / "images", "--finetune", best, trained[0] / "last", "--output_dir", tmp_path / "both")
    assert both.returncode == 0 and "the probabilities of 2 models are averaged" in both.stdout, both.stderr
    assert "last has no thresholds in config.json" in both.stdout
    refused = train(*words, "--unsure", 0.5)
    assert refused.returncode == 1 and "names several labels an image" in refused.stderr


@pytest.mark.slow
def test_the_code_of_the_card_runs(trained, tmp_path):
    card = (trained[0] / "best/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("FOLDER_OF_THIS_FILE", str(trained[0] / "best"))
    Image.fromarray(np.tile(np.uint8([30, 220, 30]), (36, 36, 1))).save(tmp_path / "image.jpg")
    (tmp_path / "use.py").write_text(code)
    done = run(tmp_path / "use.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(re.fullmatch(r"(red|green|blue) 0\.\d+", line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "words, line",
    [
        ("--best_metric map", "--best_metric map is of several labels an image: give --task multilabel"),
        ("--finetune a b", "--finetune a b: found several weights, which --predict of train_recognition.py averages"),
        ("--loss asl", "--loss asl is of several labels an image"),
        ("--task multilabel", "--task multilabel needs --labels TABLE or --dataset"),
        ("--task multilabel --labels x.csv --loss ce", "--loss ce is of one label an image; expected bce or asl"),
        ("--task multilabel --labels x.csv --best_metric acc1", "--best_metric acc1 is of one label an image"),
        ("--task multilabel --labels x.csv --sampling balanced", "--sampling balanced is of one label an image"),
        ("--task multilabel --labels x.csv --smoothing 0.1", "--smoothing is of one label an image"),
        ("--task multilabel --dataset x --streaming true", "--streaming true is of one label an image"),
    ],
)
def test_what_does_not_go_with_the_task_is_refused(words, line, capsys):
    from train_recognition import parse_args

    with pytest.raises(SystemExit) as stopped:
        parse_args(words.split())
    assert stopped.value.code == 2 and line in capsys.readouterr().err
