"""The gallery of a run: what it draws and when, and that neither damaged logs nor a picture that fails stop the rest."""

import csv
import json
import math
import types

import drawing
import numpy as np
import pytest
import torch
from drawing import NORM, PALETTE, images, look, names, shown, texts
from PIL import Image

from utils.metrics.recognition import Answers
from utils.metrics.segmentation import MaskAnswers
from utils.pictures import gallery as gallery_file
from utils.pictures.gallery import Gallery


@pytest.fixture
def drawn(monkeypatch):
    return drawing.watch(monkeypatch)


def column(canvas, panel, label):
    return next(line.get_ydata() for line in canvas.figure.axes[panel].lines if line.get_label() == label)


def test_the_first_batch_is_drawn_with_the_second(tmp_path, drawn):
    gallery, batches = Gallery(tmp_path, "test_acc1"), images(6).split(2)
    for number, batch in enumerate(batches):
        gallery.first_batch(batch, torch.tensor([number, 5]), classes=names(10), **NORM)
        assert len(drawn) == (number > 0)
    assert texts(drawn[0])[1:] == ["class number 0", "class number 5"]
    Gallery(None, "test_acc1").first_batch(batches[0], torch.tensor([0, 1]), classes=names(10), **NORM)
    resumed = Gallery(tmp_path, "test_acc1")  # the picture is of the first batch of the run, not of a start
    for batch in batches:
        resumed.first_batch(batch, torch.tensor([7, 8]), classes=names(10), **NORM)
    assert len(drawn) == 1
    (tmp_path / "samples.png").unlink()
    alone = Gallery(tmp_path, "test_acc1")  # a run of one batch
    alone.first_batch(batches[1], torch.tensor([7, 8]), classes=names(10), **NORM)
    alone.finish()
    assert texts(drawn[1])[1:] == ["class number 7", "class number 8"] and alone.waiting == {}


def answers_of_animals():
    label = np.array([0, 1] * 20)
    predicted = np.where(np.arange(40) < 30, 1, label)  # all dogs and the last five cats are right
    return Answers(np.arange(40), label, predicted, np.linspace(0.2, 0.9, 40), np.int64(3))


def animals(photos):
    return types.SimpleNamespace(
        classes=["cat", "dog", "emu"], read=lambda index: Image.fromarray(photos[index]), name=lambda index: f"a/b/{index}.png"
    )


def test_an_evaluation_becomes_files_and_pictures_of_its_weights(tmp_path, drawn):
    photos = np.random.default_rng(0).integers(0, 256, (40, 20, 30, 3), np.uint8)
    gallery = Gallery(tmp_path, "test_acc1", shown={"size": 20})
    scores = {"acc1": 62.5, "loss": 0.5, "images": 40, "class_recall": [25.0, 100.0, math.nan]}
    gallery.keep(answers_of_animals(), animals(photos), scores, "acc1", weights="best", epoch=3)
    cat, dog, emu = json.loads((tmp_path / "classes.json").read_text())
    assert cat == {
        "name": "cat", "count": 20, "predicted": 5, "precision": 100.0, "recall": 25.0, "f1": 40.0, "taken_for": "dog",
        "taken_for_share": 75.0,
    }  # fmt: skip
    assert dog["precision"] == pytest.approx(100 * 20 / 35) and (emu["recall"], emu["f1"], emu["count"]) == (None, None, 0)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["scores"] == {"acc1": 62.5, "loss": 0.5, "images": 40} and found["epoch"] == 3
    assert found["intervals"] == {"acc1": [pytest.approx(47.03, abs=0.01), pytest.approx(75.78, abs=0.01)]}  # Wilson
    rows = list(csv.reader((tmp_path / "predictions.csv").open()))
    assert (
        rows[:2]
        == [
            ["image", "label", "said", "probability", "label_probability"],
            ["a/b/0.png", "cat", "dog", "0.2000", "nan"],
        ]
        and len(rows) == 41
    )
    gallery.finish()
    assert [path.name for path in gallery.files()] == ["confusion.png", "curves.png", "mistakes.png"]
    worst = drawn[1]
    assert len(shown(worst)) == 15 and texts(worst)[1:4] == ["cat", "→ dog, 70%", "b/28.png"]
    assert (shown(worst)[0] == photos[28][:, 5:25]).all()  # centre crop


def test_a_start_after_a_kill_draws_what_the_one_before_had_found(tmp_path):
    photos, scores = np.zeros((40, 20, 20, 3), np.uint8), {"acc1": 62.5, "images": 40}
    Gallery(tmp_path, "test_acc1", shown={"size": 20}).keep(answers_of_animals(), animals(photos), scores, "acc1", epoch=3)
    again = Gallery(tmp_path, "test_acc1", shown={"size": 20})
    again.recover(animals(photos))
    again.finish()
    assert {"confusion.png", "mistakes.png"} <= {path.name for path in tmp_path.iterdir()}
    again.end()
    assert "answers.npz" not in {path.name for path in tmp_path.iterdir()}  # nobody needs it any more


def test_examples_of_any_sizes_are_drawn_beside_their_masks(tmp_path, drawn):
    mask = torch.zeros(24, 32, dtype=torch.int64)
    mask[:, 16:] = 2
    examples = [(7, images(1)[0], mask, mask.flip(1)), (9, images(1, (10, 50))[0], mask[:10, :5] - 1, mask[:10, :5])]
    pixels = torch.zeros(12, 3, 3, dtype=torch.int64)
    answers = MaskAnswers.of(torch.zeros(3, 3, dtype=torch.int64), pixels, range(12), 10, examples, 32)
    how = {"classes": names(3), "palette": PALETTE[:3], **NORM}
    source = types.SimpleNamespace(classes=names(3), name=lambda index: f"scenes/{index}.png")
    gallery = Gallery(tmp_path, "test_miou", shown=how)
    gallery.keep(answers, source, {"miou": 40.0}, "miou")
    again = Gallery(tmp_path, "test_miou", shown=how)
    again.recover(source)
    again.finish()
    look(tmp_path / "predictions.png")
    there = shown(drawn[1])
    assert len(there) == 6 and (there[1][:, :16] == PALETTE[0]).all() and (there[2][:, :16] == PALETTE[2]).all()
    assert texts(drawn[1])[0].startswith("Predictions: 2 of 10") and texts(drawn[1])[1] == "scenes/7.png"
    assert texts(drawn[1])[-3:] == ["class number 0", "class number 2", "no class"]


WRONG = ('"x"', "[]", "{}", "null", "true", "-1", "NaN", "1e999", "1" + 400 * "0", "1e300")


def test_damaged_lines_of_the_logs_leave_the_curves_of_the_rest(tmp_path, drawn):
    epochs = [{"epoch": i, "train_loss": 2.0 - i / 10, "train_lr": 0.1, "test_acc1": 50.0 + i} for i in range(3)]
    updates = [{"update": i, "epoch": i // 10, "loss": 2.0, "lr": 0.1} for i in range(30)]
    damaged = {"log.txt": ["\x00\xff", "[" * 100_000, "null", "[1]", "{}"], "updates.txt": ['{"update": 3', '{"loss": 1}']}
    for name, records in (("log.txt", epochs), ("updates.txt", updates)):
        for key in records[0]:
            for value in WRONG:
                damaged[name].append(json.dumps(records[0] | {key: "HERE"}).replace('"HERE"', value))
        whole = [json.dumps(record) for record in records]
        (tmp_path / name).write_text("\n".join([whole[0], *damaged[name], *whole[1:]]), encoding="latin-1")
    warnings = []
    Gallery(tmp_path, "test_acc1", warn=warnings.append).finish()
    assert warnings == []
    look(tmp_path / "curves.png")
    scores, losses = column(drawn[0], 1, "model"), column(drawn[0], 0, "per update")
    assert set(scores[np.isfinite(scores)]) - {-1} == {50, 51, 52} and set(losses[np.isfinite(losses)]) - {-1} == {2}
    assert drawn[0].figure.axes[0].get_xlim()[1] == pytest.approx(3.03)


def test_it_draws_only_when_that_is_little_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gallery_file.time, "perf_counter", lambda: now[0])
    gallery = Gallery(tmp_path, "test_acc1")
    now[0] = 200
    assert not gallery.refresh()  # three seconds are expected, which is more than a hundredth
    now[0] = 301
    assert gallery.refresh() and (tmp_path / "curves.png").is_file()
    assert not Gallery(None, "test_acc1").refresh()


def test_a_picture_that_fails_is_warned_of_once_and_the_others_are_drawn(tmp_path):
    def fails(path):
        raise OSError("no space")

    warnings = []
    gallery = Gallery(tmp_path, "test_acc1", warn=warnings.append)
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_loss": 1.0}\n')
    for _ in range(2):
        gallery.put("samples", fails)
        gallery.finish()
    assert warnings == ["samples could not be made (OSError: no space)"]
    assert (tmp_path / "curves.png").is_file() and (tmp_path / "report.html").is_file()
