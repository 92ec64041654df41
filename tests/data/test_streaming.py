"""Streams: every sample once on any number of processes and workers, resumed at any batch, broken samples replaced."""

import itertools
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from utils.cli.errors import InputError
from utils.data.streaming import StreamLoader, place_of
from utils.images.read import BadImage

SHARDS = (7, 31, 22)  # rows: uneven, and fewer shards than processes x workers


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 numbered rows in three Parquet files of small row groups."""
    folder, start = tmp_path_factory.mktemp("numbers"), 0
    for shard, rows in enumerate(SHARDS):
        numbers = pa.table({"x": list(range(start, start + rows))})
        pa.parquet.write_table(numbers, folder / f"train-{shard}.parquet", row_group_size=5)
        start += rows
    return datasets.load_dataset(str(folder), split="train", streaming=True)


def number_of(example, number, epoch):
    """A sample that tells what it is made from, and with."""
    return example["x"], number, epoch


def loader(table, batch_size=5, make=number_of, **kwargs):
    return StreamLoader(table, make, 60, batch_size, **({"seed": 3, "buffer_size": 8, "collate": list} | kwargs))


def batches(loader, epoch=0, first_update=0, last_update=None):
    loader.epoch, loader.first_update = epoch, first_update
    loader.last_update = loader.updates if last_update is None else last_update
    return list(loader)


def rows(batches):
    return [sample[0] for batch in batches for sample in batch]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 2), (3, 0)])
def test_every_sample_once(table, processes, workers):
    of_one = batches(loader(table, 5 * 6))
    parts = [batches(loader(table, 30 // processes, process=p, processes=processes, workers=workers)) for p in range(processes)]
    assert [len(part) for part in parts] == [2] * processes
    assert sorted(row for part in parts for row in rows(part)) == list(range(60))
    # the same order whatever the processes and workers, and the same number for the same sample
    assert [[sample for batch in turn for sample in batch] for turn in zip(*parts, strict=True)] == of_one


def test_order_and_numbers(table):
    stream = loader(table, 60)
    first, second, again = (batches(stream, epoch)[0] for epoch in (0, 1, 0))
    other = batches(loader(table, 60, seed=4))[0]
    orders = [[row for row, *_ in batch] for batch in (first, second, other)]
    assert first == again and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(60)) for order in orders)
    shards = [np.searchsorted(np.cumsum(SHARDS), order, side="right") for order in orders]  # which each row is of
    assert len({tuple(dict.fromkeys(shard)) for shard in shards}) > 1
    numbers = [{row: number for row, number, *_ in batch} for batch in (first, second)]
    assert numbers[0] == numbers[1] and len(set(numbers[0].values())) == 60
    assert [place_of(numbers[0][row]) for row in (0, 6, 7, 59)] == [(0, 0), (0, 6), (1, 0), (2, 21)]
    assert [epoch for _, _, epoch, _ in second] == [1] * 60


def test_blocks_are_permuted_in_themselves(table):
    numbers = [number for _, number, *_ in batches(loader(table, 60))[0]]
    shard_order = list(dict.fromkeys(place_of(number)[0] for number in sorted(numbers, key=numbers.index)))
    for start in range(0, 60, 8):
        block = sorted(numbers[start : start + 8], key=lambda number: (shard_order.index(place_of(number)[0]), number))
        places = [place_of(number) for number in block]
        for (shard, row), (next_shard, next_row) in itertools.pairwise(places):
            assert (next_shard, next_row) == (shard, row + 1) or next_row == 0  # what came out of the shards together
    assert numbers[:8] != sorted(numbers[:8])


@pytest.mark.parametrize(("workers", "together"), [(0, 64), (2, 4), (0, 1)])
def test_goes_on_where_it_stopped(table, monkeypatch, workers, together):
    monkeypatch.setattr("utils.data.streaming.TOGETHER", together)
    kwargs = {"process": 1, "processes": 2, "update_freq": 2, "workers": workers, "buffer_size": 11}
    whole = [batches(loader(table, 3, **kwargs), epoch) for epoch in (0, 1)]
    assert [len(epoch) for epoch in whole] == [10, 10]
    for stop in (1, 4):
        stream = loader(table, 3, **kwargs)
        stream.epoch, got = 1, []
        for batch in stream:
            got.append(batch)
            if len(got) == 2 * stop:
                state = json.loads(json.dumps(stream.state_dict()))
                break
        assert len(json.dumps(state)) < 1000 and state["block"] == 2 * stop * 6 // 11  # what is under way does not count
        resumed = loader(table, 3, **kwargs)
        resumed.load_state_dict(state)
        assert got + batches(resumed, 1, stop) == whole[1]
        assert batches(loader(table, 3, **kwargs), 1, stop) == whole[1][2 * stop :]  # without a state, only later
        assert batches(resumed, 0) == whole[0]  # a state is for its own epoch
        kwargs_of_one = kwargs | {"process": 0, "processes": 1, "update_freq": 4}
        alone = loader(table, 3, **kwargs_of_one)
        alone.load_state_dict(state)
        assert batches(alone, 1, stop)[1::2] == whole[1][2 * stop :]


def test_resuming_reads_no_shard_that_is_done(tmp_path):
    def generate(shards):
        for shard in shards:
            with open(tmp_path / "opened", "a") as file:
                file.write(f"{shard}\n")
            yield from ({"x": 10 * shard + i} for i in range(10))

    table = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": list(range(6))})
    stream = loader(table, 5, buffer_size=10)
    for count, _ in enumerate(stream):
        if count == 8:
            state = stream.state_dict()
    (tmp_path / "opened").unlink()
    resumed = loader(table, 5, buffer_size=10)
    resumed.load_state_dict(state)
    assert len(batches(resumed, 0, 9)) == 3
    assert len(set((tmp_path / "opened").read_text().split())) <= 3


def test_an_epoch_that_is_cut_and_whole_updates(table):
    stream = loader(table, 7, processes=2, update_freq=2)  # 60 // 14 // 2
    assert stream.updates == 2 and len(stream) == 4 and len(batches(stream)) == 4
    assert batches(stream, 0, 1, 2) == batches(stream)[2:] and len(batches(stream, 0, 0, 1)) == 2
    few = StreamLoader(table, number_of, 12, 4, buffer_size=100, collate=list)  # of more than there are asked for
    assert len(rows(batches(few))) == 12


def test_too_few_samples_end_all_processes(table):
    for process in range(2):
        stream = StreamLoader(table, number_of, 70, 5, process=process, processes=2, buffer_size=8, collate=list)
        got = []
        with pytest.raises(InputError, match="ended after 60 training images; expected 70: give --train_images 60"):
            for batch in stream:
                got.append(batch)
        assert len(got) == 5  # all that the whole blocks, of 56, are enough for


@pytest.mark.parametrize("state", [None, [], {"epoch": 0}, {"epoch": -1}, {"epoch": "0"}])
def test_a_damaged_state(table, state):
    with pytest.raises(InputError, match="the state of the stream is damaged"):
        loader(table).load_state_dict(state)


def test_a_library_state_that_does_not_fit(table):
    stream = loader(table)
    next(iter(stream))
    assert json.loads(json.dumps(stream.state_dict()))["seed"] == 3
    state = {**stream.state_dict(), "block": 1, "stream": {"epoch": 0, "examples_iterable": {"no": "such"}}}
    stream.load_state_dict(state)
    with pytest.raises(InputError, match=r"shard \d of the training data cannot be read"):
        batches(stream, 0, 3)


def broken(example, number, epoch):
    if example["x"] % 10 < 3:
        raise BadImage(f"row {example['x']} is no image")
    return example["x"], number, epoch


@pytest.mark.parametrize("batch_size", [1, 6])
def test_broken_images_are_replaced(table, batch_size):
    got = [sample for batch in batches(loader(table, batch_size, broken)) for sample in batch]
    wanted = [sample for batch in batches(loader(table, batch_size)) for sample in batch]
    assert len(got) == 60 and got == [
        sample for batch in batches(loader(table, batch_size, broken, workers=2)) for sample in batch
    ]
    for (row, number, _, replaced), (true_row, true_number, *_) in zip(got, wanted, strict=True):
        assert number == true_number  # the random numbers are those of the sample's own place
        assert (row == true_row and replaced == -1) if true_row % 10 >= 3 else (row % 10 >= 3 and replaced == number)
    if batch_size == 6:
        for start in range(0, 60, 6):
            for i in range(start + 1, start + 6):  # by the last whole one before it, where there is one in the batch
                before = [row for row, *_ in wanted[start:i] if row % 10 >= 3]
                assert wanted[i][0] % 10 >= 3 or not before or got[i][0] == before[-1]


def test_iterated_anew_before_the_end(table):
    stream = loader(table)
    first, second = iter(stream), iter(stream)
    one = next(first)
    assert next(second) == one
    first.close()
    assert len(list(second)) == 11


def test_nothing_but_broken_images(table):
    def all_broken(example, number, epoch):
        raise BadImage("it is no image")

    with pytest.raises(InputError, match=r"it is no image \(and 7 others tried in its place are broken too\)"):
        batches(loader(table, 2, all_broken))
