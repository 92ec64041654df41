"""report.html: what a run was, what it reached and how to repeat it, in one file that needs nothing else and asks no network.

Standard library only. A run that is not finished, or whose files are damaged, gets a report of what can be read.
"""

import base64
import json
import math
import pathlib
import shlex

from utils.metrics.advice import has_learned, in_words
from utils.report import page
from utils.report.data import data_section
from utils.report.doubtful import doubtful_section, read_predictions
from utils.report.evaluation import class_key, read_classes, read_evaluation, sure_text
from utils.report.page import bar, cell, escaped, section, table
from utils.report.run_files import is_count, number, of_type, read_json, read_run, read_text
from utils.report.scores import is_better, is_told, score_of
from utils.report.snippets import recognition_code, segmentation_code, several_labels_code

NAME = "report.html"
COUNTS = {
    "train_images": "training images", "val_images": "validation images", "classes": "classes", "n_parameters": "parameters",
}  # fmt: skip
PICTURES = {
    "samples.png": "The first training batch, augmented and normalised back: what the model was given to learn from.",
    "curves.png": "Loss, score and learning rate over the run.",
    "lr_groups.png": "How fast each layer learned, as a multiple of the schedule's rate.",
    "confusion.png": "Which classes are taken for which, on the validation data, by the weights of the score above.",
    "mistakes.png": "Validation images on which these weights are surest and wrong: look here for wrong labels first. "
    "What glows spoke for the wrong class.",
    "reliability.png": "How often these weights are right when they are so sure, on the validation data.",
    "predictions.png": "Validation images, evenly spread over all of them, their masks, and what the model makes of them.",
}
CLASS_COLUMNS = {
    "iou": "IoU", "ap": "AP", "dice": "Dice", "precision": "precision", "recall": "recall", "f1": "F1", "count": "count",
    "predicted": "predicted", "threshold": "threshold",
}  # fmt: skip
COUNTED = {"count": ",.0f", "predicted": ",.0f", "threshold": ".3f"}  # columns that are no per cent, and how they are written
AVERAGE_PRECISION = (
    " AP, average precision: the mean of the precision at each image that has the label, from the most probable down; that of "
    "chance is the label's share of the images. A label is said from its threshold on, at which its F1 was highest."
)
WARNINGS = 200  # lines of warnings.txt that are shown
BARS = 1000  # classes up to which each has a bar: of more, the page would be slow


def write_report(run_folder):
    """Write `run_folder`/report.html in one step; returns its path.

    Raises InputError for a folder that holds no run, or that cannot be written.
    """
    run = read_run(run_folder)
    sections = (_heading, _result, _words, _pictures, _classes, _doubtful, _data, _timing, _warnings, _use, _repeat, _settings)
    return page.write(run.folder / NAME, page.html_page(run.title, "".join(part(run) for part in sections)))


def _heading(run):
    script = pathlib.Path(run.command[0]).name if run.command else "a run"
    return f'<h1>{escaped(run.title)}</h1><p class="faint">{escaped(script)} in {escaped(run.folder)}</p>\n'


def _result(run):
    """The score of the weights that the page is about in large letters, and what else there is to know at first sight."""
    last, planned = run.epochs[-1] if run.epochs else {}, number(run.args.get("epochs"))
    facts, score, evaluation = {}, score_of(run.metric), read_evaluation(run.folder)
    big, what, sure = "none", "not evaluated yet", ""
    if evaluation:
        metric, scores = evaluation["metric"], evaluation["scores"]
        score, sure = score_of(f"test_{metric}"), sure_text(metric, evaluation)
        big, what = score.text(scores[metric]), f"{score.name} of {_whose(evaluation)}"
        classes = len(read_classes(run.folder)) or math.inf
        for name, value in scores.items():
            if name != metric and isinstance(value, float) and is_told(name, classes):
                known = score_of(f"test_{name}")
                facts[known.name] = known.text(value)
    elif run.best:
        what, big = f"best {score.name}" + _in_epoch(run.best), score.text(run.best[0])
    if run.epochs:
        done = f"{last['epoch'] + 1}" + (f" of {planned:g}" if planned and not run.finished else "")
        facts |= {"status": "finished" if run.finished else "not finished", "epochs": done}
        for suffix, name in (("", "best of the weights"), ("_ema", "best of the EMA")):
            best = run.best_ema if suffix else run.best
            if best and (run.best_ema or not evaluation):
                facts[name + _in_epoch(best)] = score_of(run.metric).text(best[0])
        for key in (run.metric, "train_loss"):
            if (value := number(last.get(key))) is not None:
                facts[f"{score_of(key).name}, last epoch"] = score_of(key).text(value)
    for key, name in COUNTS.items():
        if (value := number((run.settings | last).get(key))) is not None:
            facts[name] = f"{value:,.0f}"
    if terms := _start_license(run):
        facts["licence of the start weights"] = terms
    rows = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    sure = f'<div class="faint small">{escaped(sure)}</div>' if sure else ""
    first = f'<div><div class="big">{escaped(big)}</div><div class="faint">{escaped(what)}</div>{sure}</div>'
    return f'<section class="result">{first}<dl class="facts">{rows}</dl></section>\n'


def _words(run):
    """What the numbers say, in sentences."""
    lines = in_words(run.epochs, read_classes(run.folder), read_evaluation(run.folder), run.args, run.segments)
    return section("In words", "".join(f"<p>{escaped(line)}</p>" for line in lines))


def _whose(evaluation):
    """Which weights an evaluation is of, in words."""
    epoch = f", epoch {evaluation['epoch']}" if is_count(evaluation.get("epoch")) else ""
    return f"{evaluation.get('weights', 'the weights')}{'/' * ('epoch' in evaluation)}{epoch}"


def _data(run):
    return data_section(run.folder)


def _start_license(run):
    """The licence of what the run started from; "" from scratch."""
    if not any(run.args.get(name) for name in ("finetune", "pretrained")):
        return ""
    configs = (read_json(run.folder / name / "config.json", dict) for name in ("best", "last"))
    return next((of_type(config["start_license"], str) for config in configs if config.get("start_license")), "unknown")


def _in_epoch(best):
    return f", in epoch {best[1]}" if best[1] else ""


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
    """The scores of each class, from classes.json; of a segmentation without it, the IoU of its best epoch."""
    classes = read_classes(run.folder)
    if not classes and run.segments and run.best:
        best = next((epoch for epoch in run.epochs if epoch["epoch"] + 1 == run.best[1]), {})
        names = of_type(read_json(run.folder / "best" / "config.json", dict).get("classes"), list)
        classes = [{"name": name, "iou": iou} for name, iou in zip(names, of_type(best.get("test_iou"), list), strict=False)]
    if not classes:
        return ""
    first, title = class_key(classes)
    present = [(key, name) for key, name in CLASS_COLUMNS.items() if key != first and any(key in row for row in classes)]
    unit = " of pixels" if run.segments else " of images"
    rows = []
    for row in classes:
        score = number(row.get(first, row.get("accuracy")))
        cells = cell(row.get("name", "")) + _percent(score)
        cells += f"<td>{bar((score or 0) / 100) if len(classes) <= BARS else ''}</td>"
        for key, _ in present:
            value = number(row.get(key))
            text = "" if value is None else f"{value:{COUNTED.get(key, '')}}"
            counted = f'<td class="n" data-v="{_plain(value)}">{text}</td>'
            cells += counted if key in COUNTED else _percent(value)
        taken, share = row.get("taken_for"), number(row.get("taken_for_share"))
        if first != "ap":
            cells += cell(f"{taken} ({share:.0f} %)" if taken and share is not None else "")
        rows.append(cells)
    heads = [("class", ""), (title, "n"), *((name, "n") for _, name in present)]
    heads += [("most often taken for", "")] * (first != "ap")
    heads = [f'<th class="{kind}"><button aria-label="sort by {name}">{name}</button></th>' for name, kind in heads]
    head = "".join([*heads[:2], "<th></th>", *heads[2:]])
    about = (
        f"Counts are{unit}. Precision: of what is taken for a class, the share that is of it. Recall: of what is of a class, "
    )
    about += "the share that is found." + AVERAGE_PRECISION * (first == "ap")
    about = f'<p class="small faint">{about}</p>'
    return section("Classes", about + table(rows, head, sortable=True))


def _percent(value):
    return f'<td class="n" data-v="{_plain(value)}">{"none" if value is None else f"{value:.2f} %"}</td>'


def _doubtful(run):
    """Labels of the validation images that may be wrong."""
    if run.segments or run.several or not has_learned(read_classes(run.folder), read_evaluation(run.folder)):
        return ""
    return doubtful_section(read_predictions(run.folder), run.folder)


def _timing(run):
    """Seconds per update by part, the slowest first."""
    found = {name: number(value) for name, value in read_json(run.folder / "timing.json", dict).items()}
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
    lines = [line for line in read_text(run.folder / "warnings.txt").splitlines() if line.strip()]
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines[:WARNINGS])
    more = f'<p class="faint">and {len(lines) - WARNINGS} more in warnings.txt</p>' if len(lines) > WARNINGS else ""
    return section("Warnings", f'<ul class="small">{items}</ul>{more}' if lines else "")


def _use(run):
    """Code that opens the weights that the page is about."""
    ema = run.best_ema and (not run.best or is_better(run.metric.removeprefix("test_"), run.best_ema[0], run.best[0]))
    own = of_type(read_evaluation(run.folder).get("weights"), str)
    names = (*[own] * bool(own), *["best_ema"] * bool(ema), "best", "last")
    name = next((name for name in names if (run.folder / name / "model.safetensors").is_file()), None)
    if not name:
        return ""
    folder, config = str(run.folder / name), read_json(run.folder / name / "config.json", dict)
    if run.segments:
        words = ["python", "train_segmentation.py", "--predict", "PICTURES", "--output_dir", "OUT", "--finetune", folder]
        predict = f"<p>Masks and overlays of a folder of pictures:</p><pre>{escaped(shlex.join(words))}</pre>"
        return section("Use the weights", f"<pre>{escaped(segmentation_code(folder, config=config))}</pre>{predict}")
    code = several_labels_code if run.several else recognition_code
    return section("Use the weights", f"<pre>{escaped(code('local-dir:' + folder, config))}</pre>")


def _repeat(run):
    if not run.command:
        return ""
    total, batch, update_freq = (
        number(value) for value in (run.settings.get("total_batch"), run.args.get("batch_size"), run.args.get("update_freq"))
    )
    notes = []
    if total and batch and update_freq:
        notes.append(f"processes x images x update_freq: {total / batch / update_freq:g} x {batch:g} x {update_freq:g}")
    if any(word.startswith(("--output_dir", "--output-dir")) for word in run.command):
        notes.append("into another --output_dir: a finished run is not overwritten")
    if run.args.get("minutes"):
        notes.append(f"--minutes measures anew; what it found here is --epochs {run.args.get('epochs')} "
                     f"--warmup_epochs {run.args.get('warmup_epochs')}")  # fmt: skip
    if run.commit:
        notes.append(f"commit {run.commit.rstrip('+')}" + " and changes that are in no commit" * run.commit.endswith("+"))
    if run.versions:
        notes.append(", ".join(f"{name} {version}" for name, version in run.versions.items()))
    command = escaped(shlex.join(["accelerate", "launch", *run.command]))
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return section("Repeat the run", f'<pre>{command}</pre><ul class="small">{items}</ul>')


def _settings(run):
    settings = run.args | run.settings
    rows = [cell(key) + cell(shown(value), "v") for key, value in settings.items()]
    return f"<details><summary>All {len(settings)} settings</summary>{table(rows)}</details>" if settings else ""


def shown(value):
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value):
    return "" if value is None else f"{value:.10g}"
