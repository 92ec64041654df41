"""Loaders: batches one ahead on a lane beside the computing one, and places in a stream from which a resume goes on."""

import itertools
import json
import multiprocessing
import socket
import subprocess
import sys
import time
from multiprocessing import resource_sharer

import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from utils.augment.fast import finish
from utils.augment.mixup import Mixup
from utils.cli.errors import InputError
from utils.cli.recognition_flags import MixupOptions
from utils.data.loaders import Loader, in_worker
from utils.data.sampling import EvalBatches, TrainBatches
from utils.data.streaming import StreamLoader
from utils.images.read import IGNORE, unpack_masks

SHARDS = (7, 31, 22)  # rows of the table, which are numbered
BLOCK, CHUNK = 8, 4  # rows that are shuffled together, and that are read at a time


class Lane:
    """A lane whose work is done as late as on a busy GPU: when a batch is handed over. `events` tells the order."""

    def __init__(self):
        self.events, self.count = [], itertools.count()

    def run(self, function, *arguments):
        number = next(self.count)
        self.events.append(f"begin {number}")
        return number, lambda: function(*arguments)

    def hand_over(self, prepared):
        number, work = prepared
        self.events.append(f"hand over {number}")
        return work()


class Table:
    """What StreamLoader asks of a datasets.IterableDataset. `read`: rows that were read so far, of all shards."""

    num_shards, read = len(SHARDS), 0

    def shard(self, shards, shard, contiguous):
        return Shard(self, range(sum(SHARDS[:shard]), sum(SHARDS[: shard + 1])))


class Shard:
    def __init__(self, table, rows):
        self.table, self.rows, self.at = table, rows, 0

    def iter(self, count):
        while self.at < len(self.rows):
            rows = list(self.rows[self.at : self.at + min(count, CHUNK)])
            self.at += len(rows)
            self.table.read += len(rows)
            yield {"x": rows}

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def stack(samples):
    """[(row, replaced)] -> [rows as images (B, 1, 1, 1), rows as labels (B,), replaced (B,)]"""
    rows, replaced = map(torch.tensor, zip(*samples, strict=True))
    return [rows.view(-1, 1, 1, 1).float(), rows, replaced]


def stream_loader(lane=None, table=None):
    """20 batches of 3 rows in 10 updates, shuffled in blocks."""
    order = StreamLoader(
        table or Table(), lambda example, number, epoch: (example["x"],), sum(SHARDS), 3, 2, seed=3, buffer_size=BLOCK,
        collate=stack,
    )  # fmt: skip
    return Loader(order, order, device="cpu", lane=lane)


def table_loader(lane=None):
    """20 batches of 3 rows in 10 updates, from a data set that can be indexed."""
    order = TrainBatches(60, 3, 2, seed=3)
    rows = [(row, -1) for row in range(60)]
    batches = torch.utils.data.DataLoader(Indexed(rows), batch_sampler=order, collate_fn=stack)
    return Loader(batches, order, device="cpu", lane=lane)


class Indexed(list):
    def __getitem__(self, key):
        return super().__getitem__(key.index)


def rows_of(loader, epoch=0, first_update=0, last_update=None):
    loader.start(epoch, first_update, last_update)
    return [labels.tolist() for _, labels, _ in loader]


def numbered(count):
    """Batches of one image and one label, which are its number."""
    return [(torch.full((1, 3, 2, 2), float(n)), torch.tensor([n])) for n in range(count)]


def test_each_batch_is_begun_while_the_one_before_is_in_use():
    lane = Lane()
    for _images, labels in Loader(numbered(4), None, device="cpu", lane=lane):
        lane.events.append(f"use {labels.item()}")
    assert lane.events == [
        "begin 0", "begin 1", "hand over 0", "use 0", "begin 2", "hand over 1", "use 1", "begin 3", "hand over 2", "use 2",
        "hand over 3", "use 3",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_fewest_batches(count):
    assert [labels.item() for _, labels in Loader(numbered(count), None, device="cpu", lane=Lane())] == [*range(count)]


@pytest.mark.parametrize("make", [stream_loader, table_loader])
def test_a_lane_changes_no_batch_in_any_epoch(make):
    plain, ahead = make(), make(Lane())
    for epoch, first, last in ((0, 0, None), (1, 3, None), (2, 0, 4)):
        batches = rows_of(ahead, epoch, first, last)
        assert batches == rows_of(plain, epoch, first, last)
        assert len(batches) == 2 * ((10 if last is None else last) - first)


@pytest.mark.parametrize("make", [stream_loader, table_loader])
def test_an_epoch_that_was_left_leaves_nothing_behind(make):
    loader = make(Lane())
    loader.start(0, 0)
    for _ in zip(range(3), loader, strict=False):
        pass
    assert rows_of(loader, 1) == rows_of(make(), 1)


@pytest.mark.parametrize("lane", [None, Lane], ids=["plain", "ahead"])
def test_a_resume_after_any_update_goes_on_exactly_and_reads_no_epoch_again(lane):
    whole, table = rows_of(stream_loader()), Table()
    loader = stream_loader(lane and lane(), table)
    loader.start(0, 0)
    for batch, _ in enumerate(loader, start=1):
        if batch % 2:
            continue  # within an update, where nothing is saved
        state, update = json.loads(json.dumps(loader.state)), batch // 2
        again = stream_loader(lane and lane(), Table())
        again.load_state_dict(state)
        assert rows_of(again, 0, update) == whole[batch:]
        before = 3 * batch // BLOCK * BLOCK  # rows of the blocks before that of the next batch
        assert again.order.table.read <= sum(SHARDS) - before + BLOCK + CHUNK
    assert batch == 20


def test_the_place_in_a_stream_is_that_of_the_batch_in_use():
    states = []
    for loader in (stream_loader(), stream_loader(Lane())):
        loader.start(0, 0)
        states.append([loader.state for _ in loader])
    assert states[0] == states[1]


def test_a_state_of_a_stream_means_nothing_to_a_table():
    """A run that was started with --streaming and goes on without."""
    stream, table = stream_loader(), table_loader()
    rows_of(stream)
    table.load_state_dict(stream.state)
    assert rows_of(table) == rows_of(table_loader())


@pytest.mark.parametrize("lane", [None, Lane], ids=["plain", "ahead"])
def test_a_fault_comes_after_the_batches_before_it(lane):
    def broken():
        yield from numbered(3)
        raise InputError("the stream ended")

    batches = iter(Loader(broken(), None, device="cpu", lane=lane and lane()))
    assert [next(batches)[1].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="the stream ended"):
        next(batches)


def test_what_is_left_to_do_is_done_on_the_lane_and_numbers_of_replaced_samples_stay():
    def darken(images, amount):
        return images.float() / 255 - amount

    lane, replaced = Lane(), torch.tensor([-1, 7])
    batch = [torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), 0.25, torch.tensor([0, 1]), replaced]
    order, ways = EvalBatches(2, 2), {"channels_last": True, "lane": lane}
    ((images, labels, others),) = Loader([batch], order, device="cpu", finish=darken, **ways)
    assert images.dtype == torch.float32 and (images == 0.75).all() and images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 1] and others is replaced
    batch[2] = torch.tensor([0, 3], dtype=torch.uint8)
    ((_, masks, _),) = Loader([batch], order, device="cpu", finish=darken, finish_labels=unpack_masks, **ways)
    assert masks.dtype == torch.int64 and masks.tolist() == [IGNORE, 2]


class Part:
    """A tensor that notes how it is copied."""

    def __init__(self):
        self.copies = []

    def to(self, **options):
        self.copies.append(options)
        return self


@pytest.mark.parametrize(("device", "awaited_later"), [("mps", False), ("cuda", True), ("cpu", True)])
def test_a_copy_to_apples_gpus_is_awaited(device, awaited_later):
    """From memory that is not page-locked it would be damaged (pytorch#139550)."""
    images, labels = Part(), Part()
    list(Loader([(images, labels)], None, device=device, lane=Lane()))
    for part in (images, labels):
        assert [(str(copy["device"]), copy["non_blocking"]) for copy in part.copies] == [(device, awaited_later)]


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_what_a_batch_needs_besides_is_not_left_for_later_either(mode):
    """Noise to erase with and lambdas of mixup, on a device that only pretends to be there."""
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        images = finish(torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="mps"), ([], torch.ones(3)), (0.5,) * 3, (0.5,) * 3)
        labels = torch.zeros(4, dtype=torch.int64, device="mps")
        Mixup(5, MixupOptions(mixup=0.8, mixup_mode=mode))(images, labels, seed=0)
    assert len(copies.awaited) >= 2 and all(copies.awaited)


class Copies(TorchFunctionMode):
    """Notes of each copy to Apple's GPUs whether it is waited for."""

    def __init__(self):
        self.awaited = []

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.to and "mps" in str(args[1:]):
            self.awaited.append(not kwargs.get("non_blocking", False))
        return function(*args, **kwargs)


# A script with loader workers; at its end torch waits for them as it does beside pinned memory, up to five seconds for each.
WITH_WORKERS = f"""
import atexit, sys, types
sys.path.insert(0, {str(ROOT)!r})
from utils.cli.arguments import Batch
from utils.cli.errors import run_script
from utils.data.loaders import build_loaders
import torch

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, place):
        return torch.zeros(3, 4, 4), 0

def main(args):
    global loaders
    loaders = build_loaders(Images(), Images(), Batch(2, 1, 1, 0), device=torch.device("cpu"), workers=2)
    for loader in loaders:
        list(loader)
        for worker in loader.batches._iterator._workers:
            atexit.register(worker.join, 5)
    print("done", flush=True)

run_script("script", main, None)
"""


def test_a_script_ends_when_it_is_done():
    script = subprocess.Popen([sys.executable, "-c", WITH_WORKERS], stdout=subprocess.PIPE, text=True)
    assert script.stdout.readline() == "done\n"
    done = time.monotonic()
    assert script.wait(30) == 0 and time.monotonic() - done < 3


def break_off():
    """In a worker: whoever asked for a tensor goes away in the middle of it; then something else goes wrong."""
    in_worker(0)
    address, _ = resource_sharer.DupFd(0)._id
    for beside in (False, True):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(address)
        caller.close()
        time.sleep(0.3)
        if beside:
            sys.excepthook(ValueError, ValueError("of another kind"), None)


def test_a_worker_prints_no_traceback_of_a_process_that_went_away(capfd):
    worker = multiprocessing.get_context("fork").Process(target=break_off)
    worker.start()
    worker.join()
    said = capfd.readouterr().err
    assert "of another kind" in said and "Reset" not in said and "EOFError" not in said and "Broken" not in said, said
