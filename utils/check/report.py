"""The report on the data of a run: from facts to lines and warnings, a pure function."""

from utils.folders.names import HEIF, few, left_out_line, split_of

# Photographs that are not read.
PHOTOS = (*HEIF, *".dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .psd .jxl .dcm .svs".split())
NAMED = 12  # classes whose images are counted one by one
SMALL = 5  # images of a class
FEWEST = 10  # validation images, of which a score tells something
DARK = 64  # of 256: colours of up to 14 bits in 16
UNEQUAL = 4  # how many times more images the largest class has than the smallest, from which on a flag is named


def describe(facts):
    """(lines, warnings) that say what `facts.find_facts` found; a pure function."""
    train, val = facts["train"], facts["val"]
    lines = [*map(_files_line, (train, val), ("training", "validation")), _depth_line(facts), _transparent_line(facts)]
    lines = [line for line in lines if line]
    if classes := _classes_line(facts):
        lines.insert(0, classes)
    if left_out := left_out_line(facts["left_out"]):
        lines.append(left_out)
    doubts = ("note: ", "warning: ", "masks: ")
    warnings = [note.removeprefix("note: ").removeprefix("warning: ") for note in facts["notes"] if note.startswith(doubts)]
    lines += [note for note in facts["notes"] if not note.startswith(doubts)]
    found = (_class_warnings, _few_warnings, _left_out_warnings, _file_warnings, _copy_warnings)
    return lines, [*[line for warnings_of in found for line in warnings_of(facts)], *warnings]


def _classes_line(facts):
    counts, classes = facts["train"].get("per_class"), facts["classes"]
    if not counts:
        return f"classes: {', '.join(classes)}" if len(classes) <= NAMED else ""
    least, most = min(counts), max(counts)
    held_out = facts["val"].get("per_class") or [0] * len(classes)
    several = "without_label" in facts["train"]
    flags = "--class_weights auto" if several else "--sampling balanced or --class_weights auto"
    unequal = f"; {flags} helps the rare ones" * (0 < UNEQUAL * least <= most)
    if several and (none := sum(facts[split].get("without_label", 0) for split in ("train", "val"))):
        unequal += f"; {none:,} images have no label"
    if len(classes) <= NAMED and least == most and min(held_out) == max(held_out):
        alike = f"{least:,} to train on, {held_out[0]:,} to validate on"
        return f"images per class: {alike}; classes: {', '.join(classes)}{unequal}"
    if len(classes) <= NAMED:
        each = [f"{name} {train:,} + {val:,}" for name, train, val in zip(classes, counts, held_out, strict=True)]
        return f"images per class, to train on + to validate on: {', '.join(each)}{unequal}"
    smallest = f"; the smallest class is {classes[counts.index(least)]}" * (least < most)
    return f"images per class: {_span(counts)} to train on, {_span(held_out)} to validate on{smallest}{unequal}"


def _span(counts):
    return f"{min(counts):,}" + f" to {max(counts):,}" * (min(counts) < max(counts))


def _files_line(split, name):
    if not split.get("sizes"):
        return ""
    (small_w, small_h), (usual_w, usual_h), (large_w, large_h) = split["sizes"]
    sizes = f"{usual_w} x {usual_h} pixels"
    if split["sizes"][0] != split["sizes"][2]:
        sizes = f"{small_w} x {small_h} to {large_w} x {large_h} pixels, mostly about {usual_w} x {usual_h}"
    kinds = ", ".join(split["formats"]) + " of mode " + ", ".join(split["modes"])
    turned = f"; EXIF turns {split['turned']:,}" * bool(split["turned"])
    looked = "" if split["looked_at"] == split["images"] else f" ({split['looked_at']:,} of {split['images']:,} looked at)"
    return f"{name} images: {kinds}, {sizes}{turned}{looked}"


def _depth_line(facts):
    if not (limits := facts.get("value_range")):
        return ""
    low, high = (f"{limit:g}" for limit in limits)
    bits = (int(limits[1]) + 1).bit_length() - 1 if limits[0] == 0 and limits[1] >= 255 else 0
    depth = f" ({bits} bits)" * (2**bits - 1 == limits[1])
    return f"deep greys: {low} is black, {high} is white{depth}, as a sample of the data has them; --value_range sets others"


def _transparent_line(facts):
    count, looked = (sum(facts[split].get(key, 0) for split in ("train", "val")) for key in ("transparent", "looked_at"))
    if not count:
        return ""
    if colour := facts.get("background"):
        return f"{count:,} of {looked:,} images looked at have transparent parts, which show the colour {tuple(colour)}"
    return (f"{count:,} of {looked:,} images looked at have transparent parts: the model sees the colour that the files store "
            "there, often black; --background white shows white")  # fmt: skip


def _class_warnings(facts):
    classes, counts = facts["classes"], facts["train"].get("per_class")
    if not counts:
        return
    images = sum(counts)
    if names := [name for name in classes if split_of(name)]:
        yield f"the class {names[0]} is called as a split of the data; if it is one, the classes lie deeper in the folders"
    numbers = all(name.lstrip("-").isdigit() for name in classes) and 2 * len(classes) > images > 5
    if 10 * len(classes) > images > 40 or numbers:
        kind = "; labels are numbers, nearly all different: is it an age or an id? --label_column names another column"
        yield f"{len(classes):,} classes in {images:,} images, fewer than ten of each" + kind * numbers
    elif small := [name for name, count in zip(classes, counts, strict=True) if 0 < count < SMALL]:
        yield f"{len(small)} of {len(classes)} classes have fewer than {SMALL} images to train on ({few(small)})"
    held_out = facts["val"].get("per_class")
    if held_out and sum(held_out):
        if lacking := [name for name, count in zip(classes, held_out, strict=True) if not count]:
            yield f"{len(lacking)} of {len(classes)} classes have no validation image ({few(lacking)}): they are not scored"
        if lacking := [name for name, count in zip(classes, counts, strict=True) if not count]:
            yield f"{len(lacking)} of {len(classes)} classes have no training image ({few(lacking)})"


def _few_warnings(facts):
    if 0 < (images := facts["val"]["images"]) < FEWEST:
        yield f"only {images} validation images: a score of fewer than {FEWEST} is hardly more than a guess"


def _left_out_warnings(facts):
    photos = {kind: count for kind, count in facts["left_out"].items() if kind in PHOTOS}
    if photos:
        read = facts["train"]["images"] + facts["val"]["images"]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in photos.items())
        how = "pip install pillow-heif, or convert them" if any(kind in HEIF for kind in photos) else "convert them"
        yield f"{kinds} are photographs that are left out, beside {read:,} that are read: {how}"
    if arrays := facts["left_out"].get(".npy"):
        yield f"{arrays:,} .npy are left out: if they are images of N bands, --in_chans N reads them"
    if beside := facts["left_out"].get("images beside the class folders"):
        yield f"{beside:,} images lie beside the class folders, in none of them: they are left out"


def _file_warnings(facts):
    values = [split.get("brightest") for split in (facts["train"], facts["val"])]
    values = [value for value in values if value is not None]
    if values and max(values) < DARK:
        yield (f"images have 16 bits a colour, and no value above {256 * max(values) + 255:,} of 65,535, so that they are seen "
               "nearly black; save them with 8 bits, or spread over all 16")  # fmt: skip
    for split in (facts["train"], facts["val"]):
        if split.get("unreadable"):
            yield (
                f"{split['unreadable']:,} of {split['looked_at']:,} images looked at cannot be read "
                f"({few(split['unreadable_names'], 3)})"
            )


def _copy_warnings(facts):
    copies = facts.get("copies")
    if not copies:
        return
    of = facts["val"]["images"]
    kinds = {
        "equal": (" = ", copies["compared"], "are training images too, byte by byte"),
        "near": (" ~ ", copies["compared_by_looks"], "look like a training image"),
    }
    for kind, (sign, compared, what) in kinds.items():
        if copies[kind]:
            pairs = few([sign.join(pair) for pair in copies[f"{kind}_pairs"]], 3)
            among = f"{compared:,} compared of " * (compared < of) + f"{of:,} validation images"
            yield f"{copies[kind]:,} of {among} {what} ({pairs}): the score is better than it will be on new images"
    if copies["conflicts"]:
        pairs = [" = ".join(pair) for pair in copies["conflict_pairs"]]
        yield f"{copies['conflicts']:,} images are in two classes ({few(pairs, 3)})"
