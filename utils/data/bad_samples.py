"""Broken samples: what training takes in their place, how many there are and which, and the search for them beforehand.

Training goes on without an image that cannot be read, but never silently; what is not an image's fault (a mask, a size)
and all of the validation stay errors.
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import pathlib

import accelerate
from tqdm import tqdm

from utils.cli.errors import InputError, one_line
from utils.data.sampling import replacement
from utils.images import BadImage

ATTEMPTS = 20  # replacements that are tried for one sample
NAMED = 10  # broken images of a run that the log names
AHEAD = 64  # samples that are read before their turn


def read_or_replace(read, key, seed, samples):
    """(read(i), i) for the key's index i or, where that raises BadImage and `seed` is not None, for a replacement.

    A pure function of seed, epoch and index, so that workers, processes and a resumed run agree. read: any function of an
    index below `samples`. Raises InputError naming the sample where its replacements are broken too.
    """
    try:
        return read(key.index), key.index
    except BadImage as error:
        if seed is None:
            raise
        first = str(error)  # the exception itself would hold on to the frames that it passed
    for attempt in range(1, ATTEMPTS + 1):
        index = replacement(seed, key.epoch, key.index, attempt, samples)
        try:
            return read(index), index
        except BadImage:
            continue
    raise InputError(f"{first} (and {ATTEMPTS} others tried in its place are broken too)")


class BadSamples:
    """The broken training samples that a run has met: counted once each, named, limited.

    name_of: index -> name; samples: how many the training set has; limit: the share of them that may be broken;
    known: the indices that a saved state holds. Each process notes its own, and `merge` makes all of them know all.
    """

    def __init__(self, name_of, samples, limit=0.01, known=()):
        self.name_of, self.samples, self.limit = name_of, samples, limit
        self._known, self._pending = set(known), set()

    @property
    def total(self):
        return len(self._known)

    @property
    def indices(self):
        """Sorted, for the saved state."""
        return sorted(self._known)

    @property
    def pending(self):
        """Sorted indices noted here that were not known at the last merge."""
        return sorted(self._pending)

    def note(self, indices):
        """The third element of this process's batch: whole numbers or (B,) int64 on the CPU, -1 where nothing is wrong."""
        indices = indices.tolist() if hasattr(indices, "tolist") else indices
        self._pending.update(index for index in indices if index >= 0 and index not in self._known)

    def merge(self, lists):
        """Take in the `pending` of all processes; the lines for the log, the same on each of them."""
        new, before = sorted(set().union(*lists) - self._known), self.total
        self._known.update(new)
        self._pending -= self._known
        lines = [f"broken image, replaced: {self._name(index)}" for index in new[: max(NAMED - before, 0)]]
        if before <= NAMED < self.total:
            lines.append(f"more than {NAMED} broken images: the others are counted without being named here")
        return lines

    def check(self):
        """InputError where more than the limit are broken."""
        if self.total > self.limit * self.samples:
            names = ", ".join(self._name(index) for index in self.indices[:3]) + ", …" * (self.total > 3)
            raise InputError(
                f"{self.total} of {self.samples} training images ({100 * self.total / self.samples:.3g} %) are broken, which "
                f"is more than {100 * self.limit:.3g} %: {names}; repair or remove them, or raise --max_bad_samples"
            )

    def write(self, path):
        """Write all names to the text file `path`, one a line, in one step."""
        path = pathlib.Path(path)
        aside = path.with_name(f"tmp-{path.name}")
        aside.write_text("".join(f"{self._name(index)}\n" for index in self.indices), encoding="utf-8")
        os.replace(aside, path)

    def _name(self, index):
        return one_line(self.name_of(index))


def check_all(sources, progress=None, share=(0, 1)):
    """[(number of the source, index, message, whether training may replace it)] of all samples that cannot be read, in order.

    sources: of recognition or segmentation; share: (rank, processes), of which this one reads its part. progress: such as
    tqdm, wraps the samples.
    """
    rank, processes = share
    # A source of recognition has as many samples as labels.
    parts = [range(rank, len(getattr(source, "labels", source)), processes) for source in sources]
    samples = ((number, index) for number, part in enumerate(parts) for index in part)

    def look(sample):
        number, index = sample
        try:
            sources[number].read(index)
        except InputError as error:
            return number, index, str(error), isinstance(error, BadImage)

    results = in_threads(look, samples)
    results = progress(results, total=sum(map(len, parts))) if progress else results
    return [fault for fault in results if fault]


def check_data(accelerator, bad_samples, train_source, val_source, log):
    """Read every sample once, shared among the processes; check_data.txt in the run's folder lists what cannot be read.

    Broken images of the training set are counted as if met in training. InputError where there are too many of them, and
    for anything else: a mask, or a sample of the validation set.
    """
    bar = functools.partial(tqdm, desc="check_data", unit="sample", disable=not accelerator.is_main_process)
    share = (accelerator.process_index, accelerator.num_processes)
    faults = sorted(accelerate.utils.gather_object(check_all([train_source, val_source], bar, share)))
    where = "nothing to list"
    if log.folder and faults:
        where = log.folder / "check_data.txt"
        where.write_text("".join(f"{message}\n" for _, _, message, _ in faults), encoding="utf-8")
    log.say(f"check_data: {len(faults)} samples cannot be read; {where}")
    fatal = [message for number, _, message, replaceable in faults if number == 1 or not replaceable]
    if fatal:
        raise InputError(
            f"{len(fatal)} samples of the validation set, or masks, cannot be read: {fatal[0]}; see check_data.txt"
        )
    for line in bad_samples.merge([[index for _, index, _, _ in faults]]):
        log.warn(line)
    bad_samples.check()


def in_threads(function, items):
    """The results in order, as they come; decoders let other threads run meanwhile. Holds AHEAD items, however many come."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = iter(items)
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, AHEAD))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
