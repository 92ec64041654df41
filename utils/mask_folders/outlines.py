"""Masks that are drawn from outlines: COCO's JSON, labelme's JSON beside each image, and YOLO's polygons in text files."""

import collections
import contextlib
import functools
import json
import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from utils.cli.errors import InputError, first_line
from utils.data.masks import draw_instances, fit_image, own_tables, to_classes, voc_palette
from utils.data.string_list import StringList
from utils.files import read_text
from utils.folders.files import scan_files
from utils.folders.label_table import Files
from utils.folders.names import few, refuse_twice, split_folders, split_of
from utils.images.read import AS_STORED, read_image
from utils.mask_folders.ids import MaskIds
from utils.mask_folders.layouts import base_of, find_layout

BACKGROUND = ("background", "_background_")  # names of what no outline covers, which is class 0
IGNORED = ("__ignore__", "ignore")
BYTES = 2**31  # of a JSON file


class Outlines:
    """A source of segmentation whose masks are drawn when they are read.

    records: for each of the `images` [height, width, [[class, segmentation], …]] as `draw_instances` takes it; without a height
    the corners are shares of the image's sides. The class 255 is none.
    """

    reading, left_out, whole = AS_STORED, {}, False

    def __init__(self, title, images, records, ids):
        self.title, self.images, self.records = title, StringList(images), StringList(records)
        self.set_ids(ids)

    def set_ids(self, ids):
        """ids: MaskIds."""
        self.ids, self.classes, self.palette, self.notes = ids, ids.classes, ids.palette, ids.notes

    def __len__(self):
        return len(self.images)

    def read(self, index):
        path, (height, width, shapes) = self.images[index], json.loads(self.records[index])
        if height is None:
            image = read_image(path, reading=self.reading)
            height, width = image.height, image.width
            shapes = [[number, [_scaled(polygon, width, height) for polygon in polygons]] for number, polygons in shapes]
        mask = draw_instances(height, width, shapes, path)
        mask = to_classes(mask.astype(np.uint8), self.ids.tables, path)
        read = functools.partial(read_image, path, reading=self.reading)
        return fit_image(read, mask.shape, path, "drawn in the size that its outlines have"), mask

    def name(self, index):
        return self.images[index]

    def file(self, index):
        return self.images[index]

    def part(self, indices):
        """The source of these images only."""
        part = Outlines(self.title, *[[strings[i] for i in indices] for strings in (self.images, self.records)], self.ids)
        part.left_out, part.whole = self.left_out, self.whole
        return part


class Found(NamedTuple):
    """Outlines below a folder. kind: COCO, YOLO or labelme; names: of the classes; splits: {split: [(path, [height, width,
    [(name, segmentation), …]]), …]}; notes: lines to say; left_out: {kind: number} of what is not read."""

    kind: str
    names: list
    splits: dict
    notes: tuple = ()
    left_out: dict = {}


def _scaled(polygon, width, height):
    return [value * (height if place % 2 else width) for place, value in enumerate(polygon)]


def find_outlines(root, say=print):
    """{split: `Outlines`} of what lies below `root`, "" for one without splits; {} where no outlines are found.

    Raises InputError, which names the file, for outlines that cannot be read, and for boxes in place of outlines.
    """
    root = pathlib.Path(root)
    for find in (_coco, _yolo, _labelme):
        if root.is_dir() and (found := find(root)):
            kind, names, splits, notes, left_out = found
            wrong = sorted({name for name in names if name not in (*BACKGROUND, *IGNORED)}, key=names.index)
            classes = ["background", *wrong]
            if not 2 <= len(classes) <= 254:
                raise InputError(f"{root}: outlines of {len(wrong)} classes ({few(wrong)}); expected 1 to 253")
            number = {name: classes.index(name) if name in classes else 0 if name in BACKGROUND else 255 for name in names}
            ids = MaskIds(classes, voc_palette(len(classes)), own_tables(len(classes)), notes)
            say(f"data: masks are drawn from outlines of {kind}: background and {len(wrong)} classes ({few(wrong)})")
            sources = {}
            for split, samples in splits.items():
                records = [
                    json.dumps([h, w, [[number[name], shape] for name, shape in shapes]]) for _, (h, w, shapes) in samples
                ]
                sources[split] = Outlines(str(root), [str(path) for path, _ in samples], records, ids)
                sources[split].left_out = left_out
            return sources
    return {}


def _read_json(path):
    if os.path.getsize(path) > BYTES:
        raise InputError(f"{path}: {os.path.getsize(path):,} bytes; expected a JSON file of outlines")
    try:
        return json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({first_line(error)}); expected outlines") from None


# --- COCO: one file for each split ------------------------------------------------------------------------------------


def _coco(root):
    """`Found`, or None."""
    files = {}
    inner = [root / name for name in _dirs(root) if split_of(name)]
    for folder in (root, *(root / name for name in _dirs(root) if name.lower() == "annotations"), *inner):
        for path in sorted(folder.glob("*.json")):
            with open(path, "rb") as file:
                head = file.read(1 << 20)
            if b'"images"' not in head and b'"categories"' not in head and b'"annotations"' not in head:
                continue
            words = [split_of(word) for word in re.split(r"[^A-Za-z]+", path.stem)]
            split = split_of(folder.name) or next(filter(None, words), "")
            content = _read_json(path)
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
                if split in files:
                    raise InputError(
                        f"{files[split][0]} and {path} are both of the split {split or 'that has no name'}; keep one"
                    )
                files[split] = (path, content)
    if not files:
        return None
    images, splits, names, used, notes = Files(root), {}, {}, set(), []
    for split, (path, content) in files.items():
        try:
            known = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
            shapes, boxes = collections.defaultdict(list), 0
            for entry in content["annotations"]:
                boxes += not entry.get("segmentation")
                if entry.get("segmentation"):
                    shapes[entry["image_id"]].append((known[entry["category_id"]], entry["segmentation"]))
                    used.add(known[entry["category_id"]])
            if boxes == len(content["annotations"]):
                raise InputError(f"{path}: found {boxes} boxes and no outlines; expected a segmentation of each annotation")
            if boxes:
                some = f"{boxes:,} of {len(content['annotations']):,} objects have a box and no outline"
                notes.append(f"warning: {path}: {some}: they are background; draw them, or leave their images out")
            entries = [(str(entry["file_name"]), entry) for entry in content["images"]]
            samples = [(name, [int(e["height"]), int(e["width"]), shapes[e["id"]]]) for name, e in entries]
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is no instances file of COCO's ({type(error).__name__}: {first_line(error)})") from None
        found = [images.find(name, split) for name, _ in samples]
        if lonely := [name for (name, _), paths in zip(samples, found, strict=True) if len(paths) != 1]:
            raise InputError(
                f"{path}: {len(lonely)} of {len(samples)} images are not below {root}, or there twice: {few(lonely, 3)}"
            )
        splits[split] = [(root / paths[0], record) for paths, (_, record) in zip(found, samples, strict=True)]
        names |= dict.fromkeys(known.values())
    others = len(images.paths) - len({path for samples in splits.values() for path, _ in samples})
    left_out = {"images that no JSON file names": others} if others else {}
    return Found("COCO", [name for name in names if name in used], splits, tuple(notes), left_out)


def _dirs(root):
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


# --- YOLO: a text file for each image ---------------------------------------------------------------------------------


def _yolo(root):
    try:
        layout = find_layout(root)
    except InputError:
        return None
    if not all(any(path.suffix == ".txt" for path in labels.iterdir()) for _, labels in layout.values()):
        return None
    if any(scan_files(labels, may_be_empty=True, by_ending=True) for _, labels in layout.values()):
        return None  # masks, with a text beside them
    numbers, splits = set(), {}
    for split, (images, labels) in layout.items():
        texts = scan_files(labels, ".txt", may_be_empty=True)
        splits[split] = []
        for name, path in sorted(scan_files(images).items()):
            shapes = _yolo_shapes(texts[name]) if name in texts else []
            numbers |= {number for number, _ in shapes}
            splits[split].append((path, [None, None, shapes]))
    names = _yolo_names(base_of(layout)) or _yolo_names(root)
    if numbers and max(numbers) >= len(names):
        names = [*names, *(f"class {number}" for number in range(len(names), max(numbers) + 1))]
    splits = {
        split: [(path, [h, w, [(names[number], shape) for number, shape in shapes]]) for path, (h, w, shapes) in samples]
        for split, samples in splits.items()
    }
    return Found("YOLO", names, splits)


def _yolo_shapes(path):
    """[(number of the class, [polygon in shares of the sides]), …] of a text file."""
    shapes = []
    for place, line in enumerate(read_text(path, "class x y x y … on each line").splitlines(), 1):
        words = line.split()
        try:
            number, corners = int(words[0]) if words else 0, [float(word) for word in words[1:]]
        except ValueError:
            raise InputError(f"{path}: line {place} is no outline; expected class x y x y …, in shares of the sides") from None
        if len(corners) == 4:
            raise InputError(f"{path}: line {place} is a box; expected the corners of an outline, class x y x y x y …")
        if words and (len(corners) < 6 or len(corners) % 2 or number < 0 or not all(-0.5 < value < 1.5 for value in corners)):
            raise InputError(f"{path}: line {place} is no outline; expected class x y x y …, in shares of the sides")
        shapes += [(number, [corners])] * bool(words)
    return shapes


def _yolo_names(folder):
    """The names in data.yaml in a folder, a list or {number: name}; [] without it."""
    import yaml

    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            names = (yaml.safe_load(read_text(path, "YAML")) or {}).get("names")
        except (yaml.YAMLError, AttributeError):
            continue
        if isinstance(names, dict) and all(isinstance(number, int) for number in names):
            names = [names.get(number, f"class {number}") for number in range(max(names) + 1)]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return []


# --- labelme: a JSON file beside each image ---------------------------------------------------------------------------


def _labelme(root):
    with contextlib.suppress(InputError):
        if find_layout(root):
            return None  # masks; the whole tree need not be looked through
    splits, twice = split_folders(_dirs(root))
    refuse_twice(root, twice)
    names, found, left_out = {}, {}, collections.Counter()
    for split, folder in (splits or {"": "."}).items():
        records = scan_files(root / folder, ".json", may_be_empty=True)
        images = scan_files(root / folder, may_be_empty=True, by_ending=True).values()
        paths = {os.path.relpath(path, root / folder).removesuffix(os.path.splitext(path)[1]): path for path in images}
        samples = []
        for name, file in sorted(records.items()):
            if name in paths and isinstance(content := _read_json(file), dict) and isinstance(content.get("shapes"), list):
                samples.append((paths[name], _labelme_record(file, content)))
                names |= dict.fromkeys(label for label, _ in samples[-1][1][2])
        if samples:
            found[split] = samples
            left_out["images without a JSON file of labelme's"] += len(images) - len(samples)
    return Found("labelme", sorted(names), found, left_out=dict(+left_out)) if found else None


def _labelme_record(path, content):
    try:
        shapes = [
            (str(shape["label"]), [_corners(shape.get("shape_type", "polygon"), shape["points"])])
            for shape in content["shapes"]
        ]
        return [int(content["imageHeight"]), int(content["imageWidth"]), shapes[::-1]]  # the last one lies on top
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no file of labelme's ({type(error).__name__}: {first_line(error)})") from None


def _corners(kind, points):
    """[x, y, …] of a shape. Raises ValueError for one without an area."""
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == "circle":
        (x, y), edge = points
        radius, turns = math.dist((x, y), edge), [2 * math.pi * step / 64 for step in range(64)]
        points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    elif kind != "polygon":
        raise ValueError(f"a shape of the kind {kind}; expected polygons, rectangles and circles")
    return [float(value) for point in points for value in point]
