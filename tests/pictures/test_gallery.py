"""The gallery of a run: what it draws and when, and that neither damaged logs nor a picture that fails stop the rest."""

import json
import types

import drawing
import numpy as np
import pytest
import torch
from drawing import NORM, PALETTE, images, look, names, texts
from PIL import Image

from utils.pictures import gallery as gallery_file
from utils.pictures.gallery import Answers, Gallery


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
    alone = Gallery(tmp_path, "test_acc1")  # a run of one batch
    alone.first_batch(batches[1], torch.tensor([7, 8]), classes=names(10), **NORM)
    alone.finish()
    assert texts(drawn[1])[1:] == ["class number 7", "class number 8"] and alone.waiting == {}


def test_answers_become_scores_by_class_confusions_and_the_most_confident_mistakes(tmp_path, drawn):
    photos = np.random.default_rng(0).integers(0, 256, (40, 20, 30, 3), np.uint8)
    source = types.SimpleNamespace(classes=["cat", "dog", "emu"], read=lambda index: Image.fromarray(photos[index]))
    label = torch.tensor([0, 1] * 20)
    predicted = torch.where(torch.arange(40) < 30, 1, label)  # all dogs and the last five cats are right
    answers = Answers(torch.arange(40).flip(0), label, predicted, torch.linspace(0.2, 0.9, 40))
    gallery = Gallery(tmp_path, "test_acc1")
    gallery.put_answers(answers, source, input_size=20)
    assert json.loads((tmp_path / "classes.json").read_text()) == [
        {"name": "cat", "accuracy": 25.0, "count": 20, "predicted": 5},
        {"name": "dog", "accuracy": 100.0, "count": 20, "predicted": 35},
        {"name": "emu", "accuracy": None, "count": 0, "predicted": 0},
    ]  # fmt: skip
    gallery.finish()
    assert [path.name for path in gallery.files()] == ["confusion.png", "curves.png", "mistakes.png"]
    worst = drawn[1]
    assert len(worst.figure.axes) == 15 and texts(worst)[1:3] == ["cat", "→ dog, 70%"]
    assert (worst.figure.axes[0].images[0].get_array() == photos[11][:, 5:25]).all()  # row 28 of the answers, centre crop


def test_examples_of_any_sizes_are_drawn_beside_their_masks(tmp_path, drawn):
    mask = torch.zeros(24, 32, dtype=torch.int64)
    mask[:, 16:] = 2
    examples = [(images(1)[0], mask, mask.flip(1)), (images(1, (10, 50))[0], mask[:10, :5] - 1, mask[:10, :5])]
    gallery = Gallery(tmp_path, "test_miou")
    gallery.put_examples(examples, classes=names(3), palette=PALETTE[:3], size=32, **NORM)
    gallery.finish()
    look(tmp_path / "predictions.png")
    shown = [axes.images[0].get_array() for axes in drawn[0].figure.axes]
    assert len(shown) == 6 and (shown[1][:, :16] == PALETTE[0]).all() and (shown[2][:, :16] == PALETTE[2]).all()
    assert texts(drawn[0])[-3:] == ["class number 0", "class number 2", "no class"]


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
