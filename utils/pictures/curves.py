"""Pictures of numbers: loss, score and learning rate over a run, and the learning rate of each layer.

Each function replaces the PNG at `path` in one step.
"""

import re

import numpy as np

from utils.pictures.canvas import BLUE, FAINT, GREEN, MARGIN, ORANGE, RED, SMALL, TITLE, png, short
from utils.report.run_files import number
from utils.report.scores import score_of


def curves(path, epochs, updates, metric, lr_scales=(1.0, 1.0)):
    """Draw the loss of each update and epoch, the score, that of the averaged weights where there is one, and the rate.

    epochs: records of log.txt, each with a count "epoch"; updates: records of updates.txt, each with the counts "update"
    and "epoch"; whatever else they hold is drawn where it is a number, and leaves a gap where it is not. metric: name of
    the score in log.txt, such as test_acc1; lr_scales: smallest and largest multiple of the learning rate among the layers.
    """
    per_epoch = _updates_per_epoch(epochs, updates)
    with png(path, 1100, 940, scale=1.5) as canvas:
        canvas.text(MARGIN, MARGIN, "Training", size=TITLE, weight="bold")
        panels = [canvas.axes(90, 95 + 285 * i, 980, 220) for i in range(3)]
        _loss_panel(panels[0], epochs, updates, per_epoch)
        _score_panel(panels[1], epochs, metric)
        _rate_panel(panels[2], epochs, updates, per_epoch, lr_scales)
        end = max([record["epoch"] + 1 for record in epochs] + [(record["update"] + 1) / per_epoch for record in updates] + [0])
        for panel in panels:
            panel.set_xlim(0, end * 1.01 or 1)
            panel.xaxis.get_major_locator().set_params(integer=end >= 2)
            panel.grid(color="#e6e6e6", linewidth=0.8)
            if not any(np.isfinite(line.get_ydata()).any() for line in panel.lines):
                panel.set(xticks=[], yticks=[])
                panel.text(0.5, 0.5, "no numbers yet", transform=panel.transAxes, ha="center", color=FAINT)
            elif panel.get_legend_handles_labels()[0]:
                panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, borderpad=0)
        panels[2].set_xlabel("epoch" if epochs or per_epoch > 1 else "update")


def lr_groups(path, groups):
    """Draw the multiple of the learning rate of each layer, from the image (top) to the head.

    groups: rows of optim_factory.group_table.
    """
    layers = {}
    for row in groups:
        layers.setdefault((row["id"], row["lr_scale"]), []).append(row)
    step = 22 if len(layers) <= 60 else max(2, 1320 // len(layers))  # pixels
    labelled = range(0, len(layers), -(-14 // step))
    with png(path, 1000, 140 + step * len(layers), scale=1.5) as canvas:
        canvas.text(MARGIN, MARGIN, "Learning rate by layer, as a multiple of the schedule's", size=TITLE, weight="bold")
        for x, name in ((330, "layer"), (905, "multiple"), (980, "parameters")):
            canvas.text(x, 58, name, size=SMALL, ha="right", color=FAINT)
        axes = canvas.axes(340, 80, 490, step * len(layers))
        scales = [scale for _, scale in layers]
        axes.barh(range(len(layers)), scales, height=0.72, color=BLUE)
        axes.set(xlim=(0, 1.02 * max(scales, default=1) or 1), ylim=(len(layers) - 0.5, -0.5), yticks=[])
        axes.spines["left"].set_visible(True)
        for i, ((_, scale), rows) in enumerate(layers.items()):
            if i in labelled:
                y = 80 + step * (i + 0.5)
                canvas.text(330, y, _layer_name(rows), 300, SMALL, ha="right", va="center")
                canvas.text(905, y, f"{scale:.3g}", size=SMALL, ha="right", va="center")
                parameters = short(sum(row["parameters"] for row in rows))
                canvas.text(980, y, parameters, size=SMALL, ha="right", va="center", color=FAINT)


def lr_range(groups):
    """(smallest, largest) multiple of the learning rate in rows of optim_factory.group_table."""
    scales = [row["lr_scale"] for row in groups]
    return min(scales), max(scales)


def _layer_name(rows):
    """The modules at both ends of a layer, each up to the last number in its name: stages.1.blocks.0."""
    first, last = (re.match(r"(?:.*\.\d+(?=\.))|[^.]*", name)[0] for name in (rows[0]["first"], rows[0]["last"]))
    return first if first == last else f"{first} … {last}"


# --- the panels of the curves -----------------------------------------------------------------------------------------


def _loss_panel(axes, epochs, updates, per_epoch):
    loss = _column(updates, "loss")
    x = (_column(updates, "update") + 1) / per_epoch
    axes.plot(*_thinned(x, loss), color=BLUE, linewidth=0.6, alpha=0.45, label="per update")
    if len(loss) > 20:
        axes.plot(*_running_mean(x, loss), color=BLUE, linewidth=1.8, label="running mean")
    per_epoch_losses = [
        _epoch_line(axes, epochs, "train_loss", "per epoch", ORANGE, "o"),
        _epoch_line(axes, epochs, "test_loss", "validation", RED, "s"),
    ]
    usual = loss[np.isfinite(loss)]
    if len(usual) > 20:  # a few updates far off do not flatten the rest
        usual = usual[usual <= np.quantile(usual, 0.998)]
    seen = np.concatenate([usual, *per_epoch_losses])
    if np.isfinite(seen).any():
        low, high = np.nanmin(seen), np.nanmax(seen)
        axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
    axes.set_title("loss", loc="left")


def _score_panel(axes, epochs, metric):
    title = [score_of(metric).title]
    for name, label, colour, mark in ((metric, "model", BLUE, "o"), (metric + "_ema", "EMA", ORANGE, "s")):
        values = _epoch_line(axes, epochs, name, label, colour, mark)
        if np.isfinite(values).any():
            losses = _column(epochs, name.replace(metric, "test_loss"))  # of equal scores the one with the lower is kept
            best = int(np.lexsort((losses, values if score_of(metric).falls else -values))[0])
            title.append(f"best{' of the EMA' * (label == 'EMA')} {values[best]:.2f} in epoch {epochs[best]['epoch'] + 1}")
    axes.set_title("; ".join(title), loc="left")


def _rate_panel(axes, epochs, updates, per_epoch, lr_scales):
    x, rate = (_column(updates, "update") + 1) / per_epoch, _column(updates, "lr")
    if not updates:
        x, rate = _column(epochs, "epoch") + 1, _column(epochs, "train_lr")
    low, high = lr_scales
    lines = [("all layers", high, GREEN)] if low == high else [("smallest", low, GREEN), ("largest", high, BLUE)]
    for label, scale, colour in lines:
        if np.isfinite(rate).any():
            axes.plot(*_thinned(x, rate * scale), color=colour, linewidth=1.8, label=label)
    if high > 10 * low and (rate > 0).any():
        axes.set_yscale("log", nonpositive="mask")
        peak = np.nanmax(rate)  # a rate that ends near 0 is not followed for ever
        axes.set_ylim(max(np.nanmin(rate[rate > 0]), peak / 1000) * low / 1.5, peak * high * 1.5)
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("learning rate", loc="left")


def _epoch_line(axes, epochs, name, label, colour, mark):
    """Draw a number of each epoch at the epoch's end, where any epoch has it; returns (epochs,) float64."""
    values = _column(epochs, name)
    if np.isfinite(values).any():
        known = np.isfinite(values) | np.array([name in record for record in epochs])  # epochs without evaluation: no gap
        ends = (_column(epochs, "epoch") + 1)[known]
        size = 5 if len(values) <= 60 else 0
        axes.plot(ends, values[known], color=colour, marker=mark, markersize=size, linewidth=1.6, label=label)
    return values


def _column(records, name):
    """A number of each record as float64, NaN where it has none."""
    return np.array([number(record.get(name)) for record in records], np.float64)  # None becomes NaN


def _updates_per_epoch(epochs, updates):
    """Read off the first update after the first epoch; 1 while no epoch has ended."""
    first = next((record for record in updates if record["epoch"] > 0 and record["update"] > 0), None)
    if first:
        return first["update"] / first["epoch"]
    return updates[-1]["update"] + 1 if epochs and updates else 1


def _thinned(x, y, bins=1500):
    """x and y, or, of many values, the lowest and the highest in each of `bins` stretches."""
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
