"""Which class a value in a mask means: found in a sample of the masks, and refused where it cannot be meant."""

import functools
from typing import NamedTuple

import numpy as np
import torch

from utils.cli.errors import InputError
from utils.data.bad_samples import in_threads
from utils.data.masks import class_table, own_tables, voc_palette
from utils.data.sampling import spread
from utils.folders.class_names import SAMPLE
from utils.folders.names import few
from utils.images.formats import open_image
from utils.images.read import IGNORE

IGNORED_NAME = "ignore"  # the name of values and colours that are no class
MOST_LISTED = 20  # values or colours that a line lists
BLENDED = 20  # so many rare values in a mask are made by a lossy file or by a resize


class MaskIds(NamedTuple):
    """classes: their names; palette: (classes, 3) uint8; tables: `class_table` for masks of 8 and of 16 bits; notes: lines to
    say; unknown: where values that are no class are marked, (65536,) uint8 shared by all loader workers, while these pixels
    count as none; None: such a value ends the run."""

    classes: list
    palette: np.ndarray
    tables: tuple
    notes: tuple = ()
    unknown: torch.Tensor | None = None


def find_ids(read, masks, where, *, listed=None, trained=None, named=None, reduce_zero=False, everything=False, of=None):
    """`MaskIds` of masks that hold class ids, by a sample of them.

    read: one of `masks` -> (H, W) uint8 or uint16. listed: names in classes.txt; trained: of an evaluation, the weights' names;
    named: {value: name} of --mask_values; reduce_zero: 0 is no class, and 1 the first. everything: all `masks` are read; of:
    of so many that there are. Raises InputError, which begins with `where`, where no class is found, and for values that a
    lossy file has blended.
    """
    if named:
        names = [name for name in dict.fromkeys(named.values()) if name != IGNORED_NAME]
        table = class_table((), {255, 65535})
        table[list(named)] = [names.index(name) if name in names else IGNORE for name in named.values()]
        return MaskIds(names, voc_palette(len(names)), (table, table))
    first = int(reduce_zero)
    if trained and not listed:
        note = f"masks: there is no classes.txt; numbers from {first} on are taken for the weights' classes ({few(trained)})"
        return MaskIds(trained, voc_palette(len(trained)), own_tables(len(trained), first), (note,), _no_marks())
    looked_at = masks if everything else [masks[index] for index in spread(len(masks), SAMPLE)]
    of = of or len(masks)
    sampled = f"{len(looked_at):,} of {of:,} masks"
    if listed and not reduce_zero:
        plain = MaskIds(listed, voc_palette(len(listed)), own_tables(len(listed)))
        if trained or len(listed) != 2:
            return plain
        counts, _, deep = _look(read, looked_at, pass_over=InputError)  # who reads a broken mask says so
        return _black_and_white(counts, deep, listed, sampled) or plain
    counts, several, deep = _look(read, looked_at)
    values = np.flatnonzero(counts)
    _refuse_blended(counts, several, where)
    if not reduce_zero and (found := _black_and_white(counts, deep, ["background", "foreground"], sampled)):
        return found
    ids = values[(values != 65535) & ((values != 255) | deep)]
    ids = ids[ids > 0] if reduce_zero else ids
    if not len(ids) or ids[-1] == 0:
        found = "no class but 0" if 0 in values else "no class"
        raise InputError(
            f"{where}: the masks hold {found} (and 255, which is ignored); write classes as 0, 1, 2, …: 0 and 1 for two"
        )
    names = listed or [f"class {number}" for number in range(ids[-1] + 1 - first)]
    tables, notes = own_tables(len(names), first), _gaps(ids, first)
    if listed or len(looked_at) == of:
        return MaskIds(names, voc_palette(len(names)), tables, notes)
    notes += (
        f"masks: {len(names)} classes, counted in {sampled}; pixels of a class that only others hold are not learned: name all "
        "classes in classes.txt, or --check_data true counts in all masks",
    )
    return MaskIds(names, voc_palette(len(names)), tables, notes, _no_marks())


def _no_marks():
    return torch.zeros(65536, dtype=torch.uint8).share_memory_()


def _look(read, masks, pass_over=()):
    """(pixels of each value (65536,), how many values each mask holds, whether one has 16 bits) of these `masks`.

    pass_over: the exceptions of masks that do not count."""

    def count(mask):
        try:
            return _count(read(mask))
        except pass_over:
            return [], 0, False

    counts, several, deep = np.zeros(65536, np.int64), [], False
    for values, numbers, wide in in_threads(count, masks):
        counts[values] += numbers
        several.append(len(values))
        deep |= wide
    return counts, several, deep


def _black_and_white(counts, deep, names, sampled):
    """`MaskIds` of two names where masks hold 0 and 255 only; None for others."""
    if deep or np.flatnonzero(counts).tolist() != [0, 255]:
        return None
    table = class_table((0, 255), ())
    note = f"masks: 0 and 255 only in {sampled}: 0 is {names[0]}, 255 is {names[1]}"
    return MaskIds(names, voc_palette(2), (table, table), (note,))


def _count(values):
    """(the values of a mask, their numbers of pixels, whether it has 16 bits)."""
    counts = np.bincount(values.ravel(), minlength=1)
    found = np.flatnonzero(counts)
    return found, counts[found], values.dtype != np.uint8


def _gaps(ids, first):
    """A line for ids that leave numbers out, as ids of another list of classes do."""
    missing = ids[-1] + 1 - first - len(ids)
    if not missing:
        return ()
    shown = few(ids.tolist(), MOST_LISTED)
    if ids[0] == 1 and missing == 1:
        return ("masks: no pixel is 0, and ids go from 1 on: --reduce_zero_label true makes 1 the first class",)
    return (f"masks: only the values {shown} occur, and {missing} numbers below {ids[-1]} do not: --mask_values maps them",)


def _refuse_blended(counts, several, where):
    """InputError for masks most of whose values are rare and many: edges that JPEG or a smooth resize has blended."""
    shares = counts / max(counts.sum(), 1)
    common, rare = shares >= 0.01, (shares > 0) & (shares < 0.01)
    if not several or rare.sum() <= max(BLENDED, 4 * common.sum()) or shares[rare].sum() > 0.2 or np.median(several) <= BLENDED:
        return
    raise InputError(
        f"{where}: the masks hold {int((counts > 0).sum())} values, though {few(np.flatnonzero(common).tolist())} make "
        f"{100 * shares[common].sum():.0f} % of the pixels: a lossy file (JPEG) or a smooth resize has blended them; make the "
        "masks anew as PNG, resized to the nearest pixel"
    )


# --- colours --------------------------------------------------------------------------------------------------------------


def read_colours(path, codes, ids):
    """The class ids (H, W) uint16 of a mask in colours; codes: sorted colours as one number each; ids: of these."""
    found = _codes(path)
    places = np.searchsorted(codes, found).clip(max=len(codes) - 1)
    wrong = codes[places] != found
    if wrong.any():
        some = few([_words(code) for code in np.unique(found[wrong])[:6].tolist()], 5, "; ")
        raise InputError(f"{path}: the mask holds colours that --mask_colors does not name ({some}): add them")
    return ids[places]


def _codes(path):
    with open_image(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _words(code):
    return f"{code >> 16} {code >> 8 & 255} {code & 255}"


def colour_reader(colours):
    """(function of a mask's path -> class ids, names, palette (classes, 3) uint8) of [(name, red, green, blue), …]; several
    colours of one name are one class, and `ignore` is none."""
    names = list(dict.fromkeys(name for name, *_ in colours if name != IGNORED_NAME))
    ids = np.array([names.index(name) if name != IGNORED_NAME else 65535 for name, *_ in colours])
    codes = np.array([red << 16 | green << 8 | blue for _, red, green, blue in colours])
    order = np.argsort(codes)
    palette = np.array([next(colour for name, *colour in colours if name == one) for one in names], np.uint8)
    return functools.partial(read_colours, codes=codes[order], ids=ids[order].astype(np.uint16)), names, palette


def colours_of(masks, most=SAMPLE):
    """The colours of a sample of masks, as text, the most frequent first."""
    counts = {}
    for code in in_threads(_codes, [masks[index] for index in spread(len(masks), min(most, 50))]):
        for value, number in zip(*np.unique(code, return_counts=True), strict=True):
            counts[int(value)] = counts.get(int(value), 0) + int(number)
    return [_words(code) for code in sorted(counts, key=counts.get, reverse=True)]


def refuse_other_palettes(masks):
    """InputError where the same number has two colours in the palettes of two masks: then numbers mean nothing, colours do."""
    seen = {}
    for index in spread(len(masks), SAMPLE):
        for value, colour in _used_palette(masks[index]).items():
            other, path = seen.setdefault(value, (colour, masks[index]))
            if other != colour:
                raise InputError(
                    f"the masks' own palettes differ: {value} is the colour {' '.join(map(str, other))} in {path}, and "
                    f"{' '.join(map(str, colour))} in {masks[index]}, so that numbers do not tell classes; give the colours "
                    "with --mask_colors, or, if the numbers are right, name them with --mask_values"
                )


def _used_palette(path):
    """{value: (red, green, blue)} of the values in a palette image; {} of any other, and of one that cannot be read."""
    try:
        with open_image(path) as image:
            if image.mode != "P":
                return {}
            table = np.asarray(image.getpalette("RGB") + [0] * 768)[:768].reshape(256, 3)
            return {int(value): tuple(table[value].tolist()) for value in np.unique(np.asarray(image))}
    except Exception:  # who reads the mask says so
        return {}
