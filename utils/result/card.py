"""README.md beside a run's weights: the model card as the Hugging Face Hub shows it. It holds what is known, no more."""

import os
import pathlib
import re
import shlex
import urllib.parse
from typing import NamedTuple

from utils.cli.errors import InputError
from utils.files import write_text
from utils.report.run_files import number, read_run
from utils.report.scores import BEST_BY, SCORES, scores_of
from utils.report.snippets import recognition_code, segmentation_code, several_labels_code

RECIPE = (  # settings worth a row, in this order, where the run has them
    "epochs max_updates total_batch opt lr min_lr sched warmup_epochs weight_decay layer_decay head_lr_scale clip_grad "
    "drop_path dropout smoothing loss transforms scale aa hflip color_jitter reprob mixup cutmix aux ohem base_size "
    "model_ema model_ema_decay eval_mode eval_scales eval_flip tta_flip seed"
).split()
TELLS_LITTLE = ("train", "val", "best", "best_ema", "last", "last_ema")  # names of folders that need the one above
SHOWN_CLASSES = 20


class About(NamedTuple):
    """What a card tells of a run besides its scores."""

    config: dict  # as in config.json beside the weights
    settings: dict  # what decides the result, with train_images and val_images
    title: str  # of the data, in words
    weights: str  # what the run started from, in words
    command: list  # words of the command line, script first
    commit: str  # "" outside of git
    versions: dict  # of Python and the libraries, by name
    data_id: str | None = None  # id of the data on the Hub
    license: str | None = None  # identifier of the Hub; None where nobody said
    repo_id: str | None = None  # USER/NAME on the Hub, for the lines that show how to use the weights


class Cards:
    """Writes the cards of the weights in best/, best_ema/, last/ and last_ema/ of a run.

    folder: of the run, whose args.json tells settings, command, commit and versions; None, as on processes other than the
    main one: nothing is written. options: the other fields of About. warn: takes a line where a card cannot be written.
    """

    def __init__(self, folder, *, warn=print, **options):
        self.folder, self.warn = pathlib.Path(folder) if folder else None, warn
        if self.folder:
            run = read_run(self.folder)
            known = {"settings": run.settings, "command": run.command, "commit": run.commit, "versions": run.versions}
            self.about = About(**known, **options)

    def write(self, name, record=None, best=()):
        """Write the card of the weights in `name`/, which were measured by `record`, or by the last record of log.txt.

        best: {score in log.txt: value} of the best epochs so far.
        """
        if self.folder is None:
            return
        if record is None:
            record = next(iter(read_run(self.folder).epochs[-1:]), {})
        try:
            write_text(self.folder / name / "README.md", card_text(self.about, record, dict(best), name.endswith("_ema")))
        except OSError as error:
            self.warn(f"the model card of {name}/ could not be written ({error})")


def check_license(license):
    """InputError for a license that cannot be an identifier of the Hub, which would refuse the card after the run."""
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(f"license {_plain(license)}: expected an identifier of the Hub, such as apache-2.0, mit or cc-by-4.0")


def card_text(about, record, best, ema=False):
    """Markdown with YAML front matter for the weights that `record` was measured on.

    about: About. record: of the epoch, as in log.txt; its scores may be missing. best: the best scores of the run so far,
    by their names in log.txt. ema: the weights are the average, whose scores are named test_…_ema.
    Folders of this machine and passwords in URLs are left out.
    """
    config, settings = about.config, about.settings
    segmentation, several = "network" in config, config.get("task") == "multilabel"
    key = BEST_BY["segmentation" if segmentation else "multilabel" if several else "recognition"]
    suffix = "_ema" if ema else ""
    score = number(record.get(key + suffix))
    classes = [str(name) for name in (config["classes"] if segmentation else config["label_names"])]
    model = f"{config['network']['head']}-{config['network']['backbone']}" if segmentation else config["architecture"]
    model, title = _plain(shareable(model)), _plain(shareable(about.title))
    pixels = config["crop_size"] if segmentation else config["pretrained_cfg"]["input_size"][-1]
    columns = {name + suffix: known.title for name, known in scores_of(record).items() if name.startswith("test_")}
    measured = {words: value for name, words in columns.items() if (value := number(record.get(name))) is not None}
    judged = _judgement(score, best.get(key + suffix), SCORES[key].name)
    scores = _scores(measured, settings.get("val_images"), record, judged, ema)
    count, start, data = record.get("n_parameters"), shareable(about.weights), _code(title)
    size = f"{count:,} parameters, " if count else ""
    names = _code_block(*map(_plain, classes[:SHOWN_CLASSES]))
    more = f" (the first {SHOWN_CLASSES} of {len(classes)}; config.json has all)" if len(classes) > SHOWN_CLASSES else ""
    where = f"hf-hub:{about.repo_id}" if about.repo_id else "local-dir:FOLDER_OF_THIS_FILE"
    use = (several_labels_code if several else recognition_code)(where, config)
    use = segmentation_code("FOLDER_OF_THIS_FILE", about.repo_id, config) if segmentation else use
    kind = "Semantic segmentation" if segmentation else "Several labels an image" if several else "Image classification"
    answer = "It names labels of its own list only" if several else "It answers with one of its classes"
    rows = [(name, settings[name]) for name in RECIPE if _is_set(name, settings)]
    command = _code_block(shlex.join(_plain(shareable(word)) for word in about.command), language="sh")
    versions = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in about.versions.items())
    scratch = start == "from scratch"
    origin = "from scratch" if scratch else f"starting from {_code(start)}"
    terms = config.get("start_license") or "unknown"
    inherited = f" What holds for the weights it started from, whose license is {_code(terms)}, holds for it too."
    inherited = "" if scratch else inherited
    license = (
        f"License: {_code(about.license)}." if about.license else "License: unknown; whoever trained this has not stated one."
    )
    return f"""---
{_front_matter(about, key, model, title, score)}
---

# {_code(model)} trained on {data}

{kind}: {size}{len(classes)} classes. \
Trained at {pixels} x {pixels} pixels with Strata, {origin}.

## Score

{scores}

## Data

{data}: {_count(settings.get("train_images"))} training images, {_count(settings.get("val_images"))} validation images. \
Classes, in the order of the logits{more}:

{names}

## Use

{_code_block(use.rstrip(), language="python")}

## Recipe

{_table(["setting", "value"], rows)}

{command}

Commit {_code(about.commit) if about.commit else "unknown"}; {versions}.

## Limits

Trained on {data} and scored on validation images of it; not checked on other images, cameras or classes, nor for bias or \
safety. {answer}, whatever it is shown.{inherited}

{license}
"""


def shareable(word):
    """`word` without what is nobody else's business: folders of this machine, and passwords and tokens in URLs."""
    word = str(word)
    if name := re.match(r"(--)?\w+=|@|local-dir:", word):  # --flag=, key=, a recipe, a folder for timm
        return name[0] + shareable(word[name.end() :])
    if re.match(r"https?://", word):
        try:
            url = urllib.parse.urlsplit(word)
        except ValueError:  # half an address
            return "URL"
        return urllib.parse.urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
    if os.path.isabs(word) or word.startswith(("~", "..")):
        parts = [part for part in pathlib.PurePath(word).parts if part not in (os.sep, "..")]
        return "/".join(parts[-2:] if parts and parts[-1] in TELLS_LITTLE else parts[-1:]) or "."
    return word


# --- parts of the text ------------------------------------------------------------------------------------------------


def _front_matter(about, key, model, title, score):
    """The facts that the Hub reads, as YAML. key: of the score in log.txt; score: None where nothing was measured."""
    from huggingface_hub import EvalResult, ModelCardData  # takes half a second

    segmentation = key == BEST_BY["segmentation"]
    task = "image-segmentation" if segmentation else "image-classification"
    metric = {"test_acc1": "accuracy", "test_miou": "mean_iou", "test_map": "average_precision"}[key]
    data_id = about.data_id if _is_hub_data(about.data_id) else None
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "data"
    results = None
    if score is not None:
        results = [
            EvalResult(
                task_type=task, dataset_type=data_id or slug, dataset_name=title, dataset_split="validation",
                metric_type=metric, metric_name=SCORES[key].title, metric_value=round(score, 5),
            )
        ]  # fmt: skip
    front = ModelCardData(
        license=about.license or "other", license_name=None if about.license else "unknown",
        library_name=None if segmentation else "timm", pipeline_tag=task,
        tags=[task, "semantic-segmentation" if segmentation else "timm"], datasets=[data_id] if data_id else None,
        metrics=[metric], model_name=model, eval_results=results,
    )  # fmt: skip
    return front.to_yaml().rstrip()


def _scores(measured, images, record, judged, ema):
    """The table of scores and what to know about it; one line where nothing was measured."""
    after = f" after epoch {record['epoch'] + 1}" if "epoch" in record else ""
    weights = f"Weights{' (their moving average)' * ema}{after}."
    if not measured:
        return f"{weights} They were not evaluated."
    table = _table([*measured, "validation images"], [(*(f"{value:.4g}" for value in measured.values()), _count(images))])
    return f"{table}\n\n{weights}{judged}"


def _judgement(score, best, name):
    """How the epoch was chosen, where that is known."""
    if score is None or best is None:  # not evaluated, or chosen by another score (--best_metric)
        return ""
    if best is not None and score < best:
        return f" The run's best {name} was {best:.4g}, at another epoch."
    return " The best epoch so far by its score on these same images; choosing by it flatters it a little."


def _is_hub_data(name):
    """Whether `name` can be a data set's id on the Hub: nothing on this disk, no path."""
    return bool(name and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) and not os.path.exists(name))


def _is_set(name, settings):
    """Whether the run had this setting; 0 is off, but for the seed."""
    off = (None,) if name == "seed" else (None, False, 0, "", "none", [], ())
    return settings.get(name) not in off


def _count(value):
    return "unknown" if value is None else f"{value:,}"


def _plain(text):
    """`text` on one line, without control characters and half characters, 200 characters at most."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _code(text):
    """`text` as a code span, in which Markdown and HTML mean nothing."""
    text = _plain(text) or " "
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " * (text.startswith("`") or text.endswith("`"))
    return f"{fence}{pad}{text}{pad}{fence}"


def _code_block(*lines, language=""):
    text = "\n".join(lines)
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(header, rows):
    def line(cells):
        return "| " + " | ".join(cells) + " |"

    cells = [[_plain(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, cells)])
