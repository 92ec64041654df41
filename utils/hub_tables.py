"""Tables through the library `datasets`: their splits, and which column holds what."""

import os

from utils.arguments import InputError, first_line


def load_splits(name, val_split=None):
    """(splits, name of the held-out split or None) of a Hub name or a folder of Parquet, Arrow or image files.

    Raises InputError where it cannot be loaded, has no split train, or where `val_split` (a share to hold out) does not
    go with the splits that are there.
    """
    import datasets

    try:
        saved = os.path.isdir(name) and ({"dataset_dict.json", "state.json"} & set(os.listdir(name)))
        splits = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen kinds, from missing files to no network
        raise InputError(f"--dataset {name}: the library datasets cannot load it ({first_line(error)})") from None
    if isinstance(splits, datasets.Dataset):
        splits = {"train": splits}
    if "train" not in splits:
        raise InputError(f"--dataset {name}: found the splits {', '.join(splits)}; expected one named train")
    held_out = next((split for split in ("validation", "val", "valid", "test") if split in splits), None)
    if val_split is not None and held_out:
        raise InputError(f"--val_split {val_split}: the data set has a split '{held_out}' already; leave it out")
    if val_split is None and held_out is None:
        raise InputError(f"--dataset {name}: found only the split train; give --val_split 0.1 to hold out a part of it")
    return splits, held_out


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


def holds_images(feature):
    """Whether a column of this type can hold images."""
    import datasets

    is_bytes = isinstance(feature, dict) and "bytes" in feature  # how Parquet without metadata shows an image
    return isinstance(feature, datasets.Image) or is_bytes or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _type_name(feature):
    return "struct" if isinstance(feature, dict) else getattr(feature, "dtype", type(feature).__name__)
