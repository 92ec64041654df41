"""What weights say of how they were trained: timm's pretrained_cfg, or the config.json beside them. Nothing of timm's known
names is downloaded for it. A weights file alone says nothing.
"""

import json
import math
import os
import pathlib
import re
from typing import NamedTuple

import timm
from timm.data import constants, resolve_data_config
from timm.models import load_model_config_from_hf

from utils.cli.arguments import check_model_kwargs
from utils.cli.errors import InputError, first_line
from utils.model.segmentation_weights import read_config

NAMES = {"ImageNet": "IMAGENET_DEFAULT", "Inception": "IMAGENET_INCEPTION", "CLIP": "OPENAI_CLIP", "DPN": "IMAGENET_DPN"}
# What config.json of a run says beside timm's words: how train_recognition.py and train_segmentation.py looked at images.
VIEW_OF_RECOGNITION = ("transforms", "tta_flip", "value_range", "background", "in_chans", "show_bands", "task")
VIEW_OF_SEGMENTATION = ("transforms", "crop_size", "base_size", "eval_mode", "eval_scales", "eval_flip", "value_range",
                        "background", "in_chans", "show_bands")  # fmt: skip
# And how train_segmentation.py read masks; see utils/mask_folders/options.py.
OF_MASKS = ("mask_suffix", "mask_values", "mask_colors", "reduce_zero_label", "mask_numbers")


class AsTrained(NamedTuple):
    """images: {flag: value}, how they were given to the model: mean, std, and of a classifier input_size, crop_pct, crop_mode
    and eval_interpolation. evaluation: {flag: value} of the rest that decides a score: the model and how it is looked at.
    license: an identifier, such as apache-2.0, or None. classes: names in the order of the logits, or None; number: of them.
    network: of a segmentation network, arguments of build_network by name; else None.
    """

    images: dict
    evaluation: dict
    license: str | None
    classes: list | None
    number: int
    network: dict | None = None
    palette: list | None = None

    def __str__(self):
        size, crop = self.images.get("input_size"), self.images.get("crop_pct")
        view = f"{size} pixels, crop {round(crop, 4)}, " if size else ""
        view += colours_in_words(self.images.get("mean"), self.images.get("std"))
        return f"as the weights were trained: {view}, licence {self.license or 'unknown'}"


def as_trained(source, name=None):
    """`AsTrained` of weights, or None if they do not tell.

    source: as of --finetune: a folder with config.json, `local-dir:FOLDER`, `timm/NAME`, `hf-hub:USER/NAME`; files and URLs
    do not tell. Without it, of the pretrained weights of timm's model `name`, which may be such a source too.
    Raises InputError for a config.json that training does not write.
    """
    if not source and name and ":" not in name:
        cfg = timm.get_pretrained_cfg(name)
        return _of_timm(cfg.to_dict(), name) if cfg is not None else None
    source = str(source or name or "")
    hub = re.match(r"(?:hf[-_]hub:)?(timm/)?", source)
    if hub[1] and timm.is_model(known := source.removeprefix(hub[0])) and not os.path.exists(source):
        return as_trained(None, known)
    folder = source.removeprefix("local-dir:")
    if os.path.isfile(os.path.join(folder, "config.json")):
        return _of_folder(pathlib.Path(folder))
    if re.match(r"hf[-_]hub:|timm/", source) and not os.path.exists(source):
        try:
            cfg, architecture, model_kwargs = load_model_config_from_hf(re.sub(r"^hf[-_]hub:", "", source))
        except Exception:  # no network, no such file: who loads the weights says so
            return None
        return _of_timm(cfg, architecture, model_kwargs)
    return None


def _of_folder(folder):
    if (config := read_config(folder)) is not None:
        images = {name: config[name] for name in ("mean", "std") if name in config}
        _check_masks(config)
        evaluation = _view(config, VIEW_OF_SEGMENTATION + OF_MASKS)
        license, classes = config.get("license") or _license_of_card(folder), config["classes"]
        return AsTrained(images, evaluation, license, classes, len(classes), config["network"], config["palette"])
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "architecture" not in config:
            return None  # of another library
        cfg = dict(config.get("pretrained_cfg", config))
        cfg |= {name: config[name] for name in ("label_names", "num_classes") if name in config}
        cfg["license"] = cfg.get("license") or _license_of_card(folder)
        kwargs = config.get("model_args") or {}
        found = _of_timm(cfg, config["architecture"], kwargs)
        _check(config["architecture"], found)
        found.evaluation.update(_view(config, VIEW_OF_RECOGNITION))
        if found.evaluation.get("task") != "multilabel":  # another library's word
            found.evaluation.pop("task", None)
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        raise InputError(f"{path}: describes no model as timm does ({first_line(error)})") from None


def _view(config, names):
    """What config.json says of these. Raises InputError for a range of values or a colour that is none."""
    limits = config.get("value_range", [0, 255])
    numbers = isinstance(limits, list) and len(limits) == 2 and all(type(limit) in (int, float) for limit in limits)
    if not numbers or not -math.inf < limits[0] < limits[1] < math.inf:
        raise InputError(f"config.json: value_range {limits}: expected the values of black and white")
    colour = config.get("background", [0, 0, 0])
    if not isinstance(colour, list) or len(colour) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in colour):
        raise InputError(f"config.json: background {colour}: expected three numbers of 0 to 255")
    bands, shown = config.get("in_chans", 3), config.get("show_bands", [0])
    if type(bands) is not int or not 1 <= bands <= 1024:
        raise InputError(f"config.json: in_chans {bands}: expected 1 to 1024 bands")
    numbers = isinstance(shown, list) and len(shown) in (1, 3) and all(type(band) is int for band in shown)
    if not numbers or not 0 <= min(shown) <= max(shown) < bands:
        raise InputError(f"config.json: show_bands {shown}: expected one or three of {bands} bands")
    return {name: config[name] for name in names if name in config}


def _check_masks(config):
    """InputError for flags of masks that no training writes."""
    values, colours = config.get("mask_values", []), config.get("mask_colors", [])
    if not _rows(values, (int, str)) or not all(0 <= value <= 65_535 for value, _ in values):
        raise InputError("config.json: mask_values: expected a value of 0 to 65535 and a name in each")
    if not _rows(colours, (str, int, int, int)) or not all(0 <= min(colour) <= max(colour) <= 255 for _, *colour in colours):
        raise InputError("config.json: mask_colors: expected a name and three numbers of 0 to 255 in each")
    if not isinstance(config.get("mask_suffix", ""), str):
        raise InputError("config.json: mask_suffix: expected the end of the masks' names")


def _rows(rows, kinds):
    """Whether `rows` is a list of lists of these kinds."""
    return isinstance(rows, list) and all(isinstance(row, list) and tuple(map(type, row)) == kinds for row in rows)


def _check(architecture, found):
    """ValueError for what no training writes, and for a name that timm would look for on the network or on the disk."""
    check_model_kwargs(dict(found.evaluation["model_kwargs"]), "model_args")
    if not 0 <= found.number <= 1_000_000:
        raise ValueError(f"num_classes {found.number}: expected at most 1,000,000")
    images = found.images
    if not isinstance(architecture, str) or not re.fullmatch(r"[\w.-]+", architecture):
        raise ValueError(f"architecture {architecture}: expected a model's plain name")
    if not 1 <= images["input_size"] <= 65_536 or not 0 < images["crop_pct"] <= 1:
        raise ValueError(f"input_size {images['input_size']}, crop_pct {images['crop_pct']}: expected pixels, and a share")
    if images["crop_mode"] not in ("center", "squash", "border"):
        raise ValueError(f"crop_mode {images['crop_mode']}: expected center, squash or border")
    if images["eval_interpolation"] not in ("bicubic", "bilinear", "lanczos", "nearest"):
        raise ValueError(f"interpolation {images['eval_interpolation']}: expected bicubic, bilinear, lanczos or nearest")
    if not all(math.isfinite(value) for value in images["mean"] + images["std"]) or min(images["std"]) <= 0:
        raise ValueError("mean and std: expected finite numbers, and a std above 0")
    if found.classes is not None and not all(isinstance(name, str) for name in found.classes):
        raise ValueError("label_names: expected names")


def _of_timm(cfg, architecture, model_kwargs=()):
    """Of a pretrained_cfg as a dict."""
    seen = resolve_data_config(pretrained_cfg=cfg)
    channels = int(seen["input_size"][0])
    images = {
        "input_size": int(seen["input_size"][-1]), "crop_pct": float(seen["crop_pct"]), "crop_mode": seen["crop_mode"],
        "eval_interpolation": seen["interpolation"], "mean": _numbers(seen["mean"], channels),
        "std": _numbers(seen["std"], channels),
    }  # fmt: skip
    # What timm notes of each model that it saves, and is said by `number` and input_size.
    said = {"num_classes"} | ({"img_size"} if cfg.get("fixed_input_size") else set())
    options = [(name, value) for name, value in dict(model_kwargs).items() if name not in said]
    evaluation = {"model": architecture, "model_kwargs": options}
    evaluation |= {"in_chans": channels} if channels != 3 else {}
    names, number = cfg.get("label_names"), int(cfg.get("num_classes") or 0)
    classes = list(names) if isinstance(names, list | tuple) and len(names) == number else None
    return AsTrained(images, evaluation, cfg.get("license"), classes, number)


def _numbers(values, channels):
    values = [float(value) for value in values]
    if len(values) != channels:
        raise ValueError(f"mean and std of {len(values)} channels; expected {channels}")
    return values


def _license_of_card(folder):
    """The license that the model card in a folder states, or None."""
    from huggingface_hub import metadata_load

    try:
        stated = (metadata_load(folder / "README.md") or {}).get("license")
    except Exception:  # no card, or YAML of another making
        return None
    return stated if isinstance(stated, str) and stated not in ("other", "unknown") else None


def colours_in_words(mean, std):
    """mean of CLIP; or the numbers; mean of ImageNet where nothing is known."""
    if not mean or not std:
        return "mean of ImageNet"
    for name, constant in NAMES.items():
        named = [getattr(constants, f"{constant}_{part}") for part in ("MEAN", "STD")]
        if [tuple(mean), tuple(std)] == [tuple(values) for values in named]:
            return f"mean of {name}"
    return f"mean {' '.join(f'{value:.4g}' for value in mean)}, std {' '.join(f'{value:.4g}' for value in std)}"
