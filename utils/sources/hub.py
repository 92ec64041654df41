"""Data sets of the library `datasets`: their splits, as tables or as a stream to train on, and their columns.

A data set is a name on the Hub, or a folder of Parquet, Arrow, image or WebDataset files. No code of it is run, and it can
name files in its own folder only.
"""

import concurrent.futures
import contextlib
import functools
import os
import re
from typing import Any, NamedTuple

from utils.cli.arguments import split_flag
from utils.cli.errors import InputError, first_line
from utils.folders.names import test_note
from utils.images.formats import is_image
from utils.sources import tar
from utils.sources.hub_files import check_card, check_files, check_saved

HELD_OUT = ("validation", "val", "valid", "test")  # names of the split to validate on, the first that there is


def load_splits(name, val_split=None, need_train=True, labelled=None):
    """({split: datasets.Dataset}, name of the validation split or None, lines to say) of the data set `name`.

    Raises InputError if it cannot be loaded or has no split train, and if there are both a validation split and a
    `val_split`, the fraction of train to hold out, or neither of the two. need_train: otherwise the validation split stands
    for a training split that is missing. labelled: table -> whether it has labels; a split without them is not validated on.
    """
    with _loading(name):
        splits = _load(name)
    notes = []
    if labelled and need_train and "train" in splits:
        for split in [split for split in HELD_OUT if split in splits]:
            if not len(splits[split]) or not labelled(splits[split]):
                notes.append(f"data: the split {split} has no labels, so that it is left out")
                del splits[split]
    if not need_train and (held_out := next((split for split in HELD_OUT if split in splits), None)):
        splits.setdefault("train", splits[held_out])
    held_out = _validation_split(name, splits)
    if val_split is not None and held_out == "test":
        held_out = None
    if val_split is not None and held_out:
        raise InputError(f"{split_flag(val_split)}: the data set has a split '{held_out}' already; leave it out")
    if val_split is None and held_out is None:
        raise InputError(f"--dataset {name}: found only the split train; give --val_split 0.1 to hold out a part of it")
    if held_out == "test" and need_train:
        notes.append(test_note("test"))
    return splits, held_out, tuple(notes)


def _load(name):
    """{split: table}"""
    import datasets

    if _is_saved(name):
        check_saved(name)
        splits = datasets.load_from_disk(name)
        splits = {"train": splits} if isinstance(splits, datasets.Dataset) else splits
    elif shards := _tar_shards(name):
        splits = {split: tar.table(shards, split) for split in shards}
    else:
        builder = _checked_builder(name)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    return {split: table.with_format(None) for split, table in splits.items()}


def _is_saved(name):
    """Whether `name` is a folder that the library saved a data set to."""
    return os.path.isdir(name) and bool({"dataset_dict.json", "state.json"} & set(os.listdir(name)))


def _tar_shards(name):
    """{split: [paths]} of the WebDataset shards in a folder; {} if it has none."""
    shards = tar.find(name) if os.path.isdir(name) else {}
    for files in shards.values():
        check_files(files, name)
    return shards if shards and tar.hold_samples(shards) else {}


def _checked_builder(name):
    """The library's builder of a data set, after a check of all files that it would open."""
    import datasets

    folder = name if os.path.isdir(name) else None
    if folder:
        check_card(folder)
    builder = datasets.load_dataset_builder(name)
    for files in (builder.config.data_files or {}).values():
        check_files(map(str, files), folder)
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


def _validation_split(name, splits):
    """The split to validate on, or None if there is only train. Raises InputError if there is no split train."""
    if "train" not in splits:
        raise InputError(f"--dataset {name}: found the splits {', '.join(splits)}; expected one named train")
    return next((split for split in HELD_OUT if split in splits), None)


# --- streams --------------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """Training data that is read in order, and validation data that is an ordinary table."""

    table: Any  # datasets.IterableDataset
    samples: int  # number of training samples
    val_table: Any  # datasets.Dataset
    held_out: str  # name of the validation split
    splits: Any  # names of all splits
    labels: Any  # column -> datasets.Dataset of this column of the training data; None if that needs all of the data


def open_stream(name, train_images=None, say=print):
    """The `Stream` of the data set `name`. Only its validation split is downloaded and prepared as a whole.

    train_images: number of training samples, for data that does not tell. say: told what becomes of a split test, and of images
    that this number leaves out. Raises InputError as `load_splits` does, and if
    there is no validation split, or the number or the columns are not known.
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
        raise InputError(f"--dataset {name} --streaming: it does not tell its number of training images; give --train_images N")
    if samples < (stream.samples or 0):
        say(f"warning: --train_images {samples}: the data has {stream.samples:,} training images; an epoch reads the first of "
            "them only, and without many shards the same ones each time; leave the flag out")  # fmt: skip
    if stream.held_out == "test":
        say("note: the split test is validated on, so that its score is no test; --streaming holds nothing out of train")
    elif "test" in stream.splits:
        say("note: the split test is not read: --streaming trains on train and scores the validation split")
    if stream.table.features is None:
        raise InputError(f"--dataset {name} --streaming: its columns are not known beforehand; leave out --streaming")
    return stream._replace(table=stream.table.with_format(None), val_table=stream.val_table.with_format(None), samples=samples)


def _need_validation_split(name, splits):
    if (held_out := _validation_split(name, splits)) is None:
        raise InputError(f"--dataset {name} --streaming: found only the split train; expected one named validation or test")
    return held_out


def _saved_stream(name):
    splits = _load(name)
    held_out = _need_validation_split(name, splits)
    train = splits["train"]
    table = train.to_iterable_dataset(num_shards=max(1, min(64, len(train))))
    return Stream(table, len(train), splits[held_out], held_out, list(splits), lambda column: train.select_columns([column]))


def _tar_stream(name, shards, train_images):
    held_out = _need_validation_split(name, shards)
    scan = functools.cache(lambda: tar.scan(shards, "train"))  # reads all headers, so only if it is needed
    tables = tar.stream(shards, "train"), tar.table(shards, held_out)
    return Stream(tables[0], train_images or scan()[0], tables[1], held_out, list(shards), lambda _: scan()[1])


def _built_stream(name, builder, train_images):
    import datasets

    streams = builder.as_streaming_dataset()
    held_out, files = _need_validation_split(name, streams), builder.config.data_files
    samples, labels = None, lambda column: None
    if builder.name == "parquet":
        if os.path.isdir(name) or not train_images:  # far away they take time to be counted
            samples = _parquet_rows(files["train"])
        if os.path.isdir(name):
            labels = functools.partial(_parquet_column, files["train"])
    elif builder.info.splits:
        samples = builder.info.splits["train"].num_examples
    elif builder.name == "imagefolder" and all(map(is_image, files["train"])):
        samples = len(files["train"])
    features, options = streams["train"].features or {}, {}
    if builder.name == "parquet":
        options["features"] = features  # the card may know more of them than the files
    if builder.name == "imagefolder" and "label" in features:
        options["drop_labels"] = False  # also if the split has one class only
    held = datasets.load_dataset_builder(builder.name, data_files={held_out: list(files[held_out])}, **options)
    held.download_and_prepare()
    return Stream(streams["train"], samples, held.as_dataset(held_out), held_out, list(streams), labels)


def _parquet_rows(files):
    """The number of rows of Parquet files, here or behind hf://, from the last bytes of each."""
    import fsspec
    import pyarrow.parquet

    def rows(path):
        with fsspec.open(path, "rb") as file:
            return pyarrow.parquet.read_metadata(file).num_rows

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return sum(pool.map(rows, files))


def _parquet_column(files, column):
    import datasets

    try:
        return datasets.Dataset.from_parquet(list(files), columns=[column])
    except Exception as error:  # of the library's and Arrow's many kinds
        reason = first_line(error.__cause__ or error)
        raise InputError(f"column {column} of {files[0]} and its like cannot be read ({reason}): repair the files") from None


# --- columns --------------------------------------------------------------------------------------------------------


def find_column(table, wanted, what, fits, usual):
    """The name of the column with the images, labels or masks (`what`): `wanted`, or the one whose type fits.

    fits: type of a column -> whether it can be the one. usual: names that decide between several that fit, the first one
    first. Raises InputError, which lists the columns, if there is none, or more than one.
    """
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


def check_columns(name, table, split, columns):
    """Raise InputError if the table of a `split` lacks one of the columns, which were found in train."""
    if lacking := [column for column in columns if column not in table.column_names]:
        raise InputError(f"--dataset {name}: split {split} has no column '{lacking[0]}', as train has")


def holds_images(feature):
    """Whether a column of this type can hold images."""
    import datasets

    is_bytes = isinstance(feature, dict) and "bytes" in feature  # how Parquet without metadata shows an image
    return isinstance(feature, datasets.Image) or is_bytes or getattr(feature, "dtype", "") in ("binary", "large_binary")


def holds_labels(feature):
    """Whether a column of this type can hold labels: whole numbers or names. pandas 3 and Polars write large strings."""
    import datasets

    numbers_or_names = re.fullmatch(r"u?int\d+|(large_)?string(_view)?", getattr(feature, "dtype", ""))
    return isinstance(feature, datasets.ClassLabel) or bool(numbers_or_names)


def _type_name(feature):
    return "struct" if isinstance(feature, dict) else getattr(feature, "dtype", type(feature).__name__)


def encoded_images(table, columns, beside=()):
    """`table` with these columns of images only, not decoded: `hub_files.encoded_image` reads their values.

    beside: columns that are kept as they are. Raises InputError for a column that holds no images.
    """
    import datasets

    table = table.select_columns([*columns, *beside])
    for column in columns:
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except Exception as error:  # the library and Arrow raise many kinds
            raise InputError(f"column '{column}' holds no images ({first_line(error)}); name another one") from None
    return table
