"""Which files a data set of the library `datasets` may name: those in its folder and those in the libraries' caches.

Data sets are often somebody else's. Cards, saved tables and rows can name any file of this machine, so that whoever looks at
the images, or at what a model learned from them, could read it.
"""

import functools
import json
import os
import zipfile

from utils.cli.errors import InputError, first_line

LARGEST = 1 << 30  # bytes of an image in an archive


def check_card(folder):
    """Raise InputError if the card of a data set in `folder` names files outside of it."""
    import yaml
    from huggingface_hub import DatasetCard

    cards = []
    if os.path.isfile(readme := os.path.join(folder, "README.md")):
        cards.append(DatasetCard.load(readme).data.to_dict())
    if os.path.isfile(config := os.path.join(folder, ".huggingface.yaml")):
        with open(config, encoding="utf-8") as file:
            cards.append(yaml.safe_load(file) or {})
    for entry in (entry for card in cards for entry in card.get("configs") or []):
        for path in _words([entry.get("data_files"), entry.get("data_dir")]):
            if "::" in path or "://" in path or path.startswith("~") or not lies_in(os.path.join(folder, path), folder):
                raise InputError(f"--dataset {folder}: its card asks for {path}, outside of it; nothing of that was opened")


def _words(value):
    """The strings in nested lists and dicts."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for part in parts for word in _words(part)]


def check_saved(folder):
    """Raise InputError if a data set that was saved to `folder` names files outside of it."""
    splits = [folder]
    if os.path.isfile(record := os.path.join(folder, "dataset_dict.json")):
        with open(record, encoding="utf-8") as file:
            splits = [os.path.join(folder, split) for split in json.load(file)["splits"]]
    for split in splits:
        with open(os.path.join(split, "state.json"), encoding="utf-8") as file:
            names = [entry["filename"] for entry in json.load(file)["_data_files"]]
        check_files([os.path.join(split, name) for name in ("state.json", "dataset_info.json", *names)], folder)


def check_files(files, folder):
    """Raise InputError if one of the files does not lie in `folder`, all links followed; None: in the libraries' caches."""
    files = list(files)
    links = [file for file in files if os.path.islink(file)]
    for file in (*links, *{os.path.dirname(file) for file in files}):  # not every file: an imagefolder has a million
        if not lies_in(file, folder) and (folder or "://" not in file):
            raise InputError(f"--dataset {folder or 'of the Hub'}: it names {file}, outside of it; nothing of that was opened")


def lies_in(path, folder):
    """Whether `path` lies in `folder`, all links followed. If that is None, or lies in a library's cache: in a cache."""
    if "\0" in path:
        return False
    path, folders = os.path.realpath(path), _caches()
    if folder is not None:
        folder = os.path.realpath(folder)
        if not any(_is_below(folder, cache) for cache in folders):
            folders = [folder]
    return any(_is_below(path, parent) for parent in folders)


def _is_below(path, folder):
    return os.path.commonpath([path, folder]) == folder


@functools.cache
def _caches():
    """Real paths of the folders that the libraries `datasets` and `huggingface_hub` download to."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [os.path.realpath(folder) for folder in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)]


def encoded_image(value, root, name):
    """The bytes of an image file from the value of a column that was cast to datasets.Image(decode=False).

    value: {"bytes": …, "path": …}. A path is a file in the folder `root`, or in the libraries' caches if `root` is None; or
    zip://FILE::ARCHIVE, as the library writes a file in such an archive. Raises InputError, which begins with `name`, if
    there are no bytes and the path leads elsewhere or cannot be read.
    """
    value = value if isinstance(value, dict) else {}
    encoded, path = value.get("bytes"), value.get("path")
    if isinstance(encoded, bytes):
        return encoded
    if not isinstance(path, str):
        raise InputError(f"{name}: found neither bytes nor a path; expected an image")
    packed, _, archive = path.removeprefix("zip://").partition("::") if path.startswith("zip://") else ("", "", path)
    file = os.path.join(root or "", archive)
    if not lies_in(file, root):
        raise InputError(f"{name}: its path {path} leads outside of the data set; put the file or its bytes into it")
    if not os.path.isfile(file):
        raise InputError(f"{name}: no file {path} in the data set")
    try:
        if packed:
            with zipfile.ZipFile(file) as opened:
                if opened.getinfo(packed).file_size > LARGEST:
                    raise InputError(f"{name}: {path} unpacks to {opened.getinfo(packed).file_size:,} bytes; expected an image")
                return opened.read(packed)
        with open(file, "rb") as opened:
            return opened.read()
    except InputError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise InputError(f"{name}: {path} cannot be read ({first_line(error)})") from None
