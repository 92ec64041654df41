"""report.html: what a run was, what it reached and how to repeat it, in one file that needs nothing else and asks no network.

    python -m utils.report RUN                 # writes RUN/report.html anew
    python -m utils.report RUN RUN RUN         # and comparison.html, with their curves over each other

Standard library only. A run that is not finished, or whose files are cut short, gets a report of what is there.
"""

import base64
import json
import math
import os
import pathlib
import shlex
import types
import urllib.parse

from utils.cli.arguments import Parser
from utils.cli.errors import InputError
from utils.report import page as report_page
from utils.report.page import COLOURS, bar, cell, chart, escaped, section, table

NAME = "report.html"
METRICS = {"test_acc1": "top-1 accuracy", "test_miou": "mean IoU"}
PER_CENT = {"test_acc5": "top-5 accuracy", "test_pixacc": "pixel accuracy", "test_macc": "mean accuracy"}
LOSSES = {"test_loss": "validation loss", "train_loss": "training loss"}
COUNTS = {
    "train_images": "training images", "val_images": "validation images", "classes": "classes", "n_parameters": "parameters",
}  # fmt: skip
PICTURES = {
    "samples.png": "The first training batch, augmented and normalised back: what the model was given to learn from.",
    "curves.png": "Loss, score and learning rate over the run.",
    "lr_groups.png": "How fast each layer learned, as a multiple of the schedule's rate.",
    "confusion.png": "Which classes are taken for which, on the validation data.",
    "mistakes.png": "Validation images on which the model was surest and wrong: look here for wrong labels first.",
    "predictions.png": "Validation images, their masks, and what the model makes of them.",
}
WARNINGS = 200  # lines of warnings.txt that are shown
BARS = 1000  # classes up to which each has a bar: of more, the page would be slow


def write_report(run_folder):
    """Write `run_folder`/report.html, in one step; returns its path. Raises InputError for a folder that holds no run."""
    run = read_run(run_folder)
    parts = [_heading(run), _result(run), _pictures(run), _classes(run), _timing(run), _warnings(run), _use(run), _repeat(run)]
    parts.append(_settings(run))
    return report_page.write(run.folder / NAME, report_page.page(run.title, "".join(parts)))


def write_comparison(run_folders, path="comparison.html"):
    """Write one page about several runs: results, curves over each other, settings that differ. Returns its path."""
    path, runs = pathlib.Path(path), [read_run(folder) for folder in run_folders]
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    parts = [f"<h1>Comparison of {len(runs)} runs</h1>", _results(runs, names, path.parent)]
    for key, name in {**{key: f"{name}, %" for key, name in METRICS.items()}, "train_loss": "training loss"}.items():
        lines = []
        for i, (run, label) in enumerate(zip(runs, names, strict=True)):
            look = i % COLOURS + 2 * COLOURS * (i // COLOURS)  # one colour a run, its average in a dash of its own
            lines.append((label, look, _series(run, key)))
            lines.append((f"{label}, EMA", look + COLOURS, _series(run, f"{key}_ema")))
        parts.append(chart(name, [line for line in lines if line[2]]))
    parts.append(_differences(runs, names))
    return report_page.write(path, report_page.page("Comparison of runs", "".join(parts)))


# --- reading a run ----------------------------------------------------------------------------------------------------


def read_run(folder):
    """What is in the folder of a run, as far as it can be read. Raises InputError where there is no run."""
    folder = pathlib.Path(folder)
    if not ((folder / "args.json").is_file() or (folder / "log.txt").is_file()):
        found = "found neither args.json nor log.txt" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {found}; expected the --output_dir of a run")
    record = _json(folder / "args.json", dict)
    run = types.SimpleNamespace(folder=folder)
    run.args, run.settings = (_of(record.get(key), dict) for key in ("args", "settings"))
    run.command = [str(word) for word in _of(record.get("command"), list)]
    run.commit, run.versions = _of(record.get("commit"), str), _of(record.get("versions"), dict)
    run.epochs = _records(folder / "log.txt")
    run.finished = (folder / "finished.json").is_file()
    run.segments = "backbone" in run.args or any("test_miou" in epoch for epoch in run.epochs)
    run.metric = "test_miou" if run.segments else "test_acc1"
    ends = _json(folder / "finished.json", dict)
    run.best, run.best_ema = (_best(run.epochs, key, ends) for key in (run.metric, f"{run.metric}_ema"))
    run.data = run.args.get("dataset") or run.args.get("data_path") or run.args.get("data_set")
    run.data = run.data or f"built-in {'scenes' if run.segments else 'digits'}" * bool(run.args)
    model = " on ".join(str(run.args[key]) for key in ("model", "backbone") if run.args.get(key))
    run.title = ", ".join(str(part) for part in (model, run.data) if part) or folder.resolve().name
    return run


def _best(epochs, key, ends):
    """(value, epoch from 1 or None) of the highest of a metric, or None. ends: of finished.json, for a log that is gone."""
    values = [(value, epoch["epoch"] + 1) for epoch in epochs if (value := _number(epoch.get(key))) is not None]
    if values:
        return max(values, key=lambda pair: pair[0])
    return None if _number(ends.get(key)) is None else (_number(ends[key]), None)


def _records(path):
    """The lines of log.txt that are whole and of an epoch."""
    found = (_parsed(line, dict) for line in _text(path).splitlines())
    return [record for record in found if isinstance(record.get("epoch"), int) and 0 <= record["epoch"] < 10**9]


def _json(path, kind):
    return _parsed(_text(path), kind)


def _parsed(text, kind):
    try:
        return _of(json.loads(text), kind)
    except (ValueError, RecursionError):
        return kind()


def _of(value, kind):
    return value if isinstance(value, kind) else kind()


def _text(path):
    """What a text file holds; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(value):
    """A finite int or float as float, else None."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
    except OverflowError:
        return None


def _series(run, key):
    return [(epoch["epoch"] + 1, _number(epoch[key])) for epoch in run.epochs if _number(epoch.get(key)) is not None]


# --- sections of a report ---------------------------------------------------------------------------------------------


def _heading(run):
    script = pathlib.Path(run.command[0]).name if run.command else "a run"
    return f'<h1>{escaped(run.title)}</h1><p class="faint">{escaped(script)} in {escaped(run.folder)}</p>\n'


def _result(run):
    """The best score in large letters, and what else there is to know at first sight."""
    last, planned = run.epochs[-1] if run.epochs else {}, _number(run.args.get("epochs"))
    done = f"{last['epoch'] + 1 if last else 0}" + (f" of {planned:g}" if planned and not run.finished else "")
    facts = {"status": "finished" if run.finished else "not finished", "epochs": done}
    if run.best_ema:
        facts["best of the EMA" + (f", in epoch {run.best_ema[1]}" if run.best_ema[1] else "")] = f"{run.best_ema[0]:.2f} %"
    for key, name in {run.metric: METRICS[run.metric], **PER_CENT}.items():
        if (value := _number(last.get(key))) is not None:
            facts[f"{name}, last epoch"] = f"{value:.2f} %"
    for key, name in LOSSES.items():
        if (value := _number(last.get(key))) is not None:
            facts[f"{name}, last epoch"] = f"{value:.4f}"
    for key, name in COUNTS.items():
        if (value := _number((run.settings | last).get(key))) is not None:
            facts[name] = f"{value:,.0f}"
    big, what = "none", "not evaluated yet"
    if run.best:
        what = f"best {METRICS[run.metric]}" + (f", in epoch {run.best[1]}" if run.best[1] else "")
        big = f"{run.best[0]:.2f} %"
    rows = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    score = f'<div><div class="big">{big}</div><div class="faint">{what}</div></div>'
    return f'<section class="result">{score}<dl class="facts">{rows}</dl></section>\n'


def _pictures(run):
    figures = []
    for name, caption in PICTURES.items():
        if png := _png(run.folder / name):
            width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            image = f'<img src="{source}" width="{width}" height="{height}" alt="{escaped(caption)}">'
            box = f'<label><input type="checkbox" aria-label="full size"><div class="box">{image}</div></label>'
            figures.append(f"<figure>{box}<figcaption>{escaped(caption)}</figcaption></figure>\n")
    return section("Pictures", "".join(figures))


def _png(path):
    """The bytes of a whole PNG, or b""."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and b"IEND" in data[-12:] else b""


def _classes(run):
    """A table of classes.json; of a segmentation without it, the IoU of its best epoch."""
    classes = [_of(row, dict) for row in _json(run.folder / "classes.json", list)]
    if not classes and run.segments and run.best:
        best = next((epoch for epoch in run.epochs if epoch["epoch"] + 1 == run.best[1]), {})
        names = _of(_json(run.folder / "best" / "config.json", dict).get("classes"), list)
        classes = [{"name": name, "iou": iou} for name, iou in zip(names, _of(best.get("test_iou"), list), strict=False)]
    if not classes:
        return ""
    key, title = ("iou", "IoU") if any("iou" in row for row in classes) else ("accuracy", "accuracy")
    counted = any("count" in row for row in classes)
    rows = []
    for row in classes:
        score, count = _number(row.get(key)), _number(row.get("count"))
        shown = "none" if score is None else f"{score:.2f} %"
        cells = cell(row.get("name", "")) + f'<td class="n" data-v="{_plain(score)}">{shown}</td>'
        cells += f"<td>{bar((score or 0) / 100) if len(classes) <= BARS else ''}</td>"
        cells += f'<td class="n" data-v="{_plain(count)}">{"" if count is None else f"{count:,.0f}"}</td>' * counted
        rows.append(cells)
    heads = [("class", ""), (title, "n")] + [("count", "n")] * counted
    heads = [f'<th class="{kind}"><button aria-label="sort by {name}">{name}</button></th>' for name, kind in heads]
    head = "".join([*heads[:2], "<th></th>", *heads[2:]])
    return section("Classes", table(rows, head, sortable=True))


def _timing(run):
    """Seconds per update by part, the slowest first."""
    found = {name: _number(value) for name, value in _json(run.folder / "timing.json", dict).items()}
    parts = sorted(((name, seconds) for name, seconds in found.items() if seconds and seconds > 0), key=lambda part: -part[1])
    if not parts:
        return ""
    total, (slowest, longest) = sum(seconds for _, seconds in parts), parts[0]
    advice = " The device waits for images: try more --num_workers." if slowest == "data" else ""
    text = f"<p><b>{escaped(slowest)}</b>: {longest / total:.0%} of an update, {longest:.3g} s of {total:.3g} s.{advice}</p>"
    rows = [
        cell(name) + cell(f"{seconds:.4f} s", "n") + cell(f"{seconds / total:.0%}", "n") + f"<td>{bar(seconds / total)}</td>"
        for name, seconds in parts
    ]
    return section("Slowest part of an update", text + table(rows))


def _warnings(run):
    lines = [line for line in _text(run.folder / "warnings.txt").splitlines() if line.strip()]
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines[:WARNINGS])
    more = f'<p class="faint">and {len(lines) - WARNINGS} more in warnings.txt</p>' if len(lines) > WARNINGS else ""
    return section("Warnings", f'<ul class="small">{items}</ul>{more}' if lines else "")


def _use(run):
    """Code that opens the weights: those of the average where it scored higher."""
    ema = run.best_ema and (not run.best or run.best_ema[0] > run.best[0])
    names = (*["best_ema"] * bool(ema), "best", "last")
    name = next((name for name in names if (run.folder / name / "model.safetensors").is_file()), None)
    if not name:
        return ""
    folder = str(run.folder / name)
    if run.segments:
        code = f"from utils.model.segmentation_weights import open_network\n\nnetwork, config = open_network({folder!r})\n"
        words = ["python", "train_segmentation.py", "--predict", "PICTURES", "--output_dir", "OUT", "--finetune", folder]
        predict = f"<p>Masks and overlays of a folder of pictures:</p><pre>{escaped(shlex.join(words))}</pre>"
        return section("Use the weights", f"<pre>{escaped(code)}</pre>{predict}")
    code = f"""import timm
import torch
from PIL import Image

model = timm.create_model({"local-dir:" + folder!r}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0)  # (1, 3, H, W)
with torch.no_grad():
    confidence, label = model(image).softmax(1).max(1)
print(model.pretrained_cfg["label_names"][label], confidence.item())
"""
    return section("Use the weights", f"<pre>{escaped(code)}</pre>")


def _repeat(run):
    if not run.command:
        return ""
    total, batch, update_freq = (
        _number(value) for value in (run.settings.get("total_batch"), run.args.get("batch_size"), run.args.get("update_freq"))
    )
    notes = []
    if total and batch and update_freq:
        notes.append(f"processes x images x update_freq: {total / batch / update_freq:g} x {batch:g} x {update_freq:g}")
    if any(word.startswith(("--output_dir", "--output-dir")) for word in run.command):
        notes.append("into another --output_dir: a finished run is not overwritten")
    if run.commit:
        notes.append(f"commit {run.commit.rstrip('+')}" + " and changes that are in no commit" * run.commit.endswith("+"))
    if run.versions:
        notes.append(", ".join(f"{name} {version}" for name, version in run.versions.items()))
    command = escaped(shlex.join(["accelerate", "launch", *run.command]))
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return section("Repeat the run", f'<pre>{command}</pre><ul class="small">{items}</ul>')


def _settings(run):
    settings = run.args | run.settings
    rows = [cell(key) + cell(_shown(value), "v") for key, value in settings.items()]
    return f"<details><summary>All {len(settings)} settings</summary>{table(rows)}</details>" if settings else ""


# --- sections of a comparison -----------------------------------------------------------------------------------------


def _results(runs, names, base):
    """The best score of each run, the highest first, and a link to its report. base: folder of the page."""
    rows = []
    for run, name in sorted(zip(runs, names, strict=True), key=lambda pair: (pair[0].metric, -(pair[0].best or (-1,))[0])):
        link = pathlib.PurePath(os.path.relpath(run.folder / NAME, base)).as_posix()
        linked = f'<a href="{urllib.parse.quote(os.fsencode(link))}">{escaped(name)}</a>'
        cells = f"<td>{linked if (run.folder / NAME).is_file() else escaped(name)}</td>"
        cells += cell(run.title, "v") + cell(METRICS[run.metric])
        for best in (run.best, run.best_ema):
            cells += cell(f"{best[0]:.2f} %" if best else "", "n") + cell((best[1] if best else "") or "", "n")
        losses = _series(run, "train_loss")
        cells += cell(f"{losses[-1][1]:.4f}" if losses else "", "n") + cell("finished" if run.finished else "not finished")
        rows.append(cells)
    heads = ["run", "what", "metric", *["best", "in epoch", "EMA", "in epoch", "training loss"], ""]
    head = "".join(f'<th class="{"n" * (3 <= i <= 7)}">{name}</th>' for i, name in enumerate(heads))
    return section("Results", table(rows, head))


def _differences(runs, names):
    """The settings, versions and commits in which the runs differ; a column per run."""
    settings = [run.args | run.settings | run.versions | {"commit": run.commit} for run in runs]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key != "output_dir"]
    rows = []
    for key in keys:
        values = [_shown(each[key]) if key in each else "" for each in settings]
        if len(set(values)) > 1:
            rows.append(cell(key) + "".join(cell(value, "v") for value in values))
    head = "<th></th>" + "".join(f"<th>{escaped(name)}</th>" for name in names)
    return section("Settings that differ", table(rows, head) if rows else "<p>None.</p>")


def _plain(value):
    return "" if value is None else f"{value:.10g}"


def _shown(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main(args):
    for folder in args.runs:
        print(write_report(folder))
    if len(args.runs) > 1:
        print(write_comparison(args.runs, args.output or "comparison.html"))


def parse_args(argv=None):
    parser = Parser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--output_dir of a run")
    parser.add_argument("--output", metavar="FILE", help="of several runs: the comparison; none: comparison.html")
    args = parser.parse_args(argv)
    if args.output and len(args.runs) == 1:
        parser.error("--output names the comparison of several runs; the report of one run is RUN/report.html")
    return args
