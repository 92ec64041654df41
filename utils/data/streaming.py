"""Training on a stream: a table of the library `datasets` that is read from first to last, without looking rows up.

The order of an epoch is keyed by seed and epoch. It takes the shards in a random order, cuts what comes out of them into
blocks of `buffer_size` samples, and permutes each block. Of the batches of this order process p of P takes the batches p,
p + P, …, as with `sampling.TrainBatches`. So every process gets the same number of batches and no sample comes twice, however
many shards there are and however long they are. The order depends neither on the loader workers nor, at the same total
batch, on the number of processes.

Each process reads the whole stream once, undecoded: a thread reads the next block while the loader workers decode and
augment the one before. The shuffling buffer of the library is not used, since a resumed run would lose what is in it; a
block can be read again.
"""

import concurrent.futures
from typing import NamedTuple

import numpy as np
import torch

from utils.cli.errors import InputError, first_line
from utils.data.bad_samples import ATTEMPTS
from utils.data.sampling import ORDER, stream_seed
from utils.images.read import BadImage

SHARDS = 256  # most shards that a table is split into; of a million image files, each would be one
SPARES = 8  # samples that can replace a broken one: those of its batch and, if that is smaller, others of the block
TOGETHER = 64  # rows that are read at a time
_ROWS = 1 << 32  # most rows in a shard


class StreamLoader:
    """Iterates over the training batches of this process, as a DataLoader with `sampling.TrainBatches` does.

    table: datasets.IterableDataset, its columns of images not decoded. samples: number of samples in an epoch.
    make_sample: (example, number, epoch) -> tuple, such as `datasets.RecognitionStream`; example: a row of the table,
    number: names that row in every epoch, see `place_of`. If it raises BadImage, another sample of the batch replaces this
    one. A batch is collate([(*tuple, replaced), …]); replaced: number of the broken sample that was replaced, or -1.
    buffer_size: samples in a block.

    Set `epoch` and `first_update` before iterating, and `last_update` if the epoch ends early, as with TrainBatches.
    `state_dict()` says where reading goes on after a resume; it is small, fit for JSON, and the same for all processes.
    Without it, or with that of another epoch, the batches are the same, but the rows before them are read once more.
    Iterating raises InputError if the stream cannot be read or has fewer than `samples` samples.
    """

    def __init__(
        self, table, make_sample, samples, batch_size, update_freq=1, workers=0, process=0, processes=1, seed=0,
        buffer_size=1000, collate=None, pin_memory=False, worker_init_fn=None,
    ):  # fmt: skip
        self.table, self.samples, self.batch_size, self.update_freq = table, samples, batch_size, update_freq
        self.process, self.processes, self.seed, self.buffer_size = process, processes, seed, buffer_size
        self.updates = samples // (batch_size * processes) // update_freq
        self.epoch, self.first_update, self.last_update = 0, 0, self.updates
        self.shards = min(table.num_shards, SHARDS)
        self._epoch = self._batch = 0  # of the batch that comes next
        self._resume = None
        self._places = {}  # block -> where it begins, for the blocks of the batches under way
        self._feed = _Feed()
        self._loader = torch.utils.data.DataLoader(
            _Samples(make_sample, collate or torch.utils.data.default_collate), batch_size=None, sampler=self._feed,
            collate_fn=_as_it_is, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin_memory,
            worker_init_fn=worker_init_fn,
        )  # fmt: skip

    def __len__(self):
        """Batches of this process in a whole epoch."""
        return self.updates * self.update_freq

    def __iter__(self):
        self._epoch, self._batch = self.epoch, self.first_update * self.update_freq
        self._places.clear()
        jobs = self._feed.jobs = self._jobs()
        try:
            for batch in self._loader:
                self._batch += 1  # before the yield, so that the state is that after this batch
                for block in [block for block in self._places if block < self._block() and block + 1 in self._places]:
                    del self._places[block]
                yield batch
        finally:
            jobs.close()  # ends the thread that reads

    def state_dict(self):
        """Where the block of the next batch begins, in whole numbers, and the library's own state of its shard in "stream".

        The library's state is that after `row` rows of the shard; the `skip` rows that follow belong to the block before.
        """
        block = max((block for block in self._places if block <= self._block()), default=None)
        place = _beginning() if block is None else self._places[block]
        return {**self._order(), **place}

    def load_state_dict(self, state):
        """Begin the next epoch at `state`, if it is of that epoch. Raises InputError if `state` is no state of a stream."""
        wanted = {*self._order(), *_beginning()} - {"stream"}
        if not isinstance(state, dict) or not all(type(state.get(name)) is int and state[name] >= 0 for name in wanted):
            raise InputError("the state of the stream is damaged; resume from an earlier one")
        self._resume = dict(state)

    def _order(self):
        """What the order of the samples depends on."""
        return {"epoch": self._epoch, "seed": self.seed, "shards": self.shards, "buffer_size": self.buffer_size}

    def _block(self):
        """The block in which the next batch begins; the same on every process."""
        return self._batch * self.batch_size * self.processes // self.buffer_size

    def _start(self):
        state = self._resume
        if state and all(state[name] == value for name, value in self._order().items()) and state["block"] <= self._block():
            return {name: state.get(name) for name in _beginning()}
        return _beginning()

    def _jobs(self):
        """The batches of this process, undecoded, for the workers."""
        held, size, turn = {}, self.buffer_size, self.batch_size * self.processes
        blocks = _ahead(self._blocks(self._epoch, self._start()))
        for batch in range(self.first_update * self.update_freq, self.last_update * self.update_freq):
            needed = range(batch * turn // size, ((batch + 1) * turn - 1) // size + 1)  # blocks of all processes
            held = {block: rows for block, rows in held.items() if block in needed}
            while needed[-1] not in held:
                try:
                    place, rows = next(blocks)
                except InputError as error:
                    yield error  # a worker raises it after the batches before it, as on all other processes
                    return
                self._places[place["block"]] = place
                if place["block"] in needed:
                    held[place["block"]] = rows
            start = batch * turn + self.process * self.batch_size
            own = [held[position // size][position % size] for position in range(start, start + self.batch_size)]
            spares = held[needed[0]][: max(0, SPARES - self.batch_size)]
            yield _Job(self._epoch, own, spares)

    def _blocks(self, epoch, place):
        """(where it begins, [(number, example)] in the order of training) of each block, from the block at `place` on."""
        order = _permutation(self.shards, self.seed, epoch)
        size, rows, skip = self._size(place["block"]), [], place["skip"]
        for turn in range(place["shard"], self.shards):
            shard = order[turn]
            stream = self.table.shard(self.shards, shard, contiguous=False)
            row, state = 0, None
            if place["stream"] and turn == place["shard"]:
                row, state = place["row"], place["stream"]
                stream.load_state_dict(state)
            for examples in self._examples(stream, shard):
                for at, example in enumerate(examples):
                    if skip:
                        skip -= 1
                        continue
                    rows.append((shard * _ROWS + row + at, example))
                    if len(rows) == size:
                        yield place, [rows[i] for i in _permutation(size, self.seed, epoch, place["block"])]
                        place = {"block": place["block"] + 1, "shard": turn, "row": row, "skip": at + 1, "stream": state}
                        size, rows = self._size(place["block"]), []
                        if not size:
                            return
                row, state = row + len(examples), stream.state_dict()
        found = place["block"] * self.buffer_size + len(rows)
        raise InputError(
            f"the stream ended after {found} training images; expected {self.samples}: give --train_images {found}, or see "
            "whether a shard is missing"
        )

    def _size(self, block):
        return max(0, min(self.buffer_size, self.samples - block * self.buffer_size))

    def _examples(self, stream, shard):
        """Lists of examples; the library is several times faster with many rows at a time."""
        try:
            for columns in stream.iter(TOGETHER):
                yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        except InputError:
            raise
        except Exception as error:  # the library, Arrow, tarfile and the network raise many kinds
            raise InputError(
                f"shard {shard} of the training data cannot be read ({type(error).__name__}: {first_line(error)}); repair it, "
                "or run the same command again if the network failed"
            ) from None


def place_of(number):
    """(shard, row in the shard) of the number of a sample."""
    return divmod(number, _ROWS)


class _Job(NamedTuple):
    """A batch that a worker makes. own: [(number, example)] of it; spares: as many as may replace broken ones."""

    epoch: int
    own: list
    spares: list


class _Samples(torch.utils.data.Dataset):
    """Indexed by a `_Job`, gives the collated batch; indexed by an exception, raises it."""

    def __init__(self, make_sample, collate):
        self.make_sample, self.collate = make_sample, collate

    def __getitem__(self, job):
        if isinstance(job, Exception):
            raise job
        return self.collate([self._sample(job, place) for place in range(len(job.own))])

    def _sample(self, job, place):
        """The sample at `place`. The last whole one before it, in a batch taken as a ring, or a spare replaces a broken one."""
        number, example = job.own[place]
        try:
            return *self.make_sample(example, number, job.epoch), -1
        except BadImage as error:
            first = str(error)
        others = [*job.own[:place][::-1], *job.own[place + 1 :][::-1], *job.spares][:ATTEMPTS]
        for _, other in others:
            try:
                return *self.make_sample(other, number, job.epoch), number
            except BadImage:
                continue
        raise InputError(f"{first} (and {len(others)} others tried in its place are broken too)")


class _Feed:
    """The sampler of the DataLoader: its iterator is `jobs`, which each epoch sets."""

    jobs = None

    def __iter__(self):
        return self.jobs


def _as_it_is(batch):
    return batch


def _beginning():
    return {"block": 0, "shard": 0, "row": 0, "skip": 0, "stream": None}


def _permutation(count, seed, *position):
    """range(count) as a list in random order, keyed by (seed, *position)."""
    return np.random.default_rng(stream_seed(seed, ORDER, *position, count)).permutation(count).tolist()


def _ahead(items):
    """The items; a thread makes the next one while the caller uses one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
