"""WebDataset's shards: tar archives in which neighbours of one name, but for the endings, are one sample.

Read with the standard library, so that a label may be text and nothing in an archive is unpickled or unpacked to the disk.
A sample has an image (0001.jpg), for segmentation a mask (0001.mask.png, or 0001.png beside 0001.jpg), and for recognition
a label: 0001.cls, a whole number or a name, or "label" in 0001.json.
"""

import contextlib
import json
import os
import re
import tarfile

from utils.cli.errors import InputError, first_line
from utils.images import is_image

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_MASKS = ("mask", "seg", "segmentation", "label", "annotation")  # .png
_CODE = ("pkl", "pickle", "pyd", "pt", "pth")  # endings of what would be unpickled
_LARGEST = {"image": 1 << 30, "label": 1 << 20}  # bytes


def find(folder):
    """{split: [paths]} of train*.tar and val*.tar (or validation, test) in `folder`, or of tars in folders so named."""
    splits = {}
    for entry in sorted(os.listdir(folder)):
        path, split = os.path.join(folder, entry), _SPLITS.get(re.match(r"[A-Za-z]*", entry)[0].lower())
        if split and entry.endswith(".tar"):
            splits.setdefault(split, []).append(path)
        elif split and os.path.isdir(path):
            tars = sorted(name for name in os.listdir(path) if name.endswith(".tar"))
            splits.setdefault(split, []).extend(os.path.join(path, name) for name in tars)
    return {split: paths for split, paths in splits.items() if paths}


def hold_samples(splits):
    """Whether these are WebDataset's, with labels or masks, and no archives of another kind, such as of class folders."""
    return bool({"label", "mask"} & set(_features(splits)))


def table(splits, split):
    """datasets.Dataset with the columns image, and mask and label where there are such; in the library's cache."""
    import datasets

    features, kwargs = _features(splits), {"split": datasets.NamedSplit(split)}
    return datasets.Dataset.from_generator(read, features, gen_kwargs=_shards(splits[split], features), **kwargs)


def stream(splits, split):
    """As `table`, as a datasets.IterableDataset whose shards are the archives."""
    import datasets

    features = _features(splits)
    return datasets.IterableDataset.from_generator(read, features, gen_kwargs=_shards(splits[split], features))


def read(shards, columns):
    """Samples {column: value} of the archives, in order. shards: [(path, size, time)], which the library knows a cache by."""
    for path, *_ in shards:
        for tar, key, members in _samples(path):
            sample = {}
            for column, dtype in columns.items():
                member = members.get(column)
                if column != "label":
                    fits = member is not None and member.size <= _LARGEST["image"]
                    sample[column] = {"bytes": tar.extractfile(member).read() if fits else b"", "path": None}
                elif member is None:
                    raise InputError(f'{path}: {key} has no label; expected {key}.cls, or "label" in {key}.json')
                else:
                    sample[column] = _label(tar, member, path, dtype == "int64")
            yield sample


def scan(splits, split):
    """(number of samples, datasets.Dataset of the column label or None), from the headers and the labels only."""
    import datasets

    features, count, labels = _features(splits), 0, []
    for path in splits[split]:
        for tar, key, members in _samples(path):
            count += 1
            if "label" in features:
                if "label" not in members:
                    raise InputError(f'{path}: {key} has no label; expected {key}.cls, or "label" in {key}.json')
                labels.append(_label(tar, members["label"], path, features["label"].dtype == "int64"))
    if "label" not in features:
        return count, None
    return count, datasets.Dataset.from_dict({"label": labels}, datasets.Features(label=features["label"]))


def _shards(paths, features):
    stats = map(os.stat, paths)
    columns = {column: getattr(feature, "dtype", "") for column, feature in features.items()}
    shards = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]
    return {"shards": shards, "columns": columns}


def _features(splits):
    """datasets.Features by what the first sample has."""
    import datasets

    path = splits.get("train", next(iter(splits.values())))[0]
    features = datasets.Features(image=datasets.Image(decode=False))
    for tar, _, members in _samples(path):
        if "mask" in members:
            features["mask"] = datasets.Image(decode=False)
        if "label" in members:
            with contextlib.suppress(InputError):  # JSON without a label
                whole = re.fullmatch(r"-?\d+", _label(tar, members["label"], path, False))
                features["label"] = datasets.Value("int64" if whole else "string")
        break
    return features


def _samples(path):
    """(open archive, key, {"image", "mask", "label": member}) of each sample. InputError where it cannot be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, fields = None, {}
            for member in tar:
                base, _, name = member.name.rpartition("/")
                stem, _, field = name.partition(".")
                if not member.isreg() or not field or not stem or stem.startswith("__"):
                    continue
                if field.rpartition(".")[2].lower() in _CODE:
                    raise InputError(f"{path}: {member.name} may hold code, and was not opened; leave such files out of shards")
                if (base, stem) != key:
                    if fields:
                        yield tar, "/".join(filter(None, key)), _roles(fields)
                    key, fields = (base, stem), {}
                fields[field.lower()] = member
            if fields:
                yield tar, "/".join(filter(None, key)), _roles(fields)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a tar archive ({first_line(error)}); replace it") from None


def _roles(fields):
    """{"image", "mask", "label": member} of {ending: member}"""
    images = [field for field in fields if is_image(f"x.{field}")]
    masks = [field for field in images if field.partition(".")[0] in _MASKS]
    if not masks and len(images) > 1:
        masks = [field for field in images if field == "png"]
    chosen = {
        "image": [field for field in images if field not in masks],
        "mask": masks,
        "label": [field for field in ("cls", "json") if field in fields],
    }
    return {role: fields[those[0]] for role, those in chosen.items() if those}


def _label(tar, member, path, whole):
    """Text or, if `whole`, an int."""
    where = f"{path}: {member.name}"
    if member.size > _LARGEST["label"]:
        raise InputError(f"{where} has {member.size:,} bytes; expected a label")
    try:
        text = tar.extractfile(member).read().decode("utf-8").strip()
        label = text
        if member.name.lower().endswith(".json"):
            label = json.loads(text)["label"]
            if type(label) not in (str, int):
                raise TypeError
        return int(label) if whole else str(label)
    except (ValueError, KeyError, TypeError, RecursionError, tarfile.TarError):
        expected = "a whole number, as the first sample has" if whole else 'a name or a whole number, in JSON under "label"'
        raise InputError(f"{where}: found no label; expected {expected}") from None
