"""comparison.html: several runs in one page, with their results, their curves over each other, and what differs.

Standard library only.
"""

import math
import os
import pathlib
import urllib.parse

from utils.cli.errors import InputError
from utils.report import page
from utils.report.doubtful import folds_section
from utils.report.page import COLOURS, cell, chart, escaped, section, table
from utils.report.report import NAME, shown
from utils.report.run_files import read_run
from utils.report.scores import BEST_BY, score_of

TITLE = "Comparison of runs"


def write_comparison(run_folders, path="comparison.html"):
    """Write one page about several runs, in one step; returns its path.

    Raises InputError for a folder that holds no run, and for a page that cannot be written.
    """
    path, runs = pathlib.Path(path), [read_run(folder) for folder in run_folders]
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    parts = [f"<h1>Comparison of {len(runs)} runs</h1>", _results(runs, names, path.parent)]
    parts.append(folds_section(runs, path.parent))
    parts += [_curves(runs, names, key) for key in (*BEST_BY.values(), "train_loss")]
    parts.append(_differences(runs, names))
    _refuse_other_file(path)
    return page.write(path, page.html_page(TITLE, "".join(parts)))


def _refuse_other_file(path):
    """InputError where there is something at `path` that is no earlier comparison, which it would replace."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isfile(path):
        raise InputError(f"--output {path}: no plain file; expected the name of a new page, or of an earlier comparison")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            ours = f"<title>{TITLE}" in file.read(4096)
    except OSError as error:
        raise InputError(f"--output {path} cannot be read ({error.strerror}); expected the name of a new page") from None
    if not ours:
        raise InputError(f"--output {path}: would be replaced, and is no earlier comparison; give another name")


def _results(runs, names, base):
    """The best score of each run, the best first, and a link to its report. base: folder of the page."""
    rows = []
    for run, name in sorted(zip(runs, names, strict=True), key=lambda pair: _rank(pair[0])):
        link = pathlib.PurePath(os.path.relpath(run.folder / NAME, base)).as_posix()
        linked = f'<a href="{urllib.parse.quote(os.fsencode(link))}">{escaped(name)}</a>'
        cells = f"<td>{linked if (run.folder / NAME).is_file() else escaped(name)}</td>"
        score = score_of(run.metric)
        cells += cell(run.title, "v") + cell(score.name)
        for best in (run.best, run.best_ema):
            cells += cell(score.text(best[0]) if best else "", "n") + cell((best[1] if best else "") or "", "n")
        losses = run.series("train_loss")
        cells += cell(f"{losses[-1][1]:.4f}" if losses else "", "n") + cell("finished" if run.finished else "not finished")
        rows.append(cells)
    heads = ["run", "what", "metric", *["best", "in epoch", "EMA", "in epoch", "training loss"], ""]
    head = "".join(f'<th class="{"n" * (3 <= i <= 7)}">{name}</th>' for i, name in enumerate(heads))
    return section("Results", table(rows, head))


def _rank(run):
    """By the score that decides, the best first; a run without one comes last."""
    value = run.best[0] if run.best else math.nan
    return run.metric, math.isnan(value), value if score_of(run.metric).falls else -value


def _curves(runs, names, key):
    """A chart of one score of all runs; a colour for each run, and the average of its weights in a dash of its own."""
    lines = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        style = i % COLOURS + 2 * COLOURS * (i // COLOURS)
        lines.append((name, style, run.series(key)))
        lines.append((f"{name}, EMA", style + COLOURS, run.series(f"{key}_ema")))
    return chart(score_of(key).title, [line for line in lines if line[2]])


def _differences(runs, names):
    """The settings, versions and commits in which the runs differ; a column per run."""
    settings = [run.args | run.settings | run.versions | {"commit": run.commit} for run in runs]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key != "output_dir"]
    rows = []
    for key in keys:
        values = [shown(each[key]) if key in each else "" for each in settings]
        if len(set(values)) > 1:
            rows.append(cell(key) + "".join(cell(value, "v") for value in values))
    head = "<th></th>" + "".join(f"<th>{escaped(name)}</th>" for name in names)
    return section("Settings that differ", table(rows, head) if rows else "<p>None.</p>")
