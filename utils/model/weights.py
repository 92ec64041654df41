"""Reading published and own weights into a timm model, with an exact account of the keys; no code is unpickled.

Read: safetensors files and folders with model.safetensors (timm, the Hub, this project); .pth, .pt and .bin files of
tensors as ConvNeXt, ConvNeXt-V2, PyTorch-Encoding, timm and torchvision write them, dense or, for FCMAE, in the sparse
layout; a .zip that holds one such file.
"""

import argparse
import io
import math
import os
import pathlib
import pickle
import re
import zipfile

import torch
from safetensors.torch import load_file

from utils.cli.errors import InputError, first_line
from utils.model.download import fetch

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
_SMALL = 1 << 26  # bytes that an archive may unpack to, whatever its own size
_PRETRAINING = re.compile(r"^(?:mask_token$|proj\.|pred\.|decoder\.)")  # what FCMAE has beside the encoder


# --- files ----------------------------------------------------------------------------------------------------------


def read_tensors(path, model_key="model|module"):
    """State dict {name: tensor} of a file or folder. Raises InputError for what is no such file.

    model_key: names separated by `|`, tried in turn, under which a .pth may hold its weights (model_ema for the
    averaged ones); the usual ones of other repositories are tried after them.
    """
    path = pathlib.Path(path)
    if os.path.isdir(path):
        path = path / "model.safetensors"
    if not os.path.isfile(path):  # as above, also for names that no file can have
        raise InputError(
            f"weights {path}: no such file; expected a .safetensors, .pth or .pt file, or a folder with model.safetensors"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(_unpack(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
        what = f"it asks for {blocked[1] or blocked[2]}" if blocked else "it is damaged or holds more than tensors"
        raise InputError(f"weights {path}: not loaded, for {what}; nothing of it was run") from None
    except InputError:
        raise
    except Exception as error:  # damaged files make the readers raise any kind, from EOFError to UnicodeDecodeError
        raise InputError(f"weights {path}: damaged or not a weights file ({first_line(error)})") from None
    for key in (*model_key.split("|"), "model", "module", "state_dict", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not content or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"weights {path}: expected tensors by name under one of {model_key}; found {found}")
    for name, tensor in content.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(f"weights {path}: {name} is no plain tensor; save the weights as ordinary ones")
    return {name: tensor.detach() for name, tensor in content.items()}


def _unpack(path, inner=None):
    """`path`, or the one weights file in it where it is a .zip archive that is none itself (PyTorch-Encoding's).

    inner: that file's content, which may be an archive too, as torch writes them.
    """
    file = inner or path
    if not zipfile.is_zipfile(file):
        return _from_start(file)
    with zipfile.ZipFile(file) as archive:
        sizes = [(entry.file_size, entry.compress_size) for entry in archive.infolist()]
        unpacked, packed = map(sum, zip(*sizes, strict=True)) if sizes else (0, 0)
        if unpacked > 20 * packed + _SMALL:
            raise InputError(f"weights {path}: {packed:,} bytes would unpack to {unpacked:,}, which no weights do")
        inside = [name for name in archive.namelist() if not name.endswith("/")]
        if inner or any(name.endswith("data.pkl") for name in inside):
            return _from_start(file)
        weights = [name for name in inside if name.endswith((".pth", ".pt", ".bin"))]
        if len(weights) != 1:
            raise InputError(f"weights {path}: expected one .pth file in the archive, found {', '.join(inside[:5]) or 'none'}")
        return _unpack(path, io.BytesIO(archive.read(weights[0])))


def _from_start(file):
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return file


# --- names and layouts ----------------------------------------------------------------------------------------------


def to_timm(tensors):
    """({timm name: tensor}, the layout in words, names left out) of a published state dict {name: tensor}."""
    while tensors and all(name.startswith(("module.", "_orig_mod.")) for name in tensors):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    layout, left_out = [], []
    if any(name.startswith("encoder.") for name in tensors) and any(map(_PRETRAINING.match, tensors)):
        left_out = [name for name in tensors if _PRETRAINING.match(name)]
        tensors = {name.removeprefix("encoder."): t for name, t in tensors.items() if name not in left_out}
        layout.append("FCMAE checkpoint")
    if any(name.endswith(".kernel") for name in tensors):
        tensors = dict(_to_dense(name, tensor) for name, tensor in tensors.items())
        layout.append("sparse layout")
    family = "ConvNeXt V2" if any(".grn." in name for name in tensors) else "ConvNeXt"
    if any(name.startswith("downsample_layers.") for name in tensors):
        tensors = {to_timm_name(name): tensor for name, tensor in tensors.items()}
        layout = [f"{family} {layout[0]}" if left_out else f"{family} checkpoint", *layout[bool(left_out) :]]
        layout += [] if "sparse layout" in layout else ["original names"]
    elif any(".conv_dw." in name and name.startswith("stages.") for name in tensors):
        layout.append(f"{family} checkpoint, timm names")
    elif any(name.startswith("layer1.") for name in tensors):
        nest = any(re.match(r"layer1\.0\.conv2\.(fc1|conv)\.", name) for name in tensors)
        layout.append("ResNeSt checkpoint" if nest else "ResNet checkpoint")
    else:
        layout.append("timm names")
    return tensors, ", ".join(layout), left_out


def to_timm_name(name):
    """timm's name of an original ConvNeXt or ConvNeXt V2 parameter."""
    for pattern, replacement in _TO_TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def _to_dense(name, tensor):
    """(name, tensor) in the dense layout, of one that FCMAE's encoder holds as MinkowskiEngine does.

    A kernel is (positions, C) if depthwise, (positions, C_in, C_out) otherwise, its positions column by column; biases
    and GRN are (1, C). Nothing is copied, for the shapes are not checked yet. Source: ConvNeXt-V2, utils.py,
    remap_checkpoint_keys.
    """
    if name.endswith(".kernel"):
        side = math.isqrt(tensor.shape[0])
        axes = (1, 0) if tensor.ndim == 2 else (2, 1, 0)
        kernel = tensor.permute(axes).unflatten(-1, (side, side)).transpose(-1, -2)  # (C_out, [C_in,] rows, columns)
        return name.removesuffix("kernel") + "weight", kernel.unsqueeze(1) if tensor.ndim == 2 else kernel
    name = re.sub(r"\.(?:ln|linear)\.", ".", name)
    return name, tensor.squeeze(0) if name.endswith(".bias") or ".grn." in name else tensor


# --- loading --------------------------------------------------------------------------------------------------------


def load_weights(model, source, *, model_key="model|module", model_prefix=""):
    """Load `source` (see `fetch`) into the timm `model`; returns three lines: the source, its layout, what was done.

    model_key: see `read_tensors`. model_prefix: is put before every name in the file.
    A classifier of another size is left as it is, and so is the final norm after FCMAE, which has none; the lines say so.
    Any other missing, unexpected or misshapen tensor is an InputError that names them, and the model stays untouched.
    """
    tensors = {model_prefix + name: tensor for name, tensor in read_tensors(fetch(source), model_key).items()}
    try:
        tensors, layout, left_out = to_timm(tensors)
    except (RuntimeError, IndexError, ValueError) as error:  # kernels of no square side, say
        raise InputError(f"weights {source}: the tensors do not have the expected shapes ({first_line(error)})") from None
    if any(name.startswith(("decode_head.", "auxiliary_head.", "auxlayer.")) for name in tensors):
        raise InputError(f"weights {source}: this is a segmentation network; expected an image recognition model")

    wanted = model.state_dict()
    head = {n for n in wanted if n.startswith(tuple(f"{c}." for c in _classifiers(model)))}
    new = {n for n in wanted if n.endswith("num_batches_tracked") and n not in tensors}  # older torch had no such buffer
    if head and any(n not in tensors or not same_but_for_ones(tensors[n], wanted[n]) for n in head):
        new |= head
        left_out += [name for name in tensors if name in head]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    if any(map(_PRETRAINING.match, left_out)):
        new |= {n for n in wanted if re.match(r"(?:head\.)?norm(?:_pre)?\.", n) and n not in tensors}
    if not head:  # a model without classifier takes the weights of one that has it
        of_head = [n for n in tensors if n not in wanted and re.match(r"(?:head\.fc|fc|head|classifier)\.(?:weight|bias)$", n)]
        left_out += of_head
        tensors = {name: tensor for name, tensor in tensors.items() if name not in of_head}
    loaded = put_in(model, tensors, source, layout, left_out, new)
    parts = ["decoder left out"] * any(map(_PRETRAINING.match, left_out)) + ["head new"] * bool(head & new)
    return [str(source), layout + (f"; {', '.join(parts)}" if parts else ""), loaded]


def _classifiers(model):
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head.fc"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def check_fit(what, missing, unexpected, misshapen):
    """InputError that names the tensors, if there are any."""
    if missing or unexpected or misshapen:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        raise InputError(f"{what}: " + "; ".join(f"{fault} {some_names(names)}" for fault, names in found.items()))


def put_in(model, tensors, source, layout, left_out, new, what="model"):
    """Load tensors {name: tensor}: all of them, or none and an InputError. Returns a line that says what was done.

    Each tensor of the `model` must be among them or among the names `new`, each with its shape but for dimensions of 1. On
    the meta device, in a dry run, they are only compared. source, layout, what: the words of an error. left_out: the names
    in the file that are not among `tensors`.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors and name not in new]
    unexpected = [name for name in tensors if name not in wanted]
    # 1x1 convolutions and linear layers, and both forms of GRN, hold the same numbers in other shapes
    misshapen = [name for name in tensors if name in wanted and not same_but_for_ones(tensors[name], wanted[name])]
    check_fit(f"weights {source} ({layout}) do not fit the {what}", missing, unexpected, misshapen)
    odd = [n for n, t in tensors.items() if t.is_complex() or wanted[n].is_floating_point() > t.is_floating_point()]
    if odd:  # whole numbers, say, which no weights are; counters may be of any type
        found = sorted({str(tensors[name].dtype) for name in odd})
        raise InputError(f"weights {source}: tensors of another type ({', '.join(found)}): {some_names(odd)}")
    loaded = f"{len(tensors)} tensors loaded; left out {some_names(left_out)}; new {some_names(sorted(new))}"
    if next(iter(wanted.values())).is_meta:
        return loaded
    try:  # every conversion that could fail comes before the first number is put in
        tensors = {name: t.reshape(wanted[name].shape).to(wanted[name].dtype) for name, t in tensors.items()}
    except RuntimeError as error:
        raise InputError(f"weights {source} cannot be converted ({first_line(error)})") from None
    model.load_state_dict(tensors, strict=False)
    return loaded


def same_but_for_ones(a, b):
    """Whether two tensors have the same shape, dimensions of 1 left out."""
    return [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1]


def some_names(names):
    """How many names, and the first four."""
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "none"
