"""Pictures of a run: what they show, that all of it is on the canvas, and any names and sizes."""

import time

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from optim_factory import get_parameter_groups, group_table, layer_decay_assigner
from utils.report import pictures
from utils.sources.palettes import DIGITS

pytestmark = pytest.mark.filterwarnings("error")
NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
HOSTILE = [
    "$\\frac{$", "<script>alert(1)</script>", "two\nlines\t and\x00more", "猫科动物 🐈", "العربية", "हिन्दी",
    "a" * 5000, "\ud800", "", "%s{}\\",
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The pages that were saved; of each it is checked that nothing drawn stands out of the canvas."""
    pages, save = [], pictures.Page.save

    def check_and_save(page, path):
        save(page, path)
        left, low, right, high = page.figure.get_tightbbox(page.renderer).extents * page.figure.dpi  # pixels
        assert left >= 0 and low >= 0 and right <= page.width * page.scale and high <= page.height * page.scale
        pages.append(page)

    monkeypatch.setattr(pictures.Page, "save", check_and_save)
    return pages


def texts(page):
    return [text.get_text() for text in page.figure.texts]


def look(path, least=100, blank=False):
    """The picture's pixels (H, W, 3); it is not blank, and no larger than a screen or two."""
    image = Image.open(path)
    assert image.format == "PNG" and least <= image.width <= 1800 and 50 <= image.height <= 2400
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels != 255).any(-1).mean() > 0.005
    return pixels


def images(count, size=(24, 32)):
    return (torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) - 0.5) / 0.25


def names(count):
    return [f"class number {i}" for i in range(count)]


def assert_apart(page, among):
    """The texts with one of these words in them do not overlap."""
    boxes = [t.get_window_extent(page.renderer) for t in page.figure.texts if any(word in t.get_text() for word in among)]
    assert len(boxes) > 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# --- samples, mistakes, predictions


@pytest.mark.parametrize("count", [1, 5, 40])
def test_samples_show_what_the_model_sees_with_labels(tmp_path, drawn, count):
    batch = images(count)
    pictures.samples(tmp_path / "s.png", batch, torch.arange(count) % 10, names(10), **NORM)
    look(tmp_path / "s.png")
    shown = [axes.images[0].get_array() for axes in drawn[0].figure.axes]
    assert len(shown) == min(count, 32)
    wanted = ((batch[0] * 0.25 + 0.5) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(shown[0] - wanted).max() <= 1
    assert texts(drawn[0])[1:3] == ["class number 0", "class number 1"][:count]
    assert count == 1 or not any("…" in text for text in texts(drawn[0]))


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        ([0.7, 0.3], ["cat 0.70", "+ dog 0.30"]),
        ([0.0, 1.0], ["dog"]),
        ([0.92, 0.04, 0.04], ["cat"]),  # label smoothing alone
        ([0.04, 0.32, 0.64], ["bird 0.64", "+ dog 0.32"]),
    ],
)
def test_mixed_labels_are_named_with_their_weights(tmp_path, drawn, row, lines):
    soft = torch.tensor([row], dtype=torch.bfloat16)
    pictures.samples(tmp_path / "s.png", images(1).bfloat16(), soft, ["cat", "dog", "bird"][: len(row)], **NORM)
    assert texts(drawn[0])[1:] == lines


def test_samples_of_a_segmentation_have_their_masks_beside_them(tmp_path, drawn):
    masks = torch.zeros(3, 24, 32, dtype=torch.int64)
    masks[:, :, :8], masks[:, :, 24:] = 2, -1
    pictures.samples(tmp_path / "s.png", images(3), masks, names(11), **NORM, palette=DIGITS)
    look(tmp_path / "s.png")
    picture, mixed = (axes.images[0].get_array() for axes in drawn[0].figure.axes[:2])
    assert len(drawn[0].figure.axes) == 6
    assert np.abs(mixed[:, :8] - (0.45 * picture[:, :8] + 0.55 * DIGITS[2])).max() <= 1
    assert texts(drawn[0])[1:] == ["class number 0", "class number 2", "no class"]


def test_mistakes_are_the_most_confident_ones(tmp_path, drawn):
    rows = [(i % 10, (i + 1) % 10, i / 40) for i in range(40)]
    pictures.mistakes(tmp_path / "m.png", images(40), rows, names(10), **NORM)
    look(tmp_path / "m.png")
    assert len(drawn[0].figure.axes) == 24
    assert texts(drawn[0])[1:3] == ["true: class number 9", "said: class number 0, 98%"]
    pictures.mistakes(tmp_path / "none.png", images(0), [], names(10), **NORM)
    assert texts(drawn[1]) == ["Most confident mistakes: there are none"]


@pytest.mark.parametrize("size", [(24, 32), (64, 16), (300, 400)])
def test_predictions_in_the_colours_of_their_classes(tmp_path, drawn, size):
    truth = torch.full((8, *size), 5)
    truth[:, 0] = 255  # no class either
    pictures.predictions(tmp_path / "p.png", images(8, size), truth, torch.full_like(truth, 3), names(11), DIGITS, **NORM)
    pixels = look(tmp_path / "p.png")
    assert len(drawn[0].figure.axes) == 18
    for label in (3, 5):
        assert (pixels == DIGITS[label]).all(-1).mean() > 0.05
    assert texts(drawn[0])[-3:] == ["class number 3", "class number 5", "no class"]


def test_a_legend_of_many_classes_names_the_largest(tmp_path, drawn):
    masks = torch.arange(150).repeat(2, 24, 1)
    masks[:, 0] = 149
    palette = np.random.default_rng(0).integers(0, 255, (150, 3)).astype(np.uint8)
    pictures.predictions(tmp_path / "p.png", images(2, (24, 150)), masks, masks, names(150), palette, **NORM)
    assert texts(drawn[0])[-2:] == ["class number 149", "and 110 more"]
    assert_apart(drawn[0], ["class number", "more"])


def test_hostile_names_are_harmless_everywhere(tmp_path, drawn):
    labels, soft = torch.arange(10), torch.eye(10) * 0.6 + torch.eye(10).flip(0) * 0.4
    pictures.samples(tmp_path / "a.png", images(10), labels, HOSTILE, **NORM)
    pictures.samples(tmp_path / "b.png", images(10), soft, HOSTILE, **NORM)
    pictures.mistakes(tmp_path / "c.png", images(10), [(i, 9 - i, 0.5) for i in range(10)], HOSTILE, **NORM)
    masks = torch.arange(10).repeat(2, 24, 1)
    pictures.predictions(tmp_path / "d.png", images(2, (24, 10)), masks, masks, HOSTILE, DIGITS, **NORM)
    pictures.confusion(tmp_path / "e.png", torch.ones(10, 10, dtype=torch.int64), HOSTILE)
    for name in "abcde":
        look(tmp_path / f"{name}.png")
    assert "$\\frac{$" in texts(drawn[0]) and "(no name)" in texts(drawn[0]) and "two lines and\ufffdmore" in texts(drawn[0])
    assert next(text for text in texts(drawn[0]) if text.startswith("aaa")).endswith("a…")
    assert_apart(drawn[1], "0.")


# --- curves and layers


def updates(losses, per_epoch, lr=1e-3):
    return [{"update": i, "epoch": i // per_epoch, "loss": loss, "lr": lr * (i + 1)} for i, loss in enumerate(losses)]


def line(page, panel, label):
    return next(line for line in page.figure.axes[panel].lines if line.get_label() == label)


def test_curves_stand_where_their_epochs_are(tmp_path, drawn):
    epochs = [{"epoch": i, "train_loss": 3.0 - i, "test_acc1": 50.0 + i, "test_acc1_ema": 60.0 - i} for i in range(2)]
    epochs.append({"epoch": 2, "train_loss": 0.5})  # was not evaluated
    pictures.curves(tmp_path / "c.png", epochs, updates([2.0] * 60, 20), "test_acc1", lr_scales=(0.01, 2.0))
    look(tmp_path / "c.png")
    page = drawn[0]
    x, y = line(page, 0, "per update").get_data()
    assert len(x) == 60 and x[19] == 1 and x[-1] == 3 and (y == 2).all()
    assert line(page, 0, "per epoch").get_xdata().tolist() == [1, 2, 3]
    assert line(page, 1, "model").get_ydata().tolist() == [50, 51] and line(page, 1, "EMA").get_ydata().tolist() == [60, 59]
    assert page.figure.axes[1].get_title("left") == "top-1 accuracy, %; best 51.00 in epoch 2; best of the EMA 60.00 in epoch 1"
    assert line(page, 2, "smallest").get_ydata()[-1] == pytest.approx(60e-5)
    assert line(page, 2, "largest").get_ydata()[-1] == pytest.approx(0.12)


def test_curves_of_a_million_updates_keep_spikes_and_gaps_and_the_mean(tmp_path, drawn):
    losses = [float(i % 2) for i in range(1_000_000)]
    losses[400_000] = 9.0
    losses[600_000:640_000] = [None] * 40_000
    records, start = updates(losses, 10_000), time.process_time()
    pictures.curves(tmp_path / "c.png", [], records, "test_acc1")
    assert time.process_time() - start < 10
    y = line(drawn[0], 0, "per update").get_ydata()
    mean = line(drawn[0], 0, "running mean").get_ydata()
    assert len(y) <= 3000 and np.nanmax(y) == 9 and np.isnan(y).mean() == pytest.approx(0.04, abs=0.003)
    assert len(mean) <= 1000 and np.isnan(mean).any() and np.nanmax(np.abs(mean - 0.5)) < 0.01


@pytest.mark.parametrize(
    ("epochs", "losses"),
    [
        ([], []),
        ([], [None] * 5),
        ([], [1.0]),
        ([{"epoch": 0, "train_loss": None}], [None] * 30),
        ([{"epoch": 0, "train_loss": 1.0}], []),
    ],
)
def test_curves_of_next_to_nothing(tmp_path, drawn, epochs, losses):
    pictures.curves(tmp_path / "c.png", epochs, updates(losses, 30), "test_miou", lr_scales=(1e-4, 1.0))
    look(tmp_path / "c.png")
    empty = [axes for axes in drawn[0].figure.axes if axes.texts]
    assert drawn[0].figure.axes[1] in empty and empty[0].texts[0].get_text() == "no numbers yet"


def test_a_rate_that_ends_at_zero(tmp_path, drawn):
    records = [{"update": i, "epoch": 0, "loss": 1.0, "lr": 1e-3 * (1 - i / 99)} for i in range(100)]
    pictures.curves(tmp_path / "c.png", [], records, "test_acc1", lr_scales=(0.01, 1.0))
    low, high = drawn[0].figure.axes[2].get_ylim()
    assert 1e-3 < high < 2e-3 and low > 1e-9


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_layers_have_bars_of_their_multiple(tmp_path, drawn, decay):
    import timm

    model = timm.create_model("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16))
    assigner = layer_decay_assigner(model, decay)
    by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
    table = group_table(model, get_parameter_groups(model, 0.05, (), *by_layer), by_layer[0])
    pictures.lr_groups(tmp_path / "l.png", table)
    look(tmp_path / "l.png")
    widths = [bar.get_width() for bar in drawn[0].figure.axes[0].patches]
    assert widths == ([1.0] if decay == 1 else [0.5**i for i in range(5, -1, -1)])
    if decay < 1:
        assert {"stages.2.blocks.1", "stages.1.downsample.1 … stages.1.blocks.0", "head", "0.5"} <= set(texts(drawn[0]))


def test_layers_of_a_head_with_a_rate_of_its_own_and_of_hundreds(tmp_path, drawn):
    row = {"weight_decay": 0.0, "tensors": 1, "parameters": 5_000_000}
    rows = [
        {**row, "id": 0, "lr_scale": scale, "first": name, "last": name}
        for scale, name in ((1.0, "backbone.a"), (10.0, "head.b"))
    ]
    pictures.lr_groups(tmp_path / "l.png", rows)
    assert [bar.get_width() for bar in drawn[0].figure.axes[0].patches] == [1, 10]
    rows = [{**row, "id": i, "lr_scale": 1.0, "first": f"b.{i}.w", "last": f"b.{i}.w"} for i in range(400)]
    pictures.lr_groups(tmp_path / "l.png", rows)
    look(tmp_path / "l.png")
    assert_apart(drawn[1], ["b."])


# --- confusion


def confused(classes, count=3000):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, count)
    guess = np.where(rng.random(count) < 0.8, truth, (truth + 1) % classes)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, guess), 1)
    return matrix


@pytest.mark.parametrize("classes", [2, 5, 10, 20, 21, 40, 41, 200, 1000])
def test_confusions_of_any_number_of_classes(tmp_path, drawn, classes):
    matrix = confused(classes)
    pictures.confusion(tmp_path / "c.png", matrix, names(classes))
    look(tmp_path / "c.png")
    axes = drawn[0].figure.axes[0]
    shares = axes.images[0].get_array()
    assert shares.shape == (classes, classes) and np.allclose(shares.sum(1).compressed(), 1)
    said = texts(drawn[0])
    assert len(axes.texts) == ((matrix > 0).sum() if classes <= 20 else 0)
    assert sum("class n" in text for text in said) == (
        2 * classes if classes <= 20 else 2 * min(30, classes) + 2 * classes * (classes <= 40)
    )
    assert ("most frequent confusions" in said) == (classes > 20)
    assert_apart(drawn[0], ["class n", "%)"] if classes > 5 else ["class n"])


def test_of_very_many_classes_those_that_are_confused_are_shown(tmp_path, drawn):
    classes = 21_841
    matrix = np.zeros((classes, classes), np.int64)
    matrix[7000, 7000], matrix[7000, 123], matrix[5, 21_840] = 10, 30, 20
    start = time.process_time()
    pictures.confusion(tmp_path / "c.png", matrix, names(classes))
    assert time.process_time() - start < 15
    look(tmp_path / "c.png")
    shares = drawn[0].figure.axes[0].images[0].get_array()
    assert shares.shape == (40, 40) and shares[0, 1] == 0.75 and shares[2, 3] == 1 and shares.mask[1].all()
    assert {"class number 7000", "class number 123", "30 (75%)", "20 (100%)"} <= set(texts(drawn[0]))
    place = torch.tensor([[7000, 7000, 5], [7000, 123, 21_840]])
    sparse = torch.sparse_coo_tensor(place, torch.tensor([10, 30, 20]), (classes, classes), check_invariants=True)
    pictures.confusion(tmp_path / "s.png", sparse, names(classes))
    assert (tmp_path / "s.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_counts_are_short_and_absent_classes_grey(tmp_path, drawn):
    matrix = torch.tensor([[1234, 999_999, 0], [0, 0, 0], [7, 0, 123_456_789]])
    pictures.confusion(tmp_path / "c.png", matrix, ["a", "b", "c"])
    assert [text.get_text() for text in drawn[0].figure.axes[0].texts] == ["1.23k", "1M", "7", "123M"]
    assert any("grey" in text for text in texts(drawn[0]))
    pictures.confusion(tmp_path / "0.png", torch.zeros(3, 3, dtype=torch.int64), ["a", "b", "c"])
    look(tmp_path / "0.png")


# --- files and settings


def test_a_picture_is_replaced_in_one_step_and_no_setting_of_the_user_changes(tmp_path, monkeypatch):
    before = dict(matplotlib.rcParams)
    matrix = torch.eye(3, dtype=torch.int64)
    pictures.confusion(tmp_path / "c.png", matrix, ["a", "b", "c"])
    old = (tmp_path / "c.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 40, "savefig.bbox": "tight"}):
        pictures.confusion(tmp_path / "c.png", matrix, ["a", "b", "c"])
    assert (tmp_path / "c.png").read_bytes() == old and dict(matplotlib.rcParams) == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]

    def fails(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    with pytest.raises(OSError, match="no space"):
        pictures.confusion(tmp_path / "c.png", matrix, ["a", "b", "d"])
    assert (tmp_path / "c.png").read_bytes() == old
