"""WebDataset's shards: tar archives in which neighbouring files whose names differ in the endings only are one sample.

A sample has an image (0001.jpg), for segmentation a mask (0001.mask.png, or 0001.png beside 0001.jpg), and for recognition a
label: a whole number or a name in 0001.cls, or under "label" in 0001.json. The standard library reads them, so that a label
may be text, and that nothing is unpickled or unpacked to the disk.
"""

import contextlib
import json
import os
import re
import tarfile

from utils.cli.errors import InputError, first_line
from utils.images.formats import is_image

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_MASKS = ("mask", "seg", "segmentation", "label", "annotation")  # .png
_CODE = ("pkl", "pickle", "pyd", "pt", "pth")  # endings of files that the library would unpickle
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
    """Whether these archives have samples with labels or masks. Others, such as class folders in a tar, have not."""
    return bool({"label", "mask"} & set(_features(splits)))


def table(splits, split):
    """datasets.Dataset, in the library's cache, with the column image and, as far as the first sample has them, mask and label.

    splits: as of `find`. Raises InputError for archives that cannot be read.
    """
    import datasets

    features, kwargs = _features(splits), {"split": datasets.NamedSplit(split)}
    return datasets.Dataset.from_generator(read, features, gen_kwargs=_shards(splits[split], features), **kwargs)


def stream(splits, split):
    """As `table`, as a datasets.IterableDataset whose shards are the archives."""
    import datasets

    features = _features(splits)
    return datasets.IterableDataset.from_generator(read, features, gen_kwargs=_shards(splits[split], features))


def read(shards, columns):
    """Generates the samples {column: value} of the archives, in order.

    shards: [(path, bytes, time of change)]; the library keys its cache by them. columns: {name: dtype}.
    """
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
    """(number of samples, datasets.Dataset of the column label or None). Reads headers and labels only."""
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
    """The datasets.Features of the first sample."""
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
    """Generates (open archive, key, {"image", "mask", "label": member}). Raises InputError if the archive cannot be read."""
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
                        yield tar, _name(key), _roles(path, _name(key), fields)
                    key, fields = (base, stem), {}
                fields[field.lower()] = member
            if fields:
                yield tar, _name(key), _roles(path, _name(key), fields)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a tar archive ({first_line(error)}); replace it") from None


def _name(key):
    return "/".join(filter(None, key))


def _roles(path, name, fields):
    """{"image", "mask", "label": member} from the {ending: member} of a sample. Raises InputError for two images or masks."""
    images = [field for field in fields if is_image(f"x.{field}")]
    masks = [field for field in images if field.partition(".")[0] in _MASKS]
    if not masks and len(images) > 1:
        masks = [field for field in images if field == "png"]
    others = [field for field in images if field not in masks]
    chosen = {
        "image": [field for field in others if "." not in field] or others,  # 1.jpg beside 1.depth.png
        "mask": masks,
        "label": [field for field in ("cls", "json") if field in fields],
    }
    for role in ("image", "mask"):
        if len(those := chosen[role]) > 1:
            found = f"{name} has {len(those)} {role}s, {name}.{those[0]} and {name}.{those[1]}"
            raise InputError(
                f"{path}: {found}; expected one: a name goes to its first dot, so leave other dots out of it, and call a mask "
                f".png beside .jpg, or .{_MASKS[0]}.png"
            )
    return {role: fields[those[0]] for role, those in chosen.items() if those}


def _label(tar, member, path, whole):
    """The label in `member`: text or, if `whole`, an int. Raises InputError if there is none."""
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
