"""The flags about masks as `MaskOptions`: which values and colours are which class."""

from utils.cli.errors import InputError
from utils.files import read_text
from utils.mask_folders.ids import IGNORED_NAME
from utils.mask_folders.outlines import Outlines
from utils.mask_folders.pairs import MaskOptions


def mask_options(data, trained=None):
    """`MaskOptions` of the flags `data` (segmentation_flags.Data). Raises InputError for a file of colours that is none.

    trained: see `MaskOptions`; names of --classes are not those of the masks, and leave it out.
    """
    colours = data.mask_colors or None
    colours = _colours(colours) if isinstance(colours, str) else colours  # else of config.json
    values = dict(data.mask_values) if data.mask_values else None
    if values and len(names := {*values.values()} - {IGNORED_NAME}) < 2:
        found = f"found {len(names)} classes; expected two at least, such as 0=background 255=crack"
        raise InputError(f"--mask_values: {found}")
    return MaskOptions(
        data.mask_suffix or "", values, colours, bool(data.reduce_zero_label), bool(data.check_data), data.group_by,
        None if data.classes else trained,
    )  # fmt: skip


def mask_config(data, source):
    """How masks of the training `source` were read, for config.json, from where an evaluation takes it: {flag: value}.

    Masks of 0 and 255 that were two classes without a flag get the mask_values that say so. "mask_numbers": true says that
    numbers in masks count the classes of the network.
    """
    if data.data_set or not (data.data_path or data.dataset) or isinstance(source, Outlines):
        return {}
    kept = {flag: getattr(data, flag) for flag in ("mask_suffix", "mask_values", "reduce_zero_label")}
    kept["mask_colors"] = mask_options(data).colours
    white = source.ids.tables[0][255]
    if not data.mask_values and not data.mask_colors and white >= 0:
        kept["mask_values"] = [(0, source.classes[source.ids.tables[0][0]]), (255, source.classes[white])]
    kept["mask_numbers"] = not (kept["mask_values"] or kept["mask_colors"] or data.classes)
    return {name: value for name, value in kept.items() if value}


def _colours(path):
    """[(name, red, green, blue)] of a file with such a line for each colour; a line without numbers may come first."""
    found, expected = [], "name,red,green,blue on each line, such as crack,255,0,0"
    for number, line in enumerate(read_text(path, expected).splitlines(), 1):
        cells = [cell.strip() for cell in line.replace(";", ",").replace("\t", ",").split(",")]
        if not line.strip():
            continue
        if len(cells) == 4 and all(cell.isdigit() and int(cell) < 256 for cell in cells[1:]):
            found.append((cells[0], *map(int, cells[1:])))
        elif number > 1 or any(cell.isdigit() for cell in cells):
            raise InputError(f"--mask_colors {path}: line {number} is {line.strip()!r}; expected {expected}")
    if len({name for name, *_ in found} - {IGNORED_NAME}) < 2:
        raise InputError(f"--mask_colors {path}: found {len(found)} colours; expected two classes at least, {expected}")
    if len({tuple(colour) for _, *colour in found}) < len(found):
        raise InputError(f"--mask_colors {path}: a colour is in it more than once; expected one class for each colour")
    return found
