"""Reading published and own weights into a timm model, with an exact account of the keys; no code is unpickled.

Read: safetensors files; folders with model.safetensors; .pth and .pt files of tensors, as ConvNeXt, ConvNeXt-V2 and
timm write them, with the original ConvNeXt names or timm's.
"""

import argparse
import pathlib
import pickle
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.arguments import InputError, first_line

_TO_TIMM = (  # original ConvNeXt name -> timm's, in this order
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def read_tensors(path, model_key="model|module"):
    """State dict {name: tensor} of a file or folder. Raises InputError for what is no such file.

    model_key: names separated by `|`, tried in turn, under which a .pth may hold its weights (model_ema for the
    averaged ones); the usual ones of other repositories are tried after them.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"weights {path}: no such file; expected a .safetensors, .pth or .pt file, or a folder with model.safetensors"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
        what = f"it asks for {blocked[1] or blocked[2]}" if blocked else "it is damaged or holds more than tensors"
        raise InputError(f"weights {path}: not loaded, for {what}; nothing of it was run") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"weights {path}: damaged or not a weights file ({first_line(error)})") from None
    for key in (*model_key.split("|"), "model", "module", "state_dict", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"weights {path}: expected tensors by name under one of {model_key}; found {found}")
    return content


def load_weights(model, path, *, model_key="model|module", model_prefix=""):
    """Load `path` into the timm `model`; returns lines that say what was done.

    A classifier of another size is left as it is and that is said; any other missing, unexpected or misshapen tensor
    is an InputError that names them.
    """
    tensors = read_tensors(path, model_key)
    while all(name.startswith(("module.", "_orig_mod.")) for name in tensors):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    tensors = {model_prefix + name: tensor for name, tensor in tensors.items()}
    layout = "timm names"
    if any(name.startswith("downsample_layers.") for name in tensors):
        tensors, layout = {to_timm_name(name): tensor for name, tensor in tensors.items()}, "original ConvNeXt names"

    wanted = model.state_dict()
    head = {n for n in wanted if n.startswith(tuple(f"{c}." for c in _classifiers(model)))}
    new_head = any(n not in tensors or tensors[n].numel() != wanted[n].numel() for n in head)
    if new_head:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    missing = [name for name in wanted if name not in tensors and not (new_head and name in head)]
    unexpected = [name for name in tensors if name not in wanted]
    # 1x1 convolutions and linear layers, and both forms of GRN, hold the same numbers in other shapes
    misshapen = [name for name in tensors if name in wanted and not _same_but_for_ones(tensors[name], wanted[name])]
    if missing or unexpected or misshapen:
        raise InputError(
            f"weights {path} do not fit the model: missing {_some(missing)}; unexpected {_some(unexpected)}; "
            f"of another shape {_some(misshapen)}"
        )
    model.load_state_dict({n: t.reshape(wanted[n].shape) for n, t in tensors.items()}, strict=False)
    lines = [f"weights: {path}, {layout}, {len(tensors)} tensors loaded"]
    if new_head:
        lines.append(f"weights: the head has another size there and starts anew here ({', '.join(sorted(head))})")
    return lines


def to_timm_name(name):
    """timm's name of an original ConvNeXt or ConvNeXt V2 parameter."""
    for pattern, replacement in _TO_TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def _classifiers(model):
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head.fc"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _same_but_for_ones(a, b):
    return [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]


def _some(names):
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "none"
