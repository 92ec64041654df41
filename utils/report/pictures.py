"""Pictures of a run, one PNG each: the first batch, curves, layers' rates, confusions, mistakes, masks.

Every function replaces its file in one step. Texts are laid out in pixels and cut to the room they have, so that any class
name is harmless. Colours are Okabe and Ito's, and one blue that deepens with the value, for any kind of colour vision.
"""

import bisect
import contextlib
import os
import pathlib
import re
import unicodedata
import warnings

import numpy as np

from utils.result.predict_segmentation import OPACITY

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
INK, FAINT, NOTHING = "#222222", "#767676", "#dddddd"
TITLE, TEXT, SMALL = 17, 13, 11  # heights of letters in pixels
MARGIN, GAP, LINE, TOP = 20, 10, 18, 80  # pixels
LEVEL = 70  # pixels of a cell that has room for its name
PAIR_ROWS = 30  # of the list of confusions
SHOWN_SAMPLES, SHOWN_MASKS, SHOWN_MISTAKES, SHOWN_PREDICTIONS = 32, 16, 24, 6
WRITTEN, NAMED, MAPPED = 20, 40, 1000  # classes up to which a confusion has counts, names, and all of its cells
METRICS = {"test_acc1": "top-1 accuracy, %", "test_miou": "mean IoU, %"}
OTHER_SCRIPTS = (  # fonts for what DejaVu Sans has no glyphs of, where the machine has them
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans",
    "Noto Sans Devanagari", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip


def samples(path, images, targets, classes, mean, std, palette=None):
    """The first training batch as the model sees it: up to 32 images, or 16 beside their masks.

    images: (B, 3, H, W) float, normalised by mean and std; targets: (B,) int64 labels, (B, C) soft labels, or (B, H, W)
    int64 masks, which need `palette` (C, 3) uint8.
    """
    if targets.ndim == 3:
        pictures, masks = _pixels(images[:SHOWN_MASKS], mean, std), _numbers(targets[:SHOWN_MASKS])
        group, cells = 2, []
        for picture, mask in zip(pictures, masks, strict=True):
            cells += [(picture, ()), (_mixed(picture, mask, palette), ())]
        legend = _occurring(masks, classes, palette)
    else:
        pictures, legend, group = _pixels(images[:SHOWN_SAMPLES], mean, std), (), 1
        label = _soft_label if targets.ndim == 2 else _hard_label
        cells = [
            (picture, label(target, classes))
            for picture, target in zip(pictures, _numbers(targets[:SHOWN_SAMPLES]), strict=True)
        ]
    _grid(path, "First training batch, as the model sees it", cells, columns=8, group=group, legend=legend)


def mistakes(path, images, rows, classes, mean, std):
    """The most confident errors of an evaluation, up to 24, the most confident first.

    images: (B, 3, H, W) float, normalised by mean and std; rows: for each of them (true label, predicted label,
    confidence 0..1).
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i][2])[:SHOWN_MISTAKES]
    cells = []
    for i in order:
        truth, prediction, confidence = rows[i]
        lines = [("true: ", classes[int(truth)], "", INK), ("said: ", classes[int(prediction)], f", {confidence:.0%}", RED)]
        cells.append((_pixels(images[i : i + 1], mean, std)[0], lines))
    _grid(path, "Most confident mistakes" if cells else "Most confident mistakes: there are none", cells, columns=6)


def predictions(path, images, truth, prediction, classes, palette, mean, std):
    """Image, true mask and predicted mask, for up to 6 samples; hatched where a pixel has no class.

    images: (B, 3, H, W) float, normalised by mean and std; truth, prediction: (B, H, W) int64; palette: (C, 3) uint8.
    """
    masks = [_numbers(kind[:SHOWN_PREDICTIONS]) for kind in (truth, prediction)]
    cells = []
    for picture, true, said in zip(_pixels(images[:SHOWN_PREDICTIONS], mean, std), *masks, strict=True):
        parts = ((picture, "image"), (_flat(true, palette), "truth"), (_flat(said, palette), "prediction"))
        cells += [(pixels, [("", name, "", FAINT)]) for pixels, name in parts]
    _grid(path, "Predictions", cells, columns=6, group=3, legend=_occurring(np.stack(masks), classes, palette))


def curves(path, epochs, updates, metric, lr_scales=(1.0, 1.0)):
    """Loss per update and epoch, the metric with that of the EMA where there is one, and the learning rate.

    epochs: records of log.txt; updates: records of updates.txt, any number of them; metric: its name in log.txt, such as
    test_acc1; lr_scales: the smallest and the largest multiplier of the rate. A loss that is None leaves a gap.
    """
    per_epoch = _updates_per_epoch(epochs, updates)
    with _page(path, 1100, 940, scale=1.5) as page:
        page.text(MARGIN, MARGIN, "Training", size=TITLE, weight="bold")
        panels = [page.axes(90, 95 + 285 * i, 980, 220) for i in range(3)]
        _loss_panel(panels[0], epochs, updates, per_epoch)
        _metric_panel(panels[1], epochs, metric)
        _rate_panel(panels[2], epochs, updates, per_epoch, lr_scales)
        end = max(
            [record["epoch"] + 1 for record in epochs] + [(record["update"] + 1) / per_epoch for record in updates[-1:]] + [0]
        )
        for panel in panels:
            panel.set_xlim(0, end * 1.01 or 1)
            panel.xaxis.get_major_locator().set_params(integer=end >= 2)
            panel.grid(color="#e6e6e6", linewidth=0.8)
            if not any(np.isfinite(line.get_ydata()).any() for line in panel.lines):
                panel.set(xticks=[], yticks=[])
                panel.text(0.5, 0.5, "no numbers yet", transform=panel.transAxes, ha="center", color=FAINT)
            elif panel.get_legend_handles_labels()[0]:
                panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, borderpad=0, labelcolor=INK)
        panels[2].set_xlabel("epoch" if epochs or per_epoch > 1 else "update")


def lr_groups(path, groups):
    """The multiplier of the learning rate by layer, from the image (top) to the head. groups: rows of `group_table`."""
    layers = {}
    for row in groups:
        layers.setdefault((row["id"], row["lr_scale"]), []).append(row)
    step = 22 if len(layers) <= 60 else max(2, 1320 // len(layers))  # pixels
    labelled = range(0, len(layers), -(-14 // step))
    with _page(path, 1000, 140 + step * len(layers), scale=1.5) as page:
        page.text(MARGIN, MARGIN, "Learning rate by layer, as a multiple of the schedule's", size=TITLE, weight="bold")
        for x, name in ((330, "layer"), (905, "multiple"), (980, "weights")):
            page.text(x, 58, name, size=SMALL, ha="right", color=FAINT)
        axes = page.axes(340, 80, 490, step * len(layers))
        scales = [scale for _, scale in layers]
        axes.barh(range(len(layers)), scales, height=0.72, color=BLUE)
        axes.set(xlim=(0, 1.02 * max(scales, default=1) or 1), ylim=(len(layers) - 0.5, -0.5), yticks=[])
        axes.spines["left"].set_visible(True)
        for i, ((_, scale), rows) in enumerate(layers.items()):
            if i in labelled:
                y = 80 + step * (i + 0.5)
                page.text(330, y, _layer_name(rows), 300, SMALL, ha="right", va="center")
                page.text(905, y, f"{scale:.3g}", size=SMALL, ha="right", va="center")
                parameters = _short(sum(row["parameters"] for row in rows))
                page.text(980, y, parameters, size=SMALL, ha="right", va="center", color=FAINT)


def confusion(path, matrix, classes):
    """Where evaluation takes one class for another: share of each true class (row) by prediction (column).

    matrix: (C, C) int64, rows truth, dense or a sparse COO tensor. Up to 20 classes with counts, up to 40 with names, up
    to 1,000 a map, and of more the 40 confused most often. Without counts, the most frequent confusions are listed.
    """
    truth, guess, count = _entries(matrix)
    totals = np.bincount(truth, count, len(classes))
    wrong = np.flatnonzero(truth != guess)
    worst = wrong[np.argsort(-count[wrong], kind="stable")]  # the confusions, the most frequent first
    shown, title = np.arange(len(classes)), "Confusion"
    if len(classes) > MAPPED:
        pairs = np.concatenate([np.stack([truth[worst], guess[worst]], 1).ravel(), shown])
        _, first = np.unique(pairs, return_index=True)
        shown = pairs[np.sort(first)[:NAMED]]
        title = f"Confusion: the {NAMED} of {len(classes):,} classes that are confused most often"
    place = np.full(len(classes), -1)
    place[shown] = np.arange(len(shown))
    seen = (place[truth] >= 0) & (place[guess] >= 0)
    cells = np.zeros((len(shown), len(shown)))
    cells[place[truth[seen]], place[guess[seen]]] = count[seen]

    names = [classes[i] for i in shown] if len(shown) <= NAMED else []
    written, listed = len(shown) <= WRITTEN, len(classes) > WRITTEN
    cell = max(34, min(110, 420 // len(shown))) if written else 22 if names else max(1, 840 // len(shown))  # pixels
    side, left = cell * len(shown), MARGIN + _room(names)
    width = max(left + side + 90, 600) + 430 * listed
    height = max(TOP + side + (_room(names), 40)[cell >= LEVEL], (TOP + LINE * (PAIR_ROWS + 3)) * listed)
    with _page(path, width, height) as page:
        page.text(MARGIN, MARGIN, title, size=TITLE, weight="bold")
        absent = "; grey: does not occur" if (totals[shown] == 0).any() else ""
        page.text(MARGIN, 48, f"row: true class, column: prediction, colour: share of the row{absent}", color=FAINT)
        _share_map(page, left, cell, cells, totals[shown], written)
        _name_cells(page, left, cell, names, side)
        if listed:
            x = left + side + 90
            page.text(x, TOP, "most frequent confusions" if len(worst) else "no confusions", weight="bold")
            for i, entry in enumerate(worst[:PAIR_ROWS]):
                y, true, number = TOP + LINE * (i + 1.5), truth[entry], count[entry]
                page.text(x, y, classes[true], 150)
                page.text(x + 156, y, "→")
                page.text(x + 176, y, classes[guess[entry]], 140)
                page.text(x + 400, y, f"{_short(number)} ({number / totals[true]:.0%})", ha="right", color=FAINT)


# --- parts of the curves --------------------------------------------------------------------------------------------


def _loss_panel(axes, epochs, updates, per_epoch):
    loss = _column(updates, "loss")
    x = (_column(updates, "update") + 1) / per_epoch
    axes.plot(*_thinned(x, loss), color=BLUE, linewidth=0.6, alpha=0.45, label="per update")
    if len(loss) > 20:
        axes.plot(*_running_mean(x, loss), color=BLUE, linewidth=1.8, label="running mean")
    ends = [
        _epoch_line(axes, epochs, name, label, colour, mark)
        for name, label, colour, mark in (("train_loss", "per epoch", ORANGE, "o"), ("test_loss", "validation", RED, "s"))
    ]
    usual = loss[np.isfinite(loss)]
    if len(usual) > 20:  # a few updates far off do not flatten the rest
        usual = usual[usual <= np.quantile(usual, 0.998)]
    seen = np.concatenate([usual, *ends])
    if np.isfinite(seen).any():
        low, high = np.nanmin(seen), np.nanmax(seen)
        axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
    axes.set_title("loss", loc="left")


def _metric_panel(axes, epochs, metric):
    found = []
    for name, label, colour, mark in ((metric, "model", BLUE, "o"), (metric + "_ema", "EMA", ORANGE, "s")):
        values = _epoch_line(axes, epochs, name, label, colour, mark)
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            found.append(f"best{' of the EMA' * (label == 'EMA')} {values[best]:.2f} in epoch {epochs[best]['epoch'] + 1}")
    axes.set_title("; ".join([METRICS.get(metric, metric), *found]), loc="left")


def _rate_panel(axes, epochs, updates, per_epoch, lr_scales):
    x, rate = (_column(updates, "update") + 1) / per_epoch, _column(updates, "lr")
    if not updates:
        x, rate = _column(epochs, "epoch") + 1, _column(epochs, "train_lr")
    kinds = (
        {"all layers": lr_scales[1]}
        if lr_scales[0] == lr_scales[1]
        else dict(zip(("smallest", "largest"), lr_scales, strict=True))
    )
    for (label, scale), colour in zip(kinds.items(), (GREEN, BLUE), strict=False):
        if np.isfinite(rate).any():
            axes.plot(*_thinned(x, rate * scale), color=colour, linewidth=1.8, label=label)
    if lr_scales[1] > 10 * lr_scales[0] and (rate > 0).any():
        axes.set_yscale("log", nonpositive="mask")
        peak = np.nanmax(rate)  # a rate that ends near 0 is not followed for ever
        axes.set_ylim(max(np.nanmin(rate[rate > 0]), peak / 1000) * lr_scales[0] / 1.5, peak * lr_scales[1] * 1.5)
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("learning rate", loc="left")


def _epoch_line(axes, epochs, name, label, colour, mark):
    """Draw a number of each epoch, at the end of the epoch, where any has it; returns (epochs,) float64."""
    values = _column(epochs, name)
    if np.isfinite(values).any():
        known = np.isfinite(values) | np.array([name in record for record in epochs])  # epochs without evaluation: no gap
        size = 5 if len(values) <= 60 else 0
        axes.plot(
            (_column(epochs, "epoch") + 1)[known],
            values[known],
            color=colour,
            marker=mark,
            markersize=size,
            linewidth=1.6,
            label=label,
        )
    return values


def _column(records, name):
    """A number of each record as float64, NaN where it is missing or None."""
    return np.array([np.nan if record.get(name) is None else record[name] for record in records], np.float64)


def _updates_per_epoch(epochs, updates):
    """Read off the first update after the first epoch; 1 while none has ended."""
    first = next((record for record in updates if record["epoch"] > 0), None)
    if first:
        return first["update"] / first["epoch"]
    return updates[-1]["update"] + 1 if epochs and updates else 1


def _thinned(x, y, bins=1500):
    """x and y, or of many values the lowest and the highest in each of `bins` stretches."""
    if len(y) <= 2 * bins:
        return x, y
    edges = np.linspace(0, len(y), bins + 1).astype(int)[:-1]
    low, high = np.fmin.reduceat(y, edges), np.fmax.reduceat(y, edges)  # NaN only where all are
    return np.repeat(x[edges], 2), np.stack([low, high], 1).ravel()


def _running_mean(x, y, points=1000):
    """The mean of the finite values in a window of a fiftieth of all, around up to `points` places; NaN where none is."""
    sums = np.concatenate([[0], np.nancumsum(np.where(np.isfinite(y), y, 0))])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(y))])
    middle = np.unique(np.linspace(0, len(y) - 1, points).astype(int))
    half = max(2, len(y) // 100)
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(y))
    with np.errstate(invalid="ignore"):
        return x[middle], (sums[high] - sums[low]) / (counts[high] - counts[low])


# --- parts of the confusion -----------------------------------------------------------------------------------------


def _entries(matrix):
    """(row, column, count) of the cells that are not 0, as arrays."""
    if getattr(matrix, "is_sparse", False):
        matrix = matrix.coalesce().cpu()
        return *matrix.indices().numpy(), matrix.values().numpy()
    matrix = _numbers(matrix)
    rows, columns = np.nonzero(matrix)
    return rows, columns, matrix[rows, columns]


def _share_map(page, left, cell, cells, totals, written):
    """Draw counts (C, C) in squares of `cell` pixels, from white to blue by their share of `totals` (C,), and the scale."""
    import matplotlib

    side, large = cell * len(cells), len(cells) > NAMED
    shares = np.divide(cells, totals[:, None], out=np.full_like(cells, np.nan), where=totals[:, None] > 0)
    axes = page.axes(left, TOP, side, side)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=NOTHING)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=NOTHING)
    norm = matplotlib.colors.PowerNorm(0.4 if large else 1.0, 0, 1)  # small shares are single pixels in a large map
    image = axes.imshow(np.ma.masked_invalid(shares), colours, norm, interpolation="nearest", aspect="auto")
    for row, column in np.argwhere(cells > 0) if written else ():
        style = {"color": "white" if shares[row, column] > 0.55 else INK, "size": page.points(SMALL)}
        axes.text(column, row, _short(cells[row, column]), ha="center", va="center", **style)
    bar, ticks = page.axes(left + side + 12, TOP, 12, side), [0, 0.01, 0.1, 0.5, 1] if large else [0, 0.5, 1]
    page.figure.colorbar(image, cax=bar, ticks=ticks, format="{x:.0%}").outline.set_visible(False)


def _name_cells(page, left, cell, names, side):
    """Write the names of rows and columns; of a map without names, what its rows and columns are."""
    size = min(TEXT, cell - 8)
    for i, name in enumerate(names):
        middle = cell * (i + 0.5)
        page.text(left - 8, TOP + middle, name, _room(names) - 10, size, ha="right", va="center")
        if cell >= LEVEL:
            page.text(left + middle, TOP + side + 8, name, cell - 6, size, ha="center")
        else:
            page.text(left + middle, TOP + side + 8, name, _room(names) - 20, size, ha="center", rotation=90)
    if not names:
        page.text(left - 14, TOP + side / 2, "true class", ha="right", va="center", rotation=90)
        page.text(left + side / 2, TOP + side + 8, "prediction", ha="center")


def _room(names):
    """Pixels for the longest of the names of rows or columns, up to 160."""
    letters = (sum(8 if c.isascii() else 14 for c in printable(name)) for name in names)
    return min(160, 30 + max(letters, default=10))


# --- texts and pixels -----------------------------------------------------------------------------------------------


def printable(name):
    """`name` on one line, without what no font shows, such as control characters and halves of characters."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(name)[:300])
    text = " ".join(text.split()) or "(no name)"
    from_the_right = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"\u200e{text}\u200e" if from_the_right else text  # what stands beside it keeps its side


def _hard_label(label, classes):
    return [("", classes[label] if 0 <= label < len(classes) else "no class", "", INK)]


def _soft_label(weights, classes):
    """The class, or the two that were mixed with their weights; label smoothing alone makes no second one."""
    first, second = (*np.argsort(-weights, kind="stable")[:2], 0)[:2]
    smoothing = weights.min() if len(weights) > 2 else 0.0
    if len(weights) < 2 or weights[second] - smoothing < 0.01:
        return [("", classes[first], "", INK)]
    return [("", classes[first], f" {weights[first]:.2f}", INK), ("+ ", classes[second], f" {weights[second]:.2f}", INK)]


def _layer_name(rows):
    """The modules at both ends of a layer, each up to the last number in its name: stages.1.blocks.0."""
    first, last = (re.match(r"(?:.*\.\d+(?=\.))|[^.]*", name)[0] for name in (rows[0]["first"], rows[0]["last"]))
    return first if first == last else f"{first} … {last}"


def _short(number):
    """Three digits and a unit: 12, 4.56k, 789M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size and number >= 1000:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _numbers(values):
    """A tensor on any device, an array or a list as an array; bfloat16 as float32."""
    if hasattr(values, "detach"):
        values = values.detach().float() if values.is_floating_point() else values.detach()
        return values.cpu().numpy()
    return np.asarray(values)


def _pixels(images, mean, std):
    """(B, 3, H, W) float, normalised -> (B, H, W, 3) uint8."""
    pixels = _numbers(images).transpose(0, 2, 3, 1) * np.float32(std) + np.float32(mean)
    return (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)


def _flat(mask, palette):
    """(H, W) class ids in their colours; white with grey stripes where there is no class. (H, W, 3) uint8."""
    palette = np.asarray(palette, np.uint8)
    colours = palette[mask.clip(0, len(palette) - 1)]
    row, column = np.indices(mask.shape)
    width = max(1, min(mask.shape) // 40)
    stripes = np.where((row + column) // width % 4 == 0, 150, 255).astype(np.uint8)[..., None]
    return np.where(((mask >= 0) & (mask < len(palette)))[..., None], colours, stripes)


def _mixed(picture, mask, palette):
    return ((1 - OPACITY) * picture + OPACITY * _flat(mask, palette)).round().astype(np.uint8)


def _occurring(masks, classes, palette, limit=40):
    """[(name, style of its box)] of the classes in `masks` (any shape), the `limit` largest of them."""
    inside = (masks >= 0) & (masks < len(classes))
    pixels = np.bincount(masks[inside].ravel(), minlength=len(classes))
    present = np.flatnonzero(pixels)
    shown = np.sort(present[np.argsort(-pixels[present], kind="stable")[:limit]])
    legend = [(classes[i], {"facecolor": np.asarray(palette[i]) / 255}) for i in shown]
    if len(present) > limit:
        legend.append((f"and {len(present) - limit} more", {"visible": False}))
    return legend + [("no class", {"facecolor": "white", "hatch": "////"})] * (not inside.all())


# --- the page -------------------------------------------------------------------------------------------------------


def _grid(path, title, cells, columns, group=1, legend=()):
    """Pictures in rows, with room between groups. cells: (pixels (H, W, 3) uint8, lines below), all of one size.

    A line is (before, name, after, colour), see Page.text.
    """
    across = max(1, min(columns, len(cells)))
    apart = (GAP, 3)[group > 1]  # pixels within a group
    between = GAP + (apart + 8) * (group > 1)
    wide = 1160 // max(across, columns // 2) - GAP
    tall = round(wide * cells[0][0].shape[0] / cells[0][0].shape[1]) if cells else 0
    row_height = tall + GAP + LINE * max((len(lines) for _, lines in cells), default=0)
    places = [MARGIN + i * wide + i // group * between + (i - i // group) * apart for i in range(across)]
    width = max(places[-1] + wide, 500) + MARGIN
    legend_columns = max(1, (width - 2 * MARGIN) // 170)
    legend_rows = -(-len(legend) // legend_columns)
    rows = -(-len(cells) // across)
    height = 64 + rows * row_height + (legend_rows * 24 + GAP if legend else 0) + GAP
    with _page(path, width, height) as page:
        page.text(MARGIN, MARGIN, title, width - 2 * MARGIN, TITLE, weight="bold")
        for i, (pixels, lines) in enumerate(cells):
            x, y = places[i % across], 60 + i // across * row_height
            axes = page.axes(x, y, wide, tall)
            axes.axis("off")
            axes.imshow(pixels, aspect="auto")
            for number, (before, name, after, colour) in enumerate(lines):
                page.text(x, y + tall + 3 + LINE * number, name, wide, before=before, after=after, color=colour)
        top = 64 + rows * row_height
        for i, (name, style) in enumerate(legend):
            x, y = MARGIN + i % legend_columns * 170, top + i // legend_columns * 24
            page.box(x, y, 22, 16, edgecolor=FAINT, linewidth=0.8, **style)
            page.text(x + 30, y + 1, name, 130)


@contextlib.contextmanager
def _page(path, width, height, scale=1.0):
    """A Page to draw on, with a style of its own whatever the user's; when the block ends it is the PNG at `path`."""
    import matplotlib.font_manager
    import matplotlib.style

    installed = set(matplotlib.font_manager.get_font_names())
    style = {
        "font.family": ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)],
        "text.parse_math": False,  # a $ in a name is a $
        "font.size": 0.72 * TEXT,
        "axes.titlesize": 0.72 * TEXT,
        "legend.fontsize": 0.72 * TEXT,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "hatch.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.titlepad": 8,
    }
    with warnings.catch_warnings(), matplotlib.style.context(["default", style]):
        warnings.filterwarnings("ignore", message="Glyph")  # a box stands for what no font has
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        page = Page(width, height, scale)
        yield page
        page.save(path)


class Page:
    """A white figure of `width` x `height` pixels, times `scale`, on which places are pixels from the top left corner."""

    def __init__(self, width, height, scale=1.0):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height, self.scale = width, height, scale
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100 * scale, facecolor="white")
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()

    def points(self, pixels):
        """Size of a font whose letters are `pixels` high."""
        return 0.72 * pixels

    def axes(self, x, y, width, height):
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))

    def box(self, x, y, width, height, **style):
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        self.figure.add_artist(Rectangle(corner, width / self.width, height / self.height, **style))

    def text(self, x, y, name, width=None, size=TEXT, before="", after="", ha="left", va="top", **style):
        """Write `before`, `name` and `after` on one line, the name cut with … where they are wider than `width` pixels."""
        if va != "baseline" and not style.get("rotation"):  # by the baseline, so that neighbours stand on one line
            y, va = y + size * {"top": 0.95, "center": 0.36}[va], "baseline"
        place = (x / self.width, 1 - y / self.height)
        text = self._cut(before, printable(name), after, width, size)
        self.figure.text(*place, text, size=self.points(size), ha=ha, va=va, **style)

    def _cut(self, before, name, after, width, size):
        if width is None or self._measure(before + name + after, size) <= width:
            return before + name + after
        kept = bisect.bisect_right(range(len(name)), width, key=lambda n: self._measure(f"{before}{name[:n]}…{after}", size))
        return f"{before}{name[: max(kept - 1, 0)].rstrip()}…{after}"

    def _measure(self, text, size):
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=self.points(size))
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0] / self.scale

    def save(self, path):
        path = pathlib.Path(path)
        aside = path.with_name(f"tmp-{path.name}")
        self.figure.savefig(aside, format="png", metadata={"Software": None})
        os.replace(aside, path)
