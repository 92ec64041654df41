"""Broken samples: training replaces them, counts them and names them, and can search for them before it starts.

Only an image that cannot be read is replaced. A mask that cannot be read, a mask of another size than its image, and any
broken sample of the validation set end the run.
"""

import collections
import concurrent.futures
import functools
import itertools
import os

import accelerate
from tqdm import tqdm

from utils.cli.errors import InputError, one_line
from utils.data.sampling import replacement
from utils.files import write_text
from utils.images.read import BadImage

ATTEMPTS = 20  # replacements that are tried for one sample
NAMED = 10  # broken images of a run that the log names
AHEAD = 64  # samples that are read before their turn


def read_or_replace(read, key, seed, samples):
    """(read(i), i) for the index i of the key or, if that raises BadImage, for the index of a replacement.

    Which one replaces it is a pure function of seed, epoch and index, so that workers, processes and a resumed run agree.
    read: function of an index below `samples`. Without a seed BadImage is raised as it is. Raises InputError, which names
    the sample, if ATTEMPTS replacements are broken too.
    """
    try:
        return read(key.index), key.index
    except BadImage as error:
        if seed is None:
            raise
        first = str(error)  # not the exception, which keeps all that its frames hold in memory
    for attempt in range(1, ATTEMPTS + 1):
        index = replacement(seed, key.epoch, key.index, attempt, samples)
        try:
            return read(index), index
        except BadImage:
            continue
    raise InputError(f"{first} (and {ATTEMPTS} others tried in its place are broken too)")


class BadSamples:
    """The broken training samples of a run, each counted once.

    name_of: index -> name. samples: number of training samples. limit: the fraction of them that may be broken. known:
    indices from a saved state, of which those beyond the samples are left out. Each process notes what it meets; after `merge`
    every process knows of all.
    """

    def __init__(self, name_of, samples, limit=0.01, known=()):
        self.name_of, self.samples, self.limit = name_of, samples, limit
        self._known, self._pending = {index for index in known if index < samples}, set()

    @property
    def total(self):
        return len(self._known)

    @property
    def indices(self):
        """Sorted indices of all of them, for the saved state."""
        return sorted(self._known)

    @property
    def pending(self):
        """Sorted indices that this process has noted since the last merge."""
        return sorted(self._pending)

    def note(self, indices):
        """Take in the last element of a training batch: indices of broken samples, -1 for whole ones; a list or (B,) int64."""
        indices = indices.tolist() if hasattr(indices, "tolist") else indices
        self._pending.update(index for index in indices if index >= 0 and index not in self._known)

    def merge(self, lists):
        """Take in the `pending` of all processes. Returns lines for the log, the same on every process; NAMED have a name."""
        new, before = sorted(set().union(*lists) - self._known), self.total
        self._known.update(new)
        self._pending -= self._known
        lines = [f"broken image, replaced: {self._name(index)}" for index in new[: max(NAMED - before, 0)]]
        if before <= NAMED < self.total:
            lines.append(f"more than {NAMED} broken images: the others are counted without being named here")
        return lines

    def check(self):
        """Raise InputError if more are broken than may be."""
        if self.total > most_broken(self.samples, self.limit):
            names = ", ".join(self._name(index) for index in self.indices[:3]) + ", …" * (self.total > 3)
            raise InputError(
                f"{self.total} of {self.samples} training images ({100 * self.total / self.samples:.3g} %) are broken, which "
                f"is more than {100 * self.limit:.3g} %: {names}; repair or remove them, or raise --max_bad_samples"
            )

    def write(self, path):
        """Write all names to the text file `path`, one a line."""
        write_text(path, "".join(f"{self._name(index)}\n" for index in self.indices))

    def _name(self, index):
        return one_line(self.name_of(index))


def most_broken(samples, limit):
    """How many of so many samples may be broken: the fraction `limit` of them and, where any may be, one at least."""
    return max(limit * samples, limit > 0)


def check_all(sources, process=0, processes=1, progress=None):
    """[(place of the source in `sources`, index, message, whether training replaces it)] of the samples that cannot be read.

    Of `processes` this one reads every sample whose index is `process` + a multiple of `processes`. progress: wraps the
    samples that are read, as tqdm does.
    """
    parts = [range(process, len(source), processes) for source in sources]
    samples = ((place, index) for place, part in enumerate(parts) for index in part)

    def fault_of(sample):
        place, index = sample
        try:
            sources[place].read(index)
        except InputError as error:
            return place, index, str(error), isinstance(error, BadImage)

    faults = in_threads(fault_of, samples)
    faults = progress(faults, total=sum(map(len, parts))) if progress else faults
    return [fault for fault in faults if fault]


def check_data(accelerator, bad_samples, train_source, val_source, log):
    """Read every sample once, each process a part of them. check_data.txt in the run's folder lists what cannot be read.

    Broken images of the training set are counted in `bad_samples`, as if training had met them. Raises InputError if there
    are too many of them, if a mask cannot be used, or if a sample of the validation set, or of its `test`, cannot be read.
    """
    sources = [source for source in (train_source, val_source, getattr(val_source, "test", None)) if source is not None]
    bar = functools.partial(tqdm, desc="check_data", unit="sample", disable=not accelerator.is_main_process)
    faults = check_all(sources, accelerator.process_index, accelerator.num_processes, bar)
    faults = sorted(accelerate.utils.gather_object(faults))
    listed = ""
    if log.folder and faults:
        listed = f"; they are listed in {log.folder / 'check_data.txt'}"
        write_text(log.folder / "check_data.txt", "".join(f"{message}\n" for _, _, message, _ in faults))
    log.say(f"check_data: {len(faults)} samples cannot be read{listed}")
    fatal = [message for place, _, message, replaceable in faults if place > 0 or not replaceable]
    if fatal:
        raise InputError(
            f"{len(fatal)} samples to validate or test on, or masks, cannot be read: {fatal[0]}; see check_data.txt"
        )
    for line in bad_samples.merge([[index for _, index, _, _ in faults]]):
        log.warn(line)
    bad_samples.check()


def in_threads(function, items):
    """The results of `function`, in the order of the items; at most AHEAD items are computed before their turn.

    Image decoders release Python's lock, so that threads decode at the same time.
    """
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = iter(items)
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, AHEAD))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
