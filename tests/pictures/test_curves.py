"""Pictures of numbers: curves stand where their epochs are, of any run, and layers have their multiple of the rate."""

import drawing
import numpy as np
import pytest
from drawing import assert_apart, look, texts

from optim_factory import get_parameter_groups, group_table, layer_decay_assigner
from utils.pictures.curves import curves, lr_groups

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch):
    return drawing.watch(monkeypatch)


def updates(losses, per_epoch, lr=1e-3):
    return [{"update": i, "epoch": i // per_epoch, "loss": loss, "lr": lr * (i + 1)} for i, loss in enumerate(losses)]


def line(canvas, panel, label):
    return next(line for line in canvas.figure.axes[panel].lines if line.get_label() == label)


def test_curves_stand_where_their_epochs_are(tmp_path, drawn):
    epochs = [{"epoch": i, "train_loss": 3.0 - i, "test_acc1": 50.0 + i, "test_acc1_ema": 60.0 - i} for i in range(2)]
    epochs.append({"epoch": 2, "train_loss": 0.5})  # was not evaluated
    curves(tmp_path / "c.png", epochs, updates([2.0] * 60, 20), "test_acc1", lr_scales=(0.01, 2.0))
    look(tmp_path / "c.png")
    canvas = drawn[0]
    x, y = line(canvas, 0, "per update").get_data()
    assert len(x) == 60 and x[19] == 1 and x[-1] == 3 and (y == 2).all()
    assert line(canvas, 0, "per epoch").get_xdata().tolist() == [1, 2, 3]
    assert line(canvas, 1, "model").get_ydata().tolist() == [50, 51] and line(canvas, 1, "EMA").get_ydata().tolist() == [60, 59]
    title = canvas.figure.axes[1].get_title("left")
    assert title == "top-1 accuracy, %; best 51.00 in epoch 2; best of the EMA 60.00 in epoch 1"
    assert line(canvas, 2, "smallest").get_ydata()[-1] == pytest.approx(60e-5)
    assert line(canvas, 2, "largest").get_ydata()[-1] == pytest.approx(0.12)


def test_of_equal_scores_the_one_with_the_lower_loss_is_the_best(tmp_path, drawn):
    scores = [(50.0, 0.5), (60.0, 0.4), (60.0, 0.2), (60.0, 0.3)]
    epochs = [{"epoch": i, "test_acc1": score, "test_loss": loss} for i, (score, loss) in enumerate(scores)]
    epochs.append({"epoch": 4})  # was not evaluated
    curves(tmp_path / "a.png", epochs, [], "test_acc1")
    curves(tmp_path / "l.png", epochs, [], "test_loss")
    titles = [canvas.figure.axes[1].get_title("left") for canvas in drawn]
    assert titles == ["top-1 accuracy, %; best 60.00 in epoch 3", "validation loss; best 0.20 in epoch 3"]


def test_curves_of_very_many_updates_keep_spikes_and_gaps_and_the_mean(tmp_path, drawn):
    losses = [float(i % 2) for i in range(300_000)]
    losses[120_000] = 9.0
    losses[180_000:192_000] = [None] * 12_000
    curves(tmp_path / "c.png", [], updates(losses, 10_000), "test_acc1")
    y = line(drawn[0], 0, "per update").get_ydata()
    mean = line(drawn[0], 0, "running mean").get_ydata()
    assert len(y) <= 3000 and np.nanmax(y) == 9 and np.isnan(y).mean() == pytest.approx(0.04, abs=0.003)
    assert len(mean) <= 1000 and np.isnan(mean).any() and np.nanmax(np.abs(mean - 0.5)) < 0.01


@pytest.mark.parametrize(
    ("epochs", "losses"), [([], []), ([], [1.0]), ([{"epoch": 0, "train_loss": None}], [None] * 30)]
)  # fmt: skip
def test_curves_of_next_to_nothing(tmp_path, drawn, epochs, losses):
    curves(tmp_path / "c.png", epochs, updates(losses, 30), "test_miou", lr_scales=(1e-4, 1.0))
    look(tmp_path / "c.png")
    empty = [axes for axes in drawn[0].figure.axes if axes.texts]
    assert drawn[0].figure.axes[1] in empty and empty[0].texts[0].get_text() == "no numbers yet"


def test_a_rate_that_ends_at_zero(tmp_path, drawn):
    records = [{"update": i, "epoch": 0, "loss": 1.0, "lr": 1e-3 * (1 - i / 99)} for i in range(100)]
    curves(tmp_path / "c.png", [], records, "test_acc1", lr_scales=(0.01, 1.0))
    low, high = drawn[0].figure.axes[2].get_ylim()
    assert 1e-3 < high < 2e-3 and low > 1e-9


def test_layers_have_bars_of_their_multiple(tmp_path, drawn):
    import timm

    model = timm.create_model("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16))
    assigner = layer_decay_assigner(model, 0.5)
    groups = get_parameter_groups(model, 0.05, (), assigner.get_layer_id, assigner.get_scale)
    lr_groups(tmp_path / "l.png", group_table(model, groups, assigner.get_layer_id))
    look(tmp_path / "l.png")
    assert [bar.get_width() for bar in drawn[0].figure.axes[0].patches] == [0.5**i for i in range(5, -1, -1)]
    assert {"stages.2.blocks.1", "stages.1.downsample.1 … stages.1.blocks.0", "head", "0.5"} <= set(texts(drawn[0]))


def test_layers_of_a_head_with_a_rate_of_its_own_and_of_hundreds(tmp_path, drawn):
    row = {"weight_decay": 0.0, "tensors": 1, "parameters": 5_000_000}
    rows = [
        {**row, "id": 0, "lr_scale": scale, "first": name, "last": name}
        for scale, name in ((1.0, "backbone.a"), (10.0, "head.b"))
    ]
    lr_groups(tmp_path / "l.png", rows)
    assert [bar.get_width() for bar in drawn[0].figure.axes[0].patches] == [1, 10]
    rows = [{**row, "id": i, "lr_scale": 1.0, "first": f"b.{i}.w", "last": f"b.{i}.w"} for i in range(200)]
    lr_groups(tmp_path / "l.png", rows)
    look(tmp_path / "l.png")
    assert_apart(drawn[1], ["b."])
