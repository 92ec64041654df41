"""README.md beside a run's weights: the model card as the Hugging Face Hub shows it. It holds what is known, no more."""

import math
import os
import pathlib
import re
import shlex
import urllib.parse

from utils.cli.errors import InputError

# Task -> (metric as the Hub calls it, key of the score in a record, what to call it, what else a record may hold)
TASKS = {
    "image-classification": ("accuracy", "acc1", "top-1, %", {"acc5": "top-5, %", "loss": "cross-entropy"}),
    "image-segmentation": ("mean_iou", "miou", "mean IoU, %", {"pixacc": "pixel accuracy, %", "macc": "class accuracy, %"}),
}
RECIPE = (  # settings worth a row, in this order, where the run has them
    "epochs max_updates total_batch opt lr min_lr sched warmup_epochs weight_decay layer_decay head_lr_scale clip_grad "
    "drop_path dropout smoothing bce_loss transforms scale aa hflip color_jitter reprob mixup cutmix aux ohem base_size "
    "model_ema model_ema_decay eval_mode eval_scales eval_flip tta_flip seed"
).split()
TELLS_LITTLE = ("train", "val", "best", "best_ema", "last")  # names of folders that need the one above
SHOWN_CLASSES = 20


def check_license(license):
    """InputError for a license that cannot be an identifier of the Hub, which would refuse the card after the run."""
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(f"license {_plain(license)}: expected an identifier of the Hub, such as apache-2.0, mit or cc-by-4.0")


def text(
    config,
    *,
    record,
    best,
    settings,
    title,
    weights,
    command,
    commit,
    versions,
    data_id=None,
    license=None,
    repo_id=None,
    ema=False,
):
    """Markdown with YAML front matter for the weights that `record` was measured on.

    config: as in config.json (recognition_model.timm_config, or a segmentation network's). record: of the epoch, as in
    log.txt; its scores may be missing, and with `ema` are those named test_…_ema. best: the best scores of the run so
    far. settings: what decides the result, with train_images and val_images. title, data_id: of the data, in words and,
    if it has one, its Hub id. weights: what the run started from, in words. command: list of words, script first.
    commit (None outside of git) and versions: of run_log. license: identifier of the Hub, None where nobody said.
    repo_id: USER/NAME of the Hub, for the lines that show how to use it.
    Paths of this machine and passwords in URLs are left out.
    """
    from huggingface_hub import EvalResult, ModelCardData  # takes half a second

    segmentation = "network" in config
    task = "image-segmentation" if segmentation else "image-classification"
    metric, key, metric_name, others = TASKS[task]
    classes = [str(name) for name in (config["classes"] if segmentation else config["label_names"])]
    model = f"{config['network']['head']}-{config['network']['backbone']}" if segmentation else config["architecture"]
    model, title = _plain(shareable(model)), _plain(shareable(title))
    pixels = config["crop_size"] if segmentation else config["pretrained_cfg"]["input_size"][-1]
    suffix = "_ema" if ema else ""
    score_key = f"test_{key}{suffix}"
    score = _number(record.get(score_key))

    data_id = data_id if _is_hub_data(data_id) else None
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "data"
    results = []
    if score is not None:
        results = [
            EvalResult(
                task_type=task, dataset_type=data_id or slug, dataset_name=title, dataset_split="validation",
                metric_type=metric, metric_name=metric_name, metric_value=round(score, 5),
            )
        ]  # fmt: skip
    front = ModelCardData(
        license=license or "other", license_name=None if license else "unknown",
        library_name=None if segmentation else "timm", pipeline_tag=task,
        tags=[task, "semantic-segmentation"] if segmentation else [task, "timm"], datasets=[data_id] if data_id else None,
        metrics=[metric], model_name=model, eval_results=results or None,
    )  # fmt: skip

    columns = {score_key: metric_name} | {f"test_{name}{suffix}": words for name, words in others.items()}
    measured = {words: value for name, words in columns.items() if (value := _number(record.get(name))) is not None}
    count = record.get("n_parameters")
    size = f"{count:,} parameters, " if count else ""
    start = shareable(weights)
    scratch = start == "from scratch"
    return "\n".join(
        [
            "---", front.to_yaml().rstrip(), "---", "",
            f"# {_code(model)} trained on {_code(title)}", "",
            f"{'Semantic segmentation' if segmentation else 'Image classification'}: {size}{len(classes)} classes. Trained at "
            f"{pixels} x {pixels} pixels with Strata, {'from scratch' if scratch else f'starting from {_code(start)}'}.", "",
            "## Score", "",
            *_score_lines(measured, settings.get("val_images"), score, best.get(score_key), metric_name, record, ema), "",
            "## Data", "",
            f"{_code(title)}: {_count(settings.get('train_images'))} training images, "
            f"{_count(settings.get('val_images'))} validation images. Classes, in the order of the logits"
            f"{_and_more(classes)}:", "",
            *_code_block("\n".join(_plain(name) for name in classes[:SHOWN_CLASSES])), "",
            "## Use", "",
            *_code_block(_use_segmentation(repo_id) if segmentation else _use_recognition(repo_id), "python"), "",
            "## Recipe", "",
            *_table(["setting", "value"], [(name, settings[name]) for name in RECIPE if _is_set(name, settings)]), "",
            *_code_block(shlex.join(_plain(shareable(word)) for word in command), "sh"), "",
            f"Commit {_code(commit) if commit else 'unknown'}; "
            + ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in versions.items()) + ".", "",
            "## Limits", "",
            f"Trained on {_code(title)} and scored on validation images of it; not checked on other images, cameras or "
            "classes, nor for bias or safety. It answers with one of its classes whatever it is shown."
            + ("" if scratch else " What holds for the weights it started from, their license included, "
               "holds for it too."), "",
            f"License: {_code(license)}." if license else "License: unknown; whoever trained this has not stated one.", "",
        ]
    )  # fmt: skip


def write(folder, card):
    """Replace README.md in `folder` by the text `card`, in one step."""
    aside = pathlib.Path(folder, "tmp-README.md")
    aside.write_text(card, encoding="utf-8")
    aside.replace(aside.with_name("README.md"))


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


def _score_lines(measured, images, score, best, metric_name, record, ema):
    """The table of scores and what to know about it; one line where nothing was measured."""
    epoch = f"Weights{' (their moving average)' * ema} after epoch {record['epoch'] + 1}."
    if not measured:
        return [f"{epoch} They were not evaluated."]
    lines = _table([*measured, "validation images"], [(*(f"{value:.4g}" for value in measured.values()), _count(images))])
    if score is not None and best is not None and score < best:
        epoch += f" The run's best {metric_name.partition(',')[0]} was {best:.4g}, at another epoch."
    elif score is not None:
        epoch += " The best epoch so far by its score on these same images; choosing by it flatters it a little."
    return [*lines, "", epoch]


def _use_recognition(repo_id):
    where = f"hf-hub:{repo_id}" if repo_id else "local-dir:FOLDER_OF_THIS_FILE"
    return f"""import timm

model = timm.create_model("{where}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(image).unsqueeze(0))  # image: of PIL, RGB
print(model.pretrained_cfg["label_names"][logits.argmax()])"""


def _use_segmentation(repo_id):
    folder = f'huggingface_hub.snapshot_download("{repo_id}")' if repo_id else '"FOLDER_OF_THIS_FILE"'
    first = "import huggingface_hub\n" if repo_id else ""
    return f"""{first}from utils.model.segmentation_weights import open_network  # of Strata

network, config = open_network({folder})
logits = network(images, only_logits=True)["logits"]  # images: (N, 3, H, W), normalised by config["mean"], config["std"]
classes = [config["classes"][i] for i in logits.argmax(1).unique()]"""


def _is_hub_data(name):
    """Whether `name` can be a data set's id on the Hub: nothing on this disk, no path."""
    return bool(name and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) and not os.path.exists(name))


def _is_set(name, settings):
    """Whether the run had this setting; 0 is off, but for the seed."""
    off = (None,) if name == "seed" else (None, False, 0, "", "none", [], ())
    return settings.get(name) not in off


def _and_more(classes):
    return f" (the first {SHOWN_CLASSES} of {len(classes)}; config.json has all)" if len(classes) > SHOWN_CLASSES else ""


def _number(value):
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


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


def _code_block(text, language=""):
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return [fence + language, text, fence]


def _table(header, rows):
    def line(cells):
        return "| " + " | ".join(cells) + " |"

    cells = [[_plain(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return [line(header), line(["---"] * len(header)), *map(line, cells)]
