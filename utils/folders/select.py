"""What is taken of the data: classes in an order, some of them, or merged ones; and a part of the images for a quick try."""

import numpy as np

from utils.cli.errors import InputError, did_you_mean
from utils.files import read_text
from utils.folders.label_lists import strata
from utils.folders.names import few


def select(train, val, *, classes=None, max_train_images=None, max_val_images=None, seed=0, say=print):
    """(training, validation) sources with what the flags ask for; the test images of the latter keep their number.

    classes: the path of --classes. max_train_images, max_val_images: so many images at most, of each class in proportion and
    one at least, keyed by `seed`; max_val_images holds for one source that stands for both. Raises InputError for sources
    that cannot be parted.
    """
    wanted = {"classes": classes, "max_train_images": max_train_images, "max_val_images": max_val_images}
    if not (asked := [flag for flag, value in wanted.items() if value is not None]):
        return train, val
    if not all(hasattr(source, "part") for source in (train, val)):
        raise InputError(f"--{asked[0]} takes effect on own images, in folders or tables; leave it out")
    alone, test = train is val, getattr(val, "test", None)
    if classes:
        groups = read_groups(classes, train.classes, some=alone)
        test = test and in_groups(test, groups, say, "test")
        train = in_groups(train, groups, say, "validation" if alone else "training")
        val = val if alone else in_groups(val, groups, say, "validation")
    train = _at_most(train, max_val_images if alone else max_train_images, seed)
    val = train if alone else _at_most(val, max_val_images, seed)
    if test:
        val.test = test
    return train, val


def read_groups(path, known, some=False):
    """{name: [classes of the data]} of a file with a class on each line, or `name = class, class` to merge some.

    some: the data may have some of these classes only, as images to validate or to test on do. Raises InputError for a name
    that is not among the `known` ones, or where none is, for one class in two lines, and for one line only.
    """
    groups, seen = {}, {}
    for line in read_text(path, "a class on each line, or name = class, class").splitlines():
        if not (line := line.strip()) or line.startswith("#"):
            continue
        name, equals, members = (part.strip() for part in line.partition("="))
        members = [member.strip() for member in members.split(",")] if equals and line not in known else [line]
        name = name if len(members) > 1 or line not in known else line
        for member in members:
            if member not in known and not some:
                near = did_you_mean(member, known)
                raise InputError(f"--classes {path}: {member} is no class of the data{near}; it has {few(known)}")
            if member in seen:
                raise InputError(f"--classes {path}: {member} is in {seen[member]} and in {name}; expected it once")
            seen[member] = name
        groups.setdefault(name, []).extend(members)
    if len(groups) < 2:
        raise InputError(f"--classes {path}: found {len(groups)} classes; expected two at least, one a line")
    if not set(seen) & set(known):
        raise InputError(f"--classes {path}: none of {few(list(seen))} is a class of the data, which has {few(known)}")
    return groups


def in_groups(source, groups, say=print, what="training"):
    """The `source` with the classes of `read_groups`: images of others are left out, pixels of others are no class.

    what: the images are for. A class that none of them has keeps its number.
    """
    place = {member: number for number, members in enumerate(groups.values()) for member in members}
    numbers = np.array([place.get(name, -1) for name in source.classes])
    others = [name for name in source.classes if name not in place]
    if lacking := [name for name, members in groups.items() if not set(members) & set(source.classes)]:
        say(f"classes: the {what} images have none of {few(lacking)}")
    if not hasattr(source, "labels"):
        tables = tuple(np.where(table >= 0, numbers[table], table) for table in source.ids.tables)
        colours = dict(zip(source.classes, source.palette, strict=True))
        palette = np.array([next((colours[name] for name in names if name in colours), (0, 0, 0)) for names in groups.values()])
        source = source.part(np.arange(len(source)))
        source.set_ids(source.ids._replace(classes=list(groups), palette=palette, tables=tables))
        if others and what == "training":
            say(f"classes: pixels of {len(others)} others ({few(others)}) are not learned and not scored")
        return source
    if source.labels.ndim == 2:  # an image keeps those of its labels that are asked for, which may be none
        part = source.part(np.arange(len(source)))
        columns = [[source.classes.index(name) for name in members if name in source.classes] for members in groups.values()]
        part.labels, part.classes = np.stack([part.labels[:, places].any(1) for places in columns], 1), list(groups)
        if others and what == "training":
            say(f"classes: {len(others)} other labels ({few(others)}) are not learned")
        return part
    kept = np.flatnonzero(numbers[source.labels] >= 0)
    if others:
        say(f"classes: {len(source) - len(kept):,} {what} images of {len(others)} others ({few(others)}) are left out")
    part = source.part(kept)
    part.labels, part.classes = numbers[part.labels], list(groups)
    if not len(part):
        raise InputError(f"--classes: no {what} image is of one of these classes ({few(list(groups))})")
    return part


def _at_most(source, most, seed):
    """The part of a source with `most` images, each class in proportion."""
    if most is None or most >= len(source):
        return source
    labels = strata(source.labels) if hasattr(source, "labels") else np.zeros(len(source), np.int64)
    order = np.random.default_rng([seed, most]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # classes one after the other, each in random order
    counts = np.bincount(labels)
    # The place of an image among those of its class, as a share of it: the smallest shares are taken, so that each class
    # gives as many in proportion; the first of each class comes before all others.
    rank = np.concatenate([np.arange(count) for count in counts])
    share = np.where(rank == 0, -1, (rank + 0.5) / np.repeat(counts, counts))
    return source.part(np.sort(order[np.argsort(share, kind="stable")[:most]]))
