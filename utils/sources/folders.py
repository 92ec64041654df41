"""Own data in folders: for recognition one folder per class, for segmentation images/ beside masks/, and their classes."""

import collections
import functools
import os
import pathlib

import numpy as np

from utils.cli.errors import InputError, choose_one, did_you_mean, first_line, one_line
from utils.data.bad_samples import in_threads
from utils.data.masks import fit_image, own_tables, read_values, to_classes, voc_palette
from utils.data.sampling import spread, stratified_split
from utils.data.string_list import StringList
from utils.images import is_image, read_bytes, read_image
from utils.sources.folder_index import index_folder

SAMPLE = 200  # masks that are read to count the classes if classes.txt does not list them
MOST_CLASSES = 65_535  # ids in masks of 16 bits; 65535 is no class

# --- recognition: one folder per class ------------------------------------------------------------------------------


class Folder:
    """A source of recognition: image files below the folder `root`, `paths` from there on, labels (N,) int64."""

    def __init__(self, root, paths, labels, classes):
        self.root, self.title = root, root
        self.paths = paths if isinstance(paths, StringList) else StringList(paths)
        self.labels, self.classes = np.asarray(labels, dtype=np.int64), classes

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return read_image(self.name(index))

    def encoded(self, index):
        return read_bytes(self.name(index))

    def name(self, index):
        return os.path.join(self.root, self.paths[index])


def class_folders(data_path, eval_data_path=None, val_split=None, seed=0, need_val=True, need_train=True):
    """(training, validation) from `data_path` with train/ and val/, from two trees, or from one tree and `val_split`.

    val_split: the fraction of each class that is held out, keyed by `seed`. Without `need_val` the validation tree may be
    missing; the source then has no images. need_train: True; None: if there is no training tree, the validation tree, or the
    one tree there is, stands for both, with its own classes; False: it always does. Raises InputError for a folder that is
    missing or empty, and for classes of the validation tree that the training tree lacks.
    """
    root = pathlib.Path(data_path)
    if not root.is_dir():
        raise InputError(f"--data_path {root}: {missing(root)}")
    has_train = (root / "train").is_dir()
    train_root = root / "train" if has_train else root
    if val_split is not None:
        if eval_data_path or (has_train and (root / "val").is_dir()):
            raise InputError(f"--val_split {val_split}: there is a validation set already; leave one of the two out")
        tree = scan_folder(train_root)
        train, val = stratified_split(tree.labels, val_split, seed)
        return tuple(Folder(tree.root, [tree.paths[i] for i in part], tree.labels[part], tree.classes) for part in (train, val))
    val_root = pathlib.Path(eval_data_path) if eval_data_path else root / "val"
    alone = need_train is False or (need_train is None and not has_train)
    if alone and (val_root.is_dir() or not (eval_data_path or has_train)):
        val = scan_folder(val_root if val_root.is_dir() else root)
        return val, val
    if not val_root.is_dir():
        if eval_data_path:
            raise InputError(f"--eval_data_path {val_root}: {missing(val_root)}")
        if not need_val:
            train = scan_folder(train_root)
            return train, Folder(train.root, [], [], train.classes)
        found = few(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "no folders"
        raise InputError(
            f"--data_path {root}: found {found}; expected train/ and val/ with one folder per class in each, "
            "or give --val_split 0.1 to split one tree"
        )
    train = scan_folder(train_root)
    return train, scan_folder(val_root, train.classes)


def scan_folder(root, classes=None):
    """The `Folder` of a tree with one folder per class. classes: those of the training set, which labels then follow.

    Raises InputError if there are no class folders, if one has no images, or if one is not among `classes`.
    """
    root = str(root)
    found, images, counts = index_folder(root)
    if not found:
        images = sum(is_image(name) for name in os.listdir(root))
        raise InputError(f"{root} has {images} images and no folders: expected one folder per class")
    if classes is not None and (extra := sorted(set(found) - set(classes))):
        raise InputError(
            f"{root} has {len(extra)} class{'es' * (len(extra) > 1)} that the training set lacks ({few(extra)}); the training "
            f"set has {few(classes)}"
        )
    if empty := [name for name, count in zip(found, counts, strict=True) if not count]:
        raise InputError(
            f"{root}: no images in class folder {few(empty)}: expected files such as .jpg or .png; remove empty folders"
        )
    label_of = {name: label for label, name in enumerate(classes or found)}
    return Folder(root, images, np.repeat([label_of[name] for name in found], counts), classes or found)


# --- segmentation: images and masks ---------------------------------------------------------------------------------


class Pairs:
    """A source of segmentation: image files and mask files, the mask at each place that of the image there.

    tables: value in a mask file -> class id, for files of 8 and of 16 bits; see `utils.data.masks.class_table`.
    """

    def __init__(self, title, images, masks, classes, palette, tables):
        self.title, self.classes, self.palette, self.tables = title, classes, palette, tables
        self.images, self.masks = StringList(images), StringList(masks)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        image, mask = self.images[index], self.masks[index]
        ids = to_classes(read_values(mask), self.tables, mask)
        return fit_image(functools.partial(read_image, image), ids.shape, image, mask), ids

    def name(self, index):
        return self.images[index]


def mask_folders(root, need_train=True):
    """(training, validation) from images/{train,val} and masks/{train,val}: palette or grey PNGs of the same names. need_train:
    True; None: without images/train the validation images stand for both; False: they always do.

    A mask holds class ids; 255, or 65535 in masks of 16 bits, is no class. classes.txt in `root` names the classes, one a
    line; without it they are "class 0" to the largest id in SAMPLE masks. Raises InputError for folders that are missing and
    files without a counterpart.
    """
    alone = need_train is False or (need_train is None and not os.path.isdir(os.path.join(root, "images", "train")))
    splits = ("val" if alone else "train", "val")
    needed = [f"{kind}/{split}" for kind in ("images", "masks") for split in dict.fromkeys(splits)]
    root = find_folder(root, ".", needed, "one mask for each image")
    parts = [match(scan_files(root / "images" / split), scan_files(root / "masks" / split)) for split in splits]
    classes = listed_classes(root, MOST_CLASSES)
    if classes is None:
        masks = parts[0][1] + parts[1][1]
        classes = numbered_classes(read_values, [masks[index] for index in spread(len(masks), SAMPLE)], root)
    return split_pairs(str(root), parts, "train", classes, voc_palette(len(classes)), own_tables(len(classes)))


def split_pairs(title, parts, train_split, classes, palette, tables):
    """(training, validation) `Pairs` from [(images, masks) of each]; train_split "trainval": training has both."""
    train, val = parts
    if with_val(train_split):
        train = [of_train + of_val for of_train, of_val in zip(train, val, strict=True)]
    return tuple(Pairs(title, *part, classes, palette, tables) for part in (train, val))


def with_val(train_split):
    """Whether the images of the validation set are trained on too: "trainval", not "train"."""
    choose_one(train_split, ("train", "trainval"), "training split")
    return train_split == "trainval"


def match(images, masks, names=None, list_file=None):
    """([image paths], [mask paths]) in one order, from two dicts {name: path}.

    Without `names` each name must be in both dicts. With them each of `names`, which stand in `list_file`, must be; others
    are left out. Raises InputError that names the first files without a counterpart.
    """
    wanted, named = (sorted(images), sorted(masks)) if names is None else (names, names)
    if lonely := [images[name] for name in wanted if name in images and name not in masks]:
        raise InputError(f"no mask for {len(lonely)} of {len(wanted)} images: {few(lonely, 3)}")
    if lonely := [masks.get(name, name) for name in named if name not in images]:
        what = "masks" if names is None else f"names in {list_file}"
        raise InputError(f"no image for {len(lonely)} of {len(named)} {what}: {few(lonely, 3)}")
    return [images[name] for name in wanted], [masks[name] for name in wanted]


def scan_files(folder, ending=None, may_be_empty=False):
    """{path below `folder` without the ending: path} of all images, or of all files with this ending.

    Links are followed, but not in a circle. Raises InputError for two files of one name, and for no files at all.
    """
    found, seen = {}, set()
    for below, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(below) in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(os.path.realpath(below))
        for file in sorted(files):
            if file.startswith(".") or not (file.endswith(ending) if ending else is_image(file)):
                continue
            path = os.path.join(below, file)
            name = os.path.relpath(path, folder).removesuffix(ending or os.path.splitext(file)[1])
            if name in found:
                raise InputError(f"{found[name]} and {path} have the same name; keep one of them")
            found[name] = path
    if not found and not may_be_empty:
        raise InputError(f"{folder}: no such files in it; expected {f'*{ending}' if ending else 'images such as .jpg or .png'}")
    return found


def find_folder(root, below, needed, how):
    """The folder with all that is `needed`: `below` in `root`, or `root` itself if it lies on the way or is that folder.

    Raises InputError that says what is there, what was expected, and `how` to get it.
    """
    for base in candidates(root, below):
        if all((base / name).exists() for name in needed):
            return base
    root = pathlib.Path(root)
    if root.is_dir():
        found = "found " + (few(sorted(entry.name for entry in root.iterdir()), 3) or "nothing in it")
    else:
        found = missing(root)
    inside = "" if below == "." else f"{below} with "
    raise InputError(f"--data_path {root}: {found}; expected {inside}{', '.join(needed)}; {how}")


def candidates(root, below):
    """`root` with the whole of `below`, with the end of it, and alone, since users give any folder on the way."""
    parts = pathlib.PurePosixPath(below).parts
    return [pathlib.Path(root).joinpath(*parts[start:]) for start in range(len(parts) + 1)]


def missing(folder):
    """What an error says of a folder that does not exist."""
    near = os.listdir(folder.parent) if folder.parent.is_dir() else []
    return f"no such folder{did_you_mean(folder.name, near)}"


# --- classes --------------------------------------------------------------------------------------------------------


def listed_classes(folder, most=1_000_000):
    """The names in classes.txt in `folder`, one a line; None if there is no such file.

    Raises InputError for a file that is no text, has fewer than two names or more than `most`, or a name twice.
    """
    path = os.path.join(folder, "classes.txt")
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


def numbered_classes(values_of, masks, where):
    """["class 0", "class 1", …] up to the largest value in the masks. The largest value of their dtype counts as no class.

    values_of: one of `masks` -> (H, W) uint8 or uint16. Raises InputError, which begins with `where`, if all are class 0.
    """
    largest = 0
    for values in in_threads(values_of, masks):
        kept = values[values != np.iinfo(values.dtype).max]
        largest = max(largest, int(kept.max(initial=0)))
    if largest == 0:
        raise InputError(
            f"{where}: the masks hold no class but 0 (and 255, which is ignored); write classes as 0, 1, 2, …: 0 and 1 for two"
        )
    return [f"class {number}" for number in range(largest + 1)]


def check_number(nb_classes, classes):
    """Raise InputError if --nb_classes is given and is not the number of the `classes` of the data."""
    if nb_classes not in (None, len(classes)):
        raise InputError(f"--nb_classes {nb_classes}: the data has {len(classes)} classes ({few(classes)}); leave the flag out")


def few(names, most=5, separator=", "):
    """The first `most` names in one text, and … if there are more."""
    return separator.join([*map(str, names[:most]), *["…"] * (len(names) > most)])
