"""The picture of which classes an evaluation takes for which."""

import numpy as np

from utils.pictures.canvas import FAINT, INK, LINE, MARGIN, NOTHING, SMALL, TEXT, TITLE, png, points, printable, short

COUNTED, NAMED, MAPPED = 20, 40, 1000  # classes up to which a map has counts, names, and all of its cells
LISTED = 30  # rows of the list of confusions
TOP = 80  # pixels above the map
LEVEL = 70  # pixels of a cell that has room for its name


def confusion(path, pairs, classes):
    """Draw a map of the true classes (rows) by what they were taken for (columns), coloured by the fraction of the row.

    pairs: per_class.Pairs, of images or of pixels; classes: all names. Up to 20 classes the map has counts,
    up to 40 names, up to 1,000 all cells; of more classes it has the 40 that are confused most often. A map without counts
    has the most frequent confusions beside it. The PNG at `path` is replaced in one step.
    """
    truth, guess, counts = pairs
    totals = np.bincount(truth, counts, len(classes))
    wrong = np.flatnonzero(truth != guess)
    worst = wrong[np.argsort(-counts[wrong], kind="stable")]  # the confusions, the most frequent first
    shown, title = np.arange(len(classes)), "Confusion"
    if len(classes) > MAPPED:
        confused = np.concatenate([np.stack([truth[worst], guess[worst]], 1).ravel(), shown])
        _, first = np.unique(confused, return_index=True)
        shown = confused[np.sort(first)[:NAMED]]
        title = f"Confusion: the {NAMED} of {len(classes):,} classes that are confused most often"
    place = np.full(len(classes), -1)
    place[shown] = np.arange(len(shown))
    seen = (place[truth] >= 0) & (place[guess] >= 0)
    cells = np.zeros((len(shown), len(shown)))
    cells[place[truth[seen]], place[guess[seen]]] = counts[seen]

    names = [classes[i] for i in shown] if len(shown) <= NAMED else []
    counted, listed = len(shown) <= COUNTED, len(classes) > COUNTED
    cell = max(34, min(110, 420 // len(shown))) if counted else 22 if names else max(1, 840 // len(shown))  # pixels
    side, left = cell * len(shown), MARGIN + _room(names)
    width = max(left + side + 90, 600) + 430 * listed
    height = max(TOP + side + (_room(names), 40)[cell >= LEVEL], (TOP + LINE * (LISTED + 3)) * listed)
    with png(path, width, height) as canvas:
        canvas.text(MARGIN, MARGIN, title, size=TITLE, weight="bold")
        absent = "; grey: does not occur" if (totals[shown] == 0).any() else ""
        canvas.text(MARGIN, 48, f"row: true class, column: prediction, colour: share of the row{absent}", color=FAINT)
        _draw_map(canvas, left, cell, cells, totals[shown], counted)
        _name_cells(canvas, left, cell, names, side)
        if listed:
            x = left + side + 90
            canvas.text(x, TOP, "most frequent confusions" if len(worst) else "no confusions", weight="bold")
            for i, pair in enumerate(worst[:LISTED]):
                y, label, count = TOP + LINE * (i + 1.5), truth[pair], counts[pair]
                canvas.text(x, y, classes[label], 150)
                canvas.text(x + 156, y, "→")
                canvas.text(x + 176, y, classes[guess[pair]], 140)
                canvas.text(x + 400, y, f"{short(count)} ({count / totals[label]:.0%})", ha="right", color=FAINT)


def _draw_map(canvas, left, cell, cells, totals, counted):
    """Draw counts (C, C) in squares of `cell` pixels, from white to blue by their fraction of `totals` (C,), and the scale."""
    import matplotlib

    side, large = cell * len(cells), len(cells) > NAMED
    fractions = np.divide(cells, totals[:, None], out=np.full_like(cells, np.nan), where=totals[:, None] > 0)
    axes = canvas.axes(left, TOP, side, side)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=NOTHING)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=NOTHING)
    norm = matplotlib.colors.PowerNorm(0.4 if large else 1.0, 0, 1)  # in a large map small fractions are single pixels
    image = axes.imshow(np.ma.masked_invalid(fractions), colours, norm, interpolation="nearest", aspect="auto")
    for row, column in np.argwhere(cells > 0) if counted else ():
        style = {"color": "white" if fractions[row, column] > 0.55 else INK, "size": points(SMALL)}
        axes.text(column, row, short(cells[row, column]), ha="center", va="center", **style)
    bar, ticks = canvas.axes(left + side + 12, TOP, 12, side), [0, 0.01, 0.1, 0.5, 1] if large else [0, 0.5, 1]
    canvas.figure.colorbar(image, cax=bar, ticks=ticks, format="{x:.0%}").outline.set_visible(False)


def _name_cells(canvas, left, cell, names, side):
    """Write the names of rows and columns; of a map without names, what its rows and columns are."""
    size = min(TEXT, cell - 8)
    for i, name in enumerate(names):
        middle = cell * (i + 0.5)
        canvas.text(left - 8, TOP + middle, name, _room(names) - 10, size, ha="right", va="center")
        if cell >= LEVEL:
            canvas.text(left + middle, TOP + side + 8, name, cell - 6, size, ha="center")
        else:
            canvas.text(left + middle, TOP + side + 8, name, _room(names) - 20, size, ha="center", rotation=90)
    if not names:
        canvas.text(left - 14, TOP + side / 2, "true class", ha="right", va="center", rotation=90)
        canvas.text(left + side / 2, TOP + side + 8, "prediction", ha="center")


def _room(names):
    """Pixels for the longest of the names of rows or columns, up to 160."""
    letters = (sum(8 if c.isascii() else 14 for c in printable(name)) for name in names)
    return min(160, 30 + max(letters, default=10))
