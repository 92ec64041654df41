"""Pictures of images: what they show, that all of it is on the canvas, and any names and sizes."""

import drawing
import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT, run
from drawing import HOSTILE, NORM, PALETTE, assert_apart, images, look, names, shown, texts

from utils.metrics.per_class import Pairs
from utils.metrics.recognition import Answers
from utils.pictures.confusion import confusion
from utils.pictures.images import answered, predictions, samples

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch):
    return drawing.watch(monkeypatch)


@pytest.mark.parametrize("count", [1, 40])
def test_samples_show_what_the_model_sees_with_labels(tmp_path, drawn, count):
    batch = images(count)
    samples(tmp_path / "s.png", batch, torch.arange(count) % 10, names(10), **NORM)
    look(tmp_path / "s.png")
    assert len(shown(drawn[0])) == min(count, 32)
    wanted = ((batch[0] * 0.25 + 0.5) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(shown(drawn[0])[0] - wanted).max() <= 1
    assert texts(drawn[0])[1:3] == ["class number 0", "class number 1"][:count]
    assert count == 1 or not any("…" in text for text in texts(drawn[0]))


def test_mixed_labels_are_named_with_their_weights(tmp_path, drawn):
    rows = {
        (0.7, 0.3, 0.0): ["cat 0.70", "+ dog 0.30"],
        (0.0, 1.0, 0.0): ["dog"],
        (0.92, 0.04, 0.04): ["cat"],  # label smoothing alone
        (0.04, 0.32, 0.64): ["bird 0.64", "+ dog 0.32"],
    }
    soft = torch.tensor([*rows], dtype=torch.bfloat16)
    samples(tmp_path / "s.png", images(4).bfloat16(), soft, ["cat", "dog", "bird"], **NORM)
    assert texts(drawn[0])[1:] == [line for lines in rows.values() for line in lines]
    samples(tmp_path / "2.png", images(1), torch.tensor([[0.7, 0.3]]), ["cat", "dog"], **NORM)
    assert texts(drawn[1])[1:] == ["cat 0.70", "+ dog 0.30"]


def test_samples_of_a_segmentation_have_their_masks_beside_them(tmp_path, drawn):
    masks = torch.zeros(3, 24, 32, dtype=torch.int64)
    masks[:, :, :8], masks[:, :, 24:] = 2, -1
    samples(tmp_path / "s.png", images(3), masks, names(11), **NORM, palette=PALETTE)
    look(tmp_path / "s.png")
    photo, mixed, *_ = shown(drawn[0])
    assert len(shown(drawn[0])) == 6
    assert np.abs(mixed[:, :8] - (0.45 * photo[:, :8] + 0.55 * PALETTE[2])).max() <= 1
    assert texts(drawn[0])[1:] == ["class number 0", "class number 2", "no class"]


def test_mistakes_say_what_is_true_and_what_the_model_took_it_for(tmp_path, drawn):
    photos = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    answers = Answers.of_rows(np.arange(25), [9, *range(23), 3], [0, *[5] * 23, 3], [0.98, *[0.5] * 24], 30)
    worst = answers.mistakes(names(30), 24)
    answered(tmp_path / "m.png", photos[1:], [lines for *_, lines in worst], ["a/0.png"] * 23, "Mistakes")
    look(tmp_path / "m.png")
    assert (shown(drawn[0])[0] == photos[1]).all()
    assert texts(drawn[0])[1:4] == ["class number 9", "→ class number 0, 98%", "a/0.png"]
    answered(tmp_path / "none.png", [], [], [], "Nothing is wrong")
    assert texts(drawn[1]) == ["Nothing is wrong"]


def test_all_labels_of_an_image_stand_below_it(tmp_path, drawn):
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.3, 1.0, 0.7], [0.0, 1.0, 0.0]])
    samples(tmp_path / "s.png", torch.zeros(4, 3, 8, 8), targets, ["a", "b", "c"], **NORM)
    assert texts(drawn[0])[1:] == ["a, c", "no label", "a 0.30, b, c 0.70", "b"]


@pytest.mark.parametrize("size", [(24, 32), (64, 16)])
def test_predictions_in_the_colours_of_their_classes(tmp_path, drawn, size):
    truth = torch.full((8, *size), 5)
    truth[:, 0] = 255  # no class either
    predictions(tmp_path / "p.png", images(8, size), truth, torch.full_like(truth, 3), names(8), 90, names(11), PALETTE, **NORM)
    pixels = look(tmp_path / "p.png")
    assert len(shown(drawn[0])) == 18
    for label in (3, 5):
        assert (pixels == PALETTE[label]).all(-1).mean() > 0.05
    assert texts(drawn[0])[:2] == [
        "Predictions: 6 of 90 validation images, evenly spread, not chosen by score",
        "class number 0",
    ]
    assert texts(drawn[0])[-3:] == ["class number 3", "class number 5", "no class"]


def test_a_legend_of_many_classes_names_the_largest(tmp_path, drawn):
    masks = torch.arange(150).repeat(2, 24, 1)
    masks[:, 0] = 149
    predictions(tmp_path / "p.png", images(2, (24, 150)), masks, masks, ["a", "b"], 2, names(150), PALETTE, **NORM)
    assert texts(drawn[0])[-2:] == ["class number 149", "and 110 more"]
    assert_apart(drawn[0], ["class number", "more"])


def test_hostile_names_are_harmless_everywhere(tmp_path, drawn):
    labels, soft = torch.arange(10), torch.eye(10) * 0.6 + torch.eye(10).flip(0) * 0.4
    samples(tmp_path / "a.png", images(10), labels, HOSTILE, **NORM)
    samples(tmp_path / "b.png", images(10), soft, HOSTILE, **NORM)
    lines = [[("", HOSTILE[i], "", False), ("→ ", HOSTILE[9 - i], ", 50%", True)] for i in range(10)]
    answered(tmp_path / "c.png", np.full((10, 8, 8, 3), 99, np.uint8), lines, HOSTILE, "Mistakes")
    masks = torch.arange(10).repeat(2, 24, 1)
    predictions(tmp_path / "d.png", images(2, (24, 10)), masks, masks, HOSTILE, 10, HOSTILE, PALETTE, **NORM)
    confusion(tmp_path / "e.png", Pairs.of_labels(labels, labels.flip(0), 10), HOSTILE)
    for name in "abcde":
        look(tmp_path / f"{name}.png")
    assert "$\\frac{$" in texts(drawn[0]) and "(no name)" in texts(drawn[0]) and "two lines and\ufffdmore" in texts(drawn[0])
    assert next(text for text in texts(drawn[0]) if text.startswith("aaa")).endswith("a…")
    assert_apart(drawn[1], "0.")


def test_a_picture_is_replaced_in_one_step_and_no_setting_of_the_user_changes(tmp_path, monkeypatch):
    before = dict(matplotlib.rcParams)
    confusion(tmp_path / "c.png", Pairs.of_labels([0, 1, 2], [0, 1, 2], 3), ["a", "b", "c"])
    old = (tmp_path / "c.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 40, "savefig.bbox": "tight"}):
        confusion(tmp_path / "c.png", Pairs.of_labels([0, 1, 2], [0, 1, 2], 3), ["a", "b", "c"])
    assert (tmp_path / "c.png").read_bytes() == old and dict(matplotlib.rcParams) == before

    def fails(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    with pytest.raises(OSError, match="no space"):
        confusion(tmp_path / "c.png", Pairs.of_labels([0, 1, 2], [0, 1, 2], 3), ["a", "b", "d"])
    assert (tmp_path / "c.png").read_bytes() == old and [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_a_home_that_is_not_to_be_written_is_no_warning(tmp_path):
    (tmp_path / "home").write_text("no folder")
    code = "from utils.pictures.canvas import png\nwith png('x.png', 9, 9): pass"
    here = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": "", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = run("-c", code, cwd=tmp_path, env=here)
        assert done.returncode == 0 and done.stderr == "" and len(list(tmp_path.glob("strata-matplotlib-*"))) == 1
