"""Resumable states that are whole or absent, and weights for others to open.

A state is a folder `update_00001234` with model.safetensors, optimizer.pt, state.json, config.json as beside other weights,
perhaps ema.safetensors, and manifest.json with the size and checksum of each. It is written aside, flushed to disk and then
renamed; a name that is taken gets a number, so that nothing whole has to go before its successor is there. Nothing in it is
unpickled as code.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from utils import files
from utils.cli.errors import InputError, first_line, one_line

MANIFEST = "manifest.json"
_NEEDED, _EMA = {"model.safetensors", "optimizer.pt", "state.json"}, "ema.safetensors"
_CONFIG = "config.json"  # states of before it have none
DISK_ERRORS = (OSError, RuntimeError, SafetensorError)  # how Python, torch and safetensors report a full disk


def save_state(folder, update, model, optimizer, ema, state, keep, config=None):
    """Write the state after `update` updates below `folder` and delete all but the newest `keep`; returns its path.

    model, optimizer, ema: state dicts (ema may be None); state: what JSON can hold; config: for config.json, which tells how
    the model looks at images. Raises OSError where it cannot be written, with all older states as they were and nothing left
    aside.
    """
    folder = pathlib.Path(folder)
    final = free_name(folder / f"update_{update:08d}")
    aside = folder / f"tmp-{final.name}"
    try:
        for left in folder.glob("tmp-*"):  # of a process that was killed while it saved
            shutil.rmtree(left)
        aside.mkdir(parents=True)
        _save_tensors(model, aside / "model.safetensors")
        if ema is not None:
            _save_tensors(ema, aside / "ema.safetensors")
        torch.save(optimizer, aside / "optimizer.pt")
        (aside / "state.json").write_text(json.dumps(state, indent=1))
        if config is not None:
            (aside / _CONFIG).write_text(json.dumps(config, indent=1))
        written = sorted(aside.iterdir())
        with concurrent.futures.ThreadPoolExecutor() as pool:  # the disk and the sums need not wait for each other
            flushed, sums = pool.map(files.flush, written), pool.map(_sha256, written)
            manifest = {
                path.name: {"size": path.stat().st_size, "sha256": digest}
                for path, digest, _ in zip(written, sums, flushed, strict=True)
            }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (aside / MANIFEST, aside):
            files.flush(path)
        aside.rename(final)
        final = _take_the_place(final, folder / f"update_{update:08d}")
        files.flush(folder)
    except DISK_ERRORS as error:
        shutil.rmtree(aside, ignore_errors=True)  # gives a full disk its room back
        raise OSError(f"{folder}: {first_line(error)}") from None
    left_behind = sorted(folder.glob("old-update_*"), key=lambda path: path.stat().st_mtime)
    for old in (*states(folder)[:-keep], *left_behind[:-keep]):
        shutil.rmtree(old, ignore_errors=True)
    return final


def _take_the_place(new, plain):
    """The state `new` instead of the one of the same update at `plain`; where that is interrupted, both are there and whole."""
    if new == plain:
        return new
    shutil.rmtree(plain)
    return new.rename(plain)


def states(folder):
    """Paths of the states below `folder`, oldest first."""
    found = [(re.fullmatch(r"update_(\d+)(?:-(\d+))?", path.name), path) for path in pathlib.Path(folder).glob("update_*")]
    return [path for _, path in sorted(((int(name[1]), int(name[2] or 1)), path) for name, path in found if name)]


def set_aside_newer(folder, state):
    """Rename the states below `folder` that are newer than `state`: broken ones, or those of a branch that is left.

    They would be taken for this run's newest later on. state: a path; where it is none of these, all are set aside. Returns
    whether there were any.
    """
    there = states(folder)
    names = [path.resolve() for path in there]
    first = names.index(state.resolve()) + 1 if state and state.resolve() in names else 0
    for path in there[first:]:
        path.rename(free_name(path.with_name(f"old-{path.name}")))
    return bool(there[first:])


def free_name(path):
    """`path`, or with -2, -3, … after it where that exists."""
    return next(p for n in range(1, 1_000_000) if not (p := path if n == 1 else path.with_name(f"{path.name}-{n}")).exists())


def is_state(path):
    """Whether there is a state at `path`, whole or not."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def newest_state(folder, say=print):
    """The newest state below `folder` that is whole, or None; broken ones are named and passed over."""
    for path in reversed(states(folder)):
        fault = find_fault(path)
        if fault is None:
            return path
        say(one_line(f"checkpoint {path} is broken ({fault}) and passed over"))
    return None


def find_fault(path):
    """What is wrong with the state at `path` by its manifest, or None."""
    try:
        if not is_state(path):  # a pipe would be waited for
            return f"found no {MANIFEST}"
        manifest = json.loads((path / MANIFEST).read_text())
        there = {name for name in (*_NEEDED, _EMA, _CONFIG) if os.path.isfile(path / name) and not os.path.islink(path / name)}
        if set(manifest) != there or not there >= _NEEDED:  # other names could lead anywhere
            return f"found {', '.join(sorted(there)) or 'no files'}; {MANIFEST} names {', '.join(manifest) or 'none'}"
        for name, expected in manifest.items():
            if (path / name).stat().st_size != expected["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes, expected {expected['size']}"
            if _sha256(path / name) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def check(path):
    """InputError where there is no whole state at `path`."""
    path = pathlib.Path(path)
    if not is_state(path):
        raise InputError(
            f"--resume {path}: found no {MANIFEST}; expected a folder such as RUN/checkpoints/update_00000100. Weights alone "
            "are started from with --finetune"
        )
    if fault := find_fault(path):
        raise InputError(f"--resume {path}: broken checkpoint ({fault}); choose another one")


def load_state(path):
    """(model, optimizer, ema or None, state) of a state folder that `check` found whole. Raises InputError where it is not."""
    path = pathlib.Path(path)
    try:
        ema = load_file(path / _EMA) if (path / _EMA).exists() else None
        model = load_file(path / "model.safetensors")
        state = json.loads((path / "state.json").read_text())
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"--resume {path}: optimizer.pt holds more than tensors and numbers; it was not run") from None
    except Exception as error:  # damaged before the checksums were taken: the readers raise any kind
        raise InputError(f"--resume {path}: broken checkpoint ({first_line(error)}); choose another one") from None
    return model, optimizer, ema, state


def export_weights(folder, model, config):
    """Write model.safetensors and config.json, which timm ("local-dir:FOLDER") or open_network opens, by the config.

    Each file is replaced in one step; the old one stays until then. Raises OSError where that cannot be done.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.replace(folder / "model.safetensors") as aside:
            _save_tensors(model, aside)
        files.write_json(folder / "config.json", config)
        files.flush(folder)
    except DISK_ERRORS as error:
        raise OSError(f"{folder}: {first_line(error)}") from None


def _save_tensors(tensors, path):
    path.touch()
    mode = path.stat().st_mode  # as of every other file; safetensors leaves it to be read by its owner alone
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
