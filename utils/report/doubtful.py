"""doubtful.csv: labels of validation images that may be wrong, and over folds those of all images.

Standard library only, and Pillow where there are pictures to show.
"""

import base64
import csv
import io
import pathlib

from utils.cli.errors import InputError
from utils.files import replace
from utils.metrics.doubt import doubtful_labels
from utils.report.page import cell, escaped, section, table
from utils.report.run_files import number

NAME, SHOWN = "doubtful.csv", 20
SIDE = 96  # pixels of a picture in the table


def read_predictions(folder):
    """The rows of predictions.csv of recognition as dicts; [] where it cannot be read."""
    try:
        with open(pathlib.Path(folder) / "predictions.csv", encoding="utf-8", errors="replace", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []


def doubtful_section(rows, folder):
    """A table of the labels in `rows` that are doubtful, which doubtful.csv in `folder` has all of; "" where none is."""
    found = doubtful_labels(rows)
    if not found:
        return ""
    write_rows(pathlib.Path(folder) / NAME, [("path", "given", "suggested", "score"), *_lines(found)])
    text = f"{len(found)} of {len(rows)} labels may be wrong: the model, which was not trained on these images, is as sure of "
    text += f"another class as it usually is of that. Look at them; all are in {NAME}."
    body = [
        f"<td>{_picture(line[0])}</td>" + "".join(cell(part, "v" * (i == 0)) for i, part in enumerate(line))
        for line in _lines(found[:SHOWN])
    ]
    head = "".join(f"<th>{name}</th>" for name in ("", "image", "label", "suggested", "more probable by"))
    return section("Doubtful labels", f"<p>{escaped(text)}</p>" + table(body, head))


def folds_section(runs, folder):
    """Mean and spread over the folds of one cross-validation, and the doubtful labels of all images; "" of other runs.

    runs: [RunFiles]. The answers of all folds, each image by the run that was not trained on it, go into out_of_fold.csv.
    """
    folds = {run.args.get("fold"): run for run in runs}
    settings = {(run.args.get("folds"), run.metric, run.args.get("seed")) for run in runs}
    if len(runs) < 2 or None in folds or len(folds) < len(runs) or len(settings) > 1:
        return ""
    planned = next(iter(settings))[0]
    values = [value for run in runs if run.best and (value := number(run.best[0])) is not None]
    if len(values) < 2:
        return ""
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    text = f"Mean {mean:.2f}, standard deviation {spread:.2f} over {len(values)} folds, {min(values):.2f} to {max(values):.2f}."
    if missing := [str(fold) for fold in range(1, ((number(planned) and int(planned)) or 0) + 1) if fold not in folds]:
        text += f" Missing: fold {', '.join(missing)} of {planned}."
    runs = [run for _, run in sorted(folds.items())]
    if waiting := [str(run.args["fold"]) for run in runs if not run.finished]:
        text += f" Not finished: fold {', '.join(waiting)}."
    if differ := [key for key in runs[0].settings if key != "fold" and len({repr(run.args.get(key)) for run in runs}) > 1]:
        text += f" Trained with other settings, which are below: {', '.join(differ)}."
    parts = [read_predictions(run.folder) for run in runs]
    columns = _columns(runs, parts)
    rows = [row for part in parts for row in part]
    if rows:
        named = ([row.get(column) for column in columns] for row in rows)  # a fold may have its classes in another order
        write_rows(pathlib.Path(folder) / "out_of_fold.csv", [columns, *named])
        text += f" The answers to all {len(rows)} images are in out_of_fold.csv."
    return section("Cross-validation", f"<p>{escaped(text)}</p>") + doubtful_section(rows, folder)


def _columns(runs, parts):
    """Names of the columns of all `parts`, rows of predictions.csv of the `runs`. InputError where their classes differ."""
    first, known = None, set()
    for run, part in zip(runs, parts, strict=True):
        classes = {column for column in (part[0] if part else ()) if str(column).startswith("p_")}
        if known and classes and classes != known:
            odd = min(classes ^ known).removeprefix("p_")
            raise InputError(f"{run.folder}: its classes are not those of {first.folder}, such as {odd}; expected folds of the "
                             "same classes: leave it out, or train it with them")  # fmt: skip
        first, known = (first, known) if known else (run, classes)
    return list(dict.fromkeys(column for part in parts for column in (part[0] if part else ()) if column is not None))


def _picture(path):
    """The image file at `path`, small, as HTML; "" where it is not there any more, or is no file of an image."""
    if not pathlib.Path(path).is_file():  # a row of a table; a pipe would block
        return ""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow's decoders raise many kinds for damaged bytes
        return ""
    small.thumbnail((SIDE, SIDE))
    small.save(made := io.BytesIO(), "JPEG")
    data, name = base64.b64encode(made.getvalue()).decode(), escaped(pathlib.Path(path).name)
    return f'<img alt="{name}" src="data:image/jpeg;base64,{data}">'


def write_rows(path, rows):
    """Replace a CSV file in one step. Raises InputError where it cannot be written."""
    try:
        with replace(path) as aside, open(aside, "w", encoding="utf-8", errors="replace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); expected a folder to write in") from None


def _lines(found):
    return [(doubt.image, doubt.given, doubt.suggested, f"{doubt.margin:.4f}") for doubt in found]
