"""--val_split: which images are held out, what belongs together on one side."""

import collections
import os
import re

import numpy as np

from utils.cli.arguments import Fold
from utils.cli.errors import InputError
from utils.data.sampling import fold_numbers, stratified_split
from utils.folders.copies import equal_groups
from utils.folders.label_lists import strata
from utils.folders.names import few

MOST_FILES, MOST_ROWS = 200_000, 10_000  # images among which copies are looked for


def hold_out(source, val_split, seed, group_by=None, say=print):
    """(training, validation) parts of a `source`: the fraction `val_split` of each class is held out, keyed by `seed`.

    val_split may be a Fold: then that part of the images, the folds being about equal, each class in each. Images that are
    equal byte by byte, and their groups, are in one fold then.

    group_by: a regular expression: images whose names, or first groups of it, match alike are kept on one side. Held-out images
    that are equal to training images byte by byte are trained on instead, which `say` says, unless all of them are, or they
    would leave their group. Raises InputError for groups that cannot be parted.
    """
    labels = strata(source.labels) if hasattr(source, "labels") else np.zeros(len(source), np.int64)
    if isinstance(val_split, Fold):
        number = fold_numbers(labels, val_split.folds, seed, _with_copies(source, group_by, say))
        train, val = np.flatnonzero(number != val_split.fold - 1), np.flatnonzero(number == val_split.fold - 1)
        if not len(val) or not len(train):
            found = f"fold {val_split.fold} has {len(val)} of {len(source)} images"
            raise InputError(f"--folds {val_split.folds}: {found}; take fewer folds, or smaller groups")
        return source.part(train), source.part(val)
    if group_by:
        train, val = _by_groups(source, labels, val_split, seed, group_by, say)
    else:
        train, val = stratified_split(labels, val_split, seed)
    if copies := _copies(source, train, val):
        if len(copies) == len(val):
            say("warning: all held-out images are copies of training images, byte by byte: the score will say nothing")
            return source.part(train), source.part(val)
        pairs = [f"{_short(source, copy)} = {_short(source, first)}" for copy, first in copies.items()]
        found = f"{len(copies)} of {len(val)} held-out images are training images too, byte by byte ({few(pairs, 3)})"
        if group_by:
            say(f"warning: {found}: they stay with their groups, so that the score flatters; join these groups")
            return source.part(train), source.part(val)
        say(f"copies: {found}: they are trained on, and not validated on")
        val = np.setdiff1d(val, list(copies))
        train = np.setdiff1d(np.arange(len(source)), val)
    return source.part(train), source.part(val)


def _short(source, index):
    return "/".join(source.name(index).split(os.sep)[-2:])


def _equal(source):
    """As `equal_groups`, of the images of a source; [] where it has no files, or too many."""
    if not hasattr(source, "file") or len(source) > (MOST_FILES if isinstance(source.file(0), str) else MOST_ROWS):
        return []
    return equal_groups([source.file(index) for index in range(len(source))])


def _with_copies(source, group_by, say):
    """(N,): the number of each image's group, by its name or alone, joined with those of its copies; None: each is alone."""
    number = _groups(source, group_by, say) if group_by else np.arange(len(source))
    equal = _equal(source)
    for group in equal:
        number[np.isin(number, number[group]) if group_by else group] = number[group[0]]
    if equal:
        say(f"copies: {sum(map(len, equal)) - len(equal):,} images are equal to another one, byte by byte: in its fold")
    return number if equal or group_by else None


def _copies(source, train, val):
    """{index of a held-out image: that of its copy to train on}."""
    held_out, found = set(val.tolist()), {}
    for group in _equal(source):
        trained = [index for index in group if index not in held_out]
        if trained:
            found.update({index: trained[0] for index in group if index in held_out})
    return found


def _groups(source, group_by, say):
    """(N,): the number of each image's group by its name."""
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise InputError(f"--group_by {group_by}: no regular expression ({error})") from None
    groups, single = collections.defaultdict(list), 0
    for index in range(len(source)):
        found = pattern.search(os.path.basename(source.name(index)))
        single += found is None
        groups[found[1 if pattern.groups else 0] if found else index].append(index)
    if single == len(source) or len(groups) < 2:
        raise InputError(
            f"--group_by {group_by}: found {len(groups) - single} groups among {len(source)} names such as "
            f"{os.path.basename(source.name(0))}; expected a part of the name that several have in common, such as '^[^_]+'"
        )
    say(
        f"groups: {len(groups):,} by --group_by, of {len(source) / len(groups):.3g} images each; {single:,} names match nothing"
    )
    number = np.empty(len(source), np.int64)
    for place, members in enumerate(groups.values()):
        number[members] = place
    return number


def _by_groups(source, labels, val_split, seed, group_by, say):
    """(training, validation) sorted arrays of indices, with whole groups of names on either side."""
    groups = collections.defaultdict(list)
    for index, number in enumerate(_groups(source, group_by, say).tolist()):
        groups[number].append(index)
    wanted = collections.Counter(labels.tolist())
    wanted = {label: max(round(count * val_split), 1) for label, count in wanted.items()}
    names, val = list(groups), []
    for place in np.random.default_rng([seed, len(names)]).permutation(len(names)):
        members = groups[names[place]]
        counts = collections.Counter(labels[members].tolist())
        if 2 * sum(min(count, wanted[label]) for label, count in counts.items()) > len(members):
            val += members
            wanted = {label: max(count - counts[label], 0) for label, count in wanted.items()}
    train = np.setdiff1d(np.arange(len(source)), val)
    if not val or not len(train):
        raise InputError(f"--group_by {group_by}: its groups cannot be parted by --val_split {val_split}; take smaller groups")
    return train, np.sort(np.array(val))
