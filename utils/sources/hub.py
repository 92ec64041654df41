"""Tables through the library `datasets`: their splits, and which column holds what."""

import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import zipfile
from typing import Any, NamedTuple

from utils.cli.errors import InputError, first_line, one_line
from utils.images import is_image
from utils.sources import tar as tar_shards

_LARGEST = 1 << 30  # bytes of an image in an archive


def load_splits(name, val_split=None):
    """(splits, name of the held-out split or None) of a Hub name or a folder of Parquet, Arrow, image or WebDataset files.

    Data sets are often somebody else's: one in a folder may name files in it only, and no code of it is run.

    Raises InputError where it cannot be loaded, has no split train, or where `val_split` (a share to hold out) does not
    go with the splits that are there.
    """
    with _loading(name):
        splits = _load(name)
    held_out = _held_out(name, splits)
    if val_split is not None and held_out:
        raise InputError(f"--val_split {val_split}: the data set has a split '{held_out}' already; leave it out")
    if val_split is None and held_out is None:
        raise InputError(f"--dataset {name}: found only the split train; give --val_split 0.1 to hold out a part of it")
    return splits, held_out


def _load(name):
    """{split: table}"""
    import datasets

    if _is_saved(name):
        _check_saved(name)
        splits = datasets.load_from_disk(name)
        splits = {"train": splits} if isinstance(splits, datasets.Dataset) else splits
    elif shards := _tar_shards(name):
        splits = {split: tar_shards.table(shards, split) for split in shards}
    else:
        builder = _checked_builder(name)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    return {split: table.with_format(None) for split, table in splits.items()}


def _is_saved(name):
    """Whether this is a folder that the library saved a data set to."""
    return os.path.isdir(name) and bool({"dataset_dict.json", "state.json"} & set(os.listdir(name)))


def _tar_shards(name):
    """{split: [paths]} of WebDataset's shards in a folder, else {}"""
    shards = tar_shards.find(name) if os.path.isdir(name) else {}
    for files in shards.values():
        _check_files(files, name)
    return shards if shards and tar_shards.hold_samples(shards) else {}


def _checked_builder(name):
    """The library's builder for a Hub name or folder, once all the files that it would open are known to be in their place."""
    import datasets

    folder = name if os.path.isdir(name) else None
    if folder:
        _check_card(folder)
    builder = datasets.load_dataset_builder(name)
    for files in (builder.config.data_files or {}).values():
        _check_files(map(str, files), folder)
    return builder


@contextlib.contextmanager
def _loading(name):
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen kinds, from missing files to no network
        raise InputError(
            f"--dataset {name}: the library datasets cannot load it ({first_line(error.__cause__ or error)})"
        ) from None


def _held_out(name, splits):
    """The split of `splits` to validate on, or None. InputError where there is none to train on."""
    if "train" not in splits:
        raise InputError(f"--dataset {name}: found the splits {', '.join(splits)}; expected one named train")
    return next((split for split in ("validation", "val", "valid", "test") if split in splits), None)


# --- streams --------------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """Training data that is read in order, and validation data that is an ordinary table."""

    table: Any  # datasets.IterableDataset
    samples: int  # that `table` has
    val_table: Any  # datasets.Dataset
    held_out: str  # the name of its split
    labels: Any  # column -> datasets.Dataset of this column of the training data, or None where that is not cheap


def open_stream(name, train_images=None):
    """The `Stream` of what `load_splits` loads. Only its validation split is downloaded and prepared as a whole.

    train_images: how many there are, for data whose number is not written anywhere. Raises InputError as `load_splits`.
    """
    with _loading(name):
        if _is_saved(name):
            stream = _saved_stream(name)
        elif shards := _tar_shards(name):
            stream = _tar_stream(name, shards, train_images)
        else:
            stream = _built_stream(name, _checked_builder(name), train_images)
    samples = train_images or stream.samples
    if not samples:
        raise InputError(f"--dataset {name} --streaming: how many training images there are is not written in it; give "
                         "--train_images N")  # fmt: skip
    if stream.table.features is None:
        raise InputError(f"--dataset {name} --streaming: its columns are not known beforehand; leave out --streaming")
    return stream._replace(table=stream.table.with_format(None), val_table=stream.val_table.with_format(None), samples=samples)


def _need_held_out(name, splits):
    if (held_out := _held_out(name, splits)) is None:
        raise InputError(f"--dataset {name} --streaming: found only the split train; expected one named validation or test")
    return held_out


def _saved_stream(name):
    splits = _load(name)
    held_out = _need_held_out(name, splits)
    train = splits["train"]
    table = train.to_iterable_dataset(num_shards=max(1, min(64, len(train))))
    return Stream(table, len(train), splits[held_out], held_out, lambda column: train.select_columns([column]))


def _tar_stream(name, shards, train_images):
    held_out = _need_held_out(name, shards)
    scan = functools.cache(lambda: tar_shards.scan(shards, "train"))  # reads all headers: not where it is not needed
    tables = tar_shards.stream(shards, "train"), tar_shards.table(shards, held_out)
    return Stream(tables[0], train_images or scan()[0], tables[1], held_out, lambda _: scan()[1])


def _built_stream(name, builder, train_images):
    import datasets

    streams = builder.as_streaming_dataset()
    held_out, files = _need_held_out(name, streams), builder.config.data_files
    samples, labels = train_images, lambda column: None
    if builder.name == "parquet":
        samples = samples or _parquet_rows(files["train"])
        if os.path.isdir(name):
            labels = functools.partial(_parquet_column, files["train"])
    elif not samples and builder.info.splits:
        samples = builder.info.splits["train"].num_examples
    elif not samples and builder.name == "imagefolder" and all(map(is_image, files["train"])):
        samples = len(files["train"])
    features, options = streams["train"].features or {}, {}
    if builder.name == "parquet":
        options["features"] = features  # the card may know more of them than the files
    if builder.name == "imagefolder" and "label" in features:
        options["drop_labels"] = False  # also where the split has one class only
    held = datasets.load_dataset_builder(builder.name, data_files={held_out: list(files[held_out])}, **options)
    held.download_and_prepare()
    return Stream(streams["train"], samples, held.as_dataset(held_out), held_out, labels)


def _parquet_rows(files):
    """Rows of Parquet files, here or behind hf://, from their last bytes."""
    import fsspec
    import pyarrow.parquet

    def rows(path):
        with fsspec.open(path, "rb") as file:
            return pyarrow.parquet.read_metadata(file).num_rows

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return sum(pool.map(rows, files))


def _parquet_column(files, column):
    import datasets

    return datasets.Dataset.from_parquet(list(files), columns=[column])


def find_column(table, wanted, what, fits, usual):
    """`wanted` if it is a column of `table`, else the one that `fits` by its type, the `usual` names first."""
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in table.features.items())
    if wanted:
        if wanted not in table.column_names:
            raise InputError(f"--{what}_column {wanted}: no such column; found {columns}")
        return wanted
    fitting = [name for name, feature in table.features.items() if fits(feature)]
    usual = [name for name in usual if name in fitting]
    if usual or len(fitting) == 1:
        return (usual or fitting)[0]
    raise InputError(f"which column holds the {what}s? found {columns}; name it with --{what}_column")


def encoded_images(table, *columns, beside=()):
    """`table` with these columns only, undecoded: what is in a row is for `encoded_image`. beside: columns kept as they are."""
    import datasets

    table = table.select_columns([*columns, *beside])
    for column in columns:
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except Exception as error:  # of the library's and Arrow's many kinds
            raise InputError(f"column '{column}' holds no images ({first_line(error)}); name another one") from None
    return table


def encoded_image(value, root, name):
    """The bytes of an image file, from what a column cast to datasets.Image(decode=False) holds: {"bytes", "path"}.

    A path is followed only to a file inside the folder `root`, or inside the libraries' caches where `root` is None: a
    file's, or zip://FILE::ARCHIVE, as the library has it. `name`: of the sample, for the InputError if there are no bytes.
    """
    value = value if isinstance(value, dict) else {}
    encoded, path = value.get("bytes"), value.get("path")
    if isinstance(encoded, bytes):
        return encoded
    if not isinstance(path, str):
        raise InputError(f"{name}: found neither bytes nor a path; expected an image")
    packed, _, archive = path.removeprefix("zip://").partition("::") if path.startswith("zip://") else ("", "", path)
    file = os.path.join(root or "", archive)
    if not _lies_in(file, root):
        raise InputError(f"{name}: its path {path} leads outside of the data set; put the file or its bytes into it")
    if not os.path.isfile(file):
        raise InputError(f"{name}: no file {path} in the data set")
    try:
        if packed:
            with zipfile.ZipFile(file) as opened:
                if opened.getinfo(packed).file_size > _LARGEST:
                    raise InputError(f"{name}: {path} unpacks to {opened.getinfo(packed).file_size:,} bytes; expected an image")
                return opened.read(packed)
        with open(file, "rb") as opened:
            return opened.read()
    except InputError:
        raise
    except Exception as error:  # damaged archives make zipfile raise many kinds
        raise InputError(f"{name}: {path} cannot be read ({first_line(error)})") from None


def listed_classes(name, most=1_000_000):
    """The names in classes.txt, one a line, beside the data in the folder `name`; None where there is no such file."""
    path = os.path.join(name, "classes.txt")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            names = [one_line(line, 200) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({first_line(error)}); expected a name on each line") from None
    if not 2 <= len(names) <= most:
        raise InputError(f"{path}: found {len(names)} names, expected two classes at least, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name, times in collections.Counter(names).items() if times > 1)
        raise InputError(f"{path}: {twice} is in it more than once; expected each class on one line")
    return names


# --- what a data set may name ---------------------------------------------------------------------------------------


def _check_card(folder):
    """InputError where the card of a local data set names files elsewhere; a card is somebody else's to write."""
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
            if "::" in path or "://" in path or path.startswith("~") or not _lies_in(os.path.join(folder, path), folder):
                raise InputError(f"--dataset {folder}: its card asks for {path}, outside of it; nothing of that was opened")


def _words(value):
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [word for part in parts for word in _words(part)]


def _check_saved(folder):
    """InputError where the records of a data set that was saved to disk name files elsewhere."""
    splits = [folder]
    if os.path.isfile(record := os.path.join(folder, "dataset_dict.json")):
        with open(record, encoding="utf-8") as file:
            splits = [os.path.join(folder, split) for split in json.load(file)["splits"]]
    for split in splits:
        with open(os.path.join(split, "state.json"), encoding="utf-8") as file:
            names = [entry["filename"] for entry in json.load(file)["_data_files"]]
        _check_files([os.path.join(split, name) for name in ("state.json", "dataset_info.json", *names)], folder)


def _check_files(files, folder):
    """InputError for a file that does not lie in `folder`, after all links; with None, in the libraries' caches."""
    files = list(files)
    links = [file for file in files if os.path.islink(file)]
    for file in (*links, *{os.path.dirname(file) for file in files}):  # an imagefolder has a million files
        if not _lies_in(file, folder) and (folder or "://" not in file):
            raise InputError(f"--dataset {folder or 'of the Hub'}: it names {file}, outside of it; nothing of that was opened")


def _lies_in(path, folder):
    """Whether `path` lies in `folder` after all links; with None, or where that lies in a cache, in one of the caches."""
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


# --- columns --------------------------------------------------------------------------------------------------------


def holds_images(feature):
    """Whether a column of this type can hold images."""
    import datasets

    is_bytes = isinstance(feature, dict) and "bytes" in feature  # how Parquet without metadata shows an image
    return isinstance(feature, datasets.Image) or is_bytes or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _type_name(feature):
    return "struct" if isinstance(feature, dict) else getattr(feature, "dtype", type(feature).__name__)
