"""Resumable states that are whole or absent, and weights for others to open.

A state is a folder `update_00001234` with model.safetensors, optimizer.pt, state.json, perhaps ema.safetensors, and
manifest.json with the size and checksum of each. It is written aside, flushed to disk and then renamed. Nothing in
it is unpickled as code.
"""

import hashlib
import json
import os
import pathlib
import pickle
import shutil

import torch
from safetensors.torch import load_file, save_file

from utils.arguments import InputError

MANIFEST = "manifest.json"


def save_state(folder, update, model, optimizer, ema, state, keep):
    """Write the state after `update` updates below `folder` and delete all but the newest `keep`; returns its path.

    model, optimizer, ema: state dicts (ema may be None); state: what JSON can hold.
    """
    folder = pathlib.Path(folder)
    final, aside = folder / f"update_{update:08d}", folder / f"tmp-update_{update:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _save_tensors(model, aside / "model.safetensors")
    if ema is not None:
        _save_tensors(ema, aside / "ema.safetensors")
    torch.save(optimizer, aside / "optimizer.pt")
    (aside / "state.json").write_text(json.dumps(state, indent=1))
    manifest = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*aside.iterdir(), aside):
        _flush(path)
    if final.exists():  # the same update again, after a resume: the bits are the same
        shutil.rmtree(final)
    aside.rename(final)
    _flush(folder)
    for old in states(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def states(folder):
    """Paths of the states below `folder`, oldest first."""
    return sorted(pathlib.Path(folder).glob("update_*"))


def is_state(path):
    """Whether there is a state at `path`, whole or not."""
    return (pathlib.Path(path) / MANIFEST).is_file()


def newest_state(folder, say=print):
    """The newest state below `folder` that is whole, or None; broken ones are named and passed over."""
    for path in reversed(states(folder)):
        fault = find_fault(path)
        if fault is None:
            return path
        say(f"checkpoint {path} is broken ({fault}) and passed over")
    return None


def find_fault(path):
    """What is wrong with the state at `path` by its manifest, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest.items():
            if (path / name).stat().st_size != expected["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes, expected {expected['size']}"
            if _sha256(path / name) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load_state(path):
    """(model, optimizer, ema or None, state) of a state folder. Raises InputError where it is broken or none."""
    path = pathlib.Path(path)
    if not is_state(path):
        raise InputError(
            f"--resume {path}: found no {MANIFEST}; expected a folder such as RUN/checkpoints/update_00000100. Weights alone "
            "are started from with --finetune"
        )
    if fault := find_fault(path):
        raise InputError(f"--resume {path}: broken checkpoint ({fault}); choose another one")
    ema = load_file(path / "ema.safetensors") if (path / "ema.safetensors").exists() else None
    try:
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"--resume {path}: optimizer.pt holds more than tensors and numbers; it was not run") from None
    return load_file(path / "model.safetensors"), optimizer, ema, json.loads((path / "state.json").read_text())


def export_weights(folder, model, config):
    """Write model.safetensors and config.json, which timm ("local-dir:FOLDER") or open_network opens, by the config.

    Each file is replaced in one step; the old one stays until then.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (
        ("model.safetensors", lambda path: _save_tensors(model, path)),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=1))),
    ):
        aside = folder / f"tmp-{name}"
        write(aside)
        _flush(aside)
        aside.replace(folder / name)
    _flush(folder)


def _save_tensors(tensors, path):
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
