"""Reading published and own weights into a timm model, with an exact account of the keys; no code is unpickled.

Read: safetensors files and folders with model.safetensors or pytorch_model.bin (timm, the Hub, this project); .pth, .pt,
.ckpt and .bin files of tensors; a .zip that holds one such file. Whose names are known: utils/model/layouts.py.
"""

import argparse
import io
import os
import pathlib
import pickle
import re
import zipfile

import torch
from safetensors.torch import load_file

from segmentation_networks.network import classifier_prefixes
from utils.cli.errors import InputError, first_line
from utils.model.download import fetch
from utils.model.layouts import is_pretraining, shape_but_for_ones, to_timm

_AVERAGED = ("model_ema", "state_dict_ema")  # keys of the moving average, in this project's files and others'
_SMALL = 1 << 26  # bytes that an archive may unpack to, whatever its own size


# --- files ----------------------------------------------------------------------------------------------------------


def read_weights(path, model_key="model|module"):
    """(state dict {name: tensor} of a file or folder, a note such as "model_ema is there too: --model_key model_ema" or "").

    model_key: names separated by `|`, tried in turn, under which a .pth may hold its weights (model_ema for the
    averaged ones); the usual ones of other repositories are tried after them, where model or module is among them: else
    they must be there. Raises InputError for what is no such file, and where they are not.
    """
    path = pathlib.Path(path)
    if os.path.isdir(path):
        path = _in_folder(path)
    if not os.path.isfile(path):  # as above, also for names that no file can have
        raise InputError(
            f"weights {path}: no such file; expected a .safetensors, .pth or .pt file, or a folder with model.safetensors"
        )
    try:
        if path.suffix == ".safetensors":
            _refuse_other_key(path, model_key, {})
            return load_file(path), ""
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(_unpack(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
        what = f"it asks for {blocked[1] or blocked[2]}" if blocked else "it is damaged or holds more than tensors"
        instead = _instead(blocked[1] or blocked[2]) if blocked else ""
        raise InputError(f"weights {path}: not loaded, for {what}; nothing of it was run{instead}") from None
    except InputError:
        raise
    except Exception as error:  # damaged files make the readers raise any kind, from EOFError to UnicodeDecodeError
        raise InputError(f"weights {path}: damaged or not a weights file ({first_line(error)})") from None
    also = ""
    _refuse_other_key(path, model_key, content)
    for key in (*model_key.split("|"), "model", "module", "state_dict", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            also = next((k for k in _AVERAGED if k != key and isinstance(content.get(k), dict)), "")
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
    note = also and f"{also} is there too: --model_key {also}"
    return {name: tensor.detach() for name, tensor in content.items()}, note


def _refuse_other_key(path, model_key, content):
    """Raise InputError where the names in `model_key` are no usual ones, and lead to nothing in the `content` of a file."""
    names, dicts = model_key.split("|"), content if isinstance(content, dict) else {}
    there = [str(key) for key, value in dicts.items() if isinstance(value, dict)]
    if {"model", "module"} & {*names} or {*names} & {*there}:
        return
    found = f"the names {', '.join(there[:8])}" if there else "weights alone, under no name"
    hint = "take one of these" if there else "leave it out; the averaged ones of a run lie in RUN/best_ema"
    raise InputError(f"--model_key {model_key}: found {found} in {path}; {hint}")


def _in_folder(folder):
    for name in ("model.safetensors", "pytorch_model.bin"):
        if os.path.isfile(folder / name):
            return folder / name
        if os.path.isfile(folder / f"{name}.index.json"):
            raise InputError(f"weights {folder}: they lie in several files ({name}.index.json); save them in one")
    return folder / "model.safetensors"


def _instead(asked):
    """What to do with a file that asks for the class `asked`, as the end of a sentence."""
    package = asked.partition(".")[0]
    if package in ("torch", "torchvision", "timm", "transformers", "models", "__main__"):
        return "; it is a whole pickled model: where you trust it, open it with its own code and save model.state_dict()"
    if package in ("lightning", "lightning_fabric", "pytorch_lightning", "omegaconf"):
        return '; it holds settings too: where you trust it, save torch.load(FILE, weights_only=False)["state_dict"]'
    return ""


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
        if any(name.endswith("/constants.pkl") for name in inside):
            raise InputError(
                f"weights {path}: this is TorchScript, a program and not weights; where you trust it, save "
                "torch.jit.load(FILE).state_dict()"
            )
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


# --- loading --------------------------------------------------------------------------------------------------------


def load_weights(model, source, *, model_key="model|module", model_prefix=""):
    """Load `source` (see `fetch`) into the timm `model`; returns three lines: the source, its layout, what was done.

    model_key: see `read_weights`. model_prefix: is put before every name in the file.
    A classifier of another size is left as it is, and so is the final norm after FCMAE, which has none, or before a
    classifier that has a norm of its own (fc_norm), after MAE; the lines say so.
    Any other missing, unexpected or misshapen tensor is an InputError that names them, and the model stays untouched.
    """
    tensors, note = read_weights(fetch(source), model_key)
    tensors = {model_prefix + name: tensor for name, tensor in tensors.items()}
    try:
        tensors, layout, left_out = to_timm(tensors, model)
    except (RuntimeError, IndexError, ValueError) as error:  # kernels of no square side, say
        raise InputError(f"weights {source}: {why(error)}") from None
    if any(name.startswith(("decode_head.", "auxiliary_head.", "auxlayer.")) for name in tensors):
        raise InputError(f"weights {source}: this is a segmentation network; expected an image recognition model")

    wanted = model.state_dict()
    head = {n for n in wanted if n.startswith(tuple(f"{c}." for c in _classifiers(model)))}
    new = {n for n in wanted if n.endswith("num_batches_tracked") and n not in tensors}  # older torch had no such buffer
    if not head & set(tensors):  # after pretraining without labels a norm of the classifier's own starts anew
        of_head = {n for n in wanted if n.startswith("fc_norm.") and n not in tensors}
        before = [n for n in tensors if n.startswith("norm.") and n not in wanted] if of_head else []
        new, left_out = new | of_head, left_out + before
        tensors = {name: tensor for name, tensor in tensors.items() if name not in before}
    if head and any(n not in tensors or not same_but_for_ones(tensors[n], wanted[n]) for n in head):
        new |= head
        left_out += [name for name in tensors if name in head]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    if any(map(is_pretraining, left_out)):
        new |= {n for n in wanted if re.match(r"(?:head\.)?norm(?:_pre)?\.", n) and n not in tensors}
    if not head:  # a model without classifier takes the weights of one that has it
        of_head = [n for n in tensors if n not in wanted and re.match(r"(?:head\.fc|fc|head|classifier)\.(?:weight|bias)$", n)]
        left_out += of_head
        tensors = {name: tensor for name, tensor in tensors.items() if name not in of_head}
    loaded = put_in(model, tensors, source, layout, left_out, new)
    decoder = any(is_pretraining(name) and name != "mask_token" for name in left_out)
    parts = [note] * bool(note) + ["decoder left out"] * decoder + ["head new"] * bool(head & new)
    return [str(source), layout + (f"; {', '.join(parts)}" if parts else ""), loaded]


def why(error):
    """What an error of a conversion says: an InputError itself, others that the shapes are not the expected ones."""
    if isinstance(error, InputError):
        return str(error)
    return f"the tensors do not have the expected shapes ({first_line(error)})"


def _classifiers(model):
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head.fc"
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def rows_of_classes(model, number):
    """{name: tensor} of the classifiers of a timm model or a SegmentationNetwork, where a row is one of so many classes."""
    is_network = hasattr(model, "decode_head")
    parts = classifier_prefixes(model) if is_network else tuple(f"{name}." for name in _classifiers(model))
    return {n: t for n, t in model.state_dict().items() if n.startswith(parts) and t.shape[:1] == (number,)}


def sort_rows(model, before, own, classes):
    """Put the rows of the classifiers, which are of the classes `own`, into the order of `classes`; rows of others start anew.

    before: `rows_of_classes` of the model before loading, copied. Returns how many classes keep their rows.
    """
    place = {name: number for number, name in enumerate(own)}
    for name, rows in rows_of_classes(model, len(classes)).items():
        with torch.no_grad():  # in place: they are the model's own
            rows.copy_(torch.stack([rows[place[c]] if c in place else before[name][i] for i, c in enumerate(classes)]))
    return sum(name in place for name in classes)


def check_fit(what, missing, unexpected, misshapen, hint=""):
    """InputError that names the tensors, if there are any, and ends with the hint."""
    if missing or unexpected or misshapen:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        raise InputError(f"{what}: " + "; ".join(f"{fault} {some_names(names)}" for fault, names in found.items()) + hint)


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
    other = len(missing) + len(misshapen) > len(wanted) / 4 and unexpected  # not a part of it, such as its head
    hint = "; is it another --model?" if what == "model" else "; is it another --model or --backbone?"
    check_fit(f"weights {source} ({layout}) do not fit the {what}", missing, unexpected, misshapen, hint if other else "")
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
    return shape_but_for_ones(a) == shape_but_for_ones(b)


def some_names(names):
    """How many names, and the first four."""
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "none"
