"""From data sets to batches on the device, for training and for evaluation."""

import contextlib
import gc
import multiprocessing.util
import os
import signal
import sys

import torch

from utils.cli.errors import InputError
from utils.data.sampling import EvalBatches, TrainBatches
from utils.data.streaming import StreamLoader
from utils.machine import workers_that_fit

LAST_BATCHES = 15  # seconds that a loader worker goes on after SIGTERM, for the update under way


def build_loaders(
    train_set, val_set, batch, *, device, seed=0, eval_batch_size=None, workers=0, pin_memory=True, dist_eval=True,
    shuffle_buffer=None, collate=None, eval_collate=None, finish=None, finish_labels=None, channels_last=False, sampling=None,
):  # fmt: skip
    """(Loader to train on or None, Loader to evaluate on).

    train_set: of utils/data/datasets.py, None: there is nothing to train on; val_set: of the same; batch: Batch. seed: of the
    order of training. eval_batch_size: images per process, None: as in training. shuffle_buffer: samples that a stream shuffles
    at a time; None: `train_set` is no stream. collate: as of torch's DataLoader; eval_collate: another one for evaluation;
    finish, finish_labels: what is left to do on the device, see `Loader`. sampling: how often the samples of each class come;
    None: each sample once. Raises InputError where the training images are fewer than one update needs.
    """
    share = (batch.process, batch.processes)
    pinned = pin_memory and device.type == "cuda"
    say = print if batch.process == 0 else (lambda line: None)
    workers = workers_that_fit(workers, train_set or val_set, batch.size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), say)
    options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": pinned, "worker_init_fn": in_worker}
    multiprocessing.util.Finalize(None, end_workers, exitpriority=10)  # when this process ends
    on_device = {"device": device, "finish": finish, "finish_labels": finish_labels, "channels_last": channels_last}
    train_loader = None
    if train_set is not None:
        if shuffle_buffer:
            order = batches = StreamLoader(
                train_set.source.table, train_set, len(train_set), batch.size, batch.update_freq, workers, *share, seed,
                shuffle_buffer, collate, pin_memory=pinned, worker_init_fn=in_worker,
            )  # fmt: skip
        else:
            order = TrainBatches(len(train_set), batch.size, batch.update_freq, *share, seed, sampling)
            batches = torch.utils.data.DataLoader(train_set, batch_sampler=order, collate_fn=collate, **options)
        if order.updates == 0:
            raise InputError(f"{len(train_set)} training images are less than one update needs, {batch.total} ({batch})")
        train_loader = Loader(batches, order, **on_device)
    order = EvalBatches(len(val_set), eval_batch_size or batch.size, *(share if dist_eval else (0, 1)))
    batches = torch.utils.data.DataLoader(val_set, batch_sampler=order, collate_fn=eval_collate or collate, **options)
    return train_loader, Loader(batches, order, **on_device)


class Loader:
    """Iterates over batches on the device: (images (B, 3, H, W) float32, labels or masks, …).

    batches: gives (images, labels, …) or, where `finish` is needed, (images (B, 3, H, W) uint8, the rest, labels, …).
    order: TrainBatches, StreamLoader or EvalBatches, which say what comes when. finish: (uint8 images on the device, the rest
    that is to be done, such as what to erase) -> normalised images. finish_labels: labels or masks on the device -> int64;
    None: they are. What follows the labels (numbers of replaced samples, sizes of images) stays on the CPU.
    lane: a second stream of the device, on which the next batch is copied and finished while one is in use; None: there is
    none, as on a CPU. It is one for the life of the loader, since memory that a stream freed is kept for that stream.
    """

    def __init__(self, batches, order, *, device, finish=None, finish_labels=None, channels_last=False, lane=None):
        self.batches, self.order, self.device = batches, order, torch.device(device)
        self.finish, self.finish_labels = finish, finish_labels
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.lane = CudaLane(self.device) if lane is None and self.device.type == "cuda" else lane
        self.state = {}  # of a stream of data, after the batch that was given last

    def __len__(self):
        return len(self.batches)

    @property
    def updates(self):
        """Updates in an epoch."""
        return self.order.updates

    def start(self, epoch, first_update, last_update=None):
        """The next iteration is over this epoch, from update `first_update` of it to before `last_update`, or to its end."""
        self.order.epoch, self.order.first_update = epoch, first_update
        self.order.last_update = self.updates if last_update is None else last_update

    def load_state_dict(self, state):
        """Begin reading a stream of data at `state`, which `state` was after some batch. Other data has no such place."""
        if state and hasattr(self.order, "load_state_dict"):
            self.order.load_state_dict(state)

    def __iter__(self):
        waiting = fault = None
        try:
            for batch in self.batches:
                state = self.order.state_dict() if hasattr(self.order, "state_dict") else {}
                if self.lane is None:
                    self.state = state
                    yield self._prepare(batch)
                    continue
                prepared = self.lane.run(self._prepare, batch)
                if waiting is not None:
                    yield self._hand_over(*waiting)
                waiting = prepared, state
        except Exception as error:  # after the batches before it, as without a lane
            fault = error
        if waiting is not None:
            yield self._hand_over(*waiting)
        if fault is not None:
            raise fault

    def _hand_over(self, prepared, state):
        self.state = state
        return self.lane.hand_over(prepared)

    def _prepare(self, batch):
        images, *rest = batch
        left = rest.pop(0) if self.finish is not None else None
        # From memory that is not page-locked a copy to Apple's GPUs must not be awaited later: it would be damaged.
        moved = {"device": self.device, "non_blocking": self.device.type != "mps"}
        images = images.to(**moved, memory_format=self.layout)
        if self.finish is not None:
            images = self.finish(images, left)
        labels, *others = rest
        labels = labels.to(**moved)
        return (images, labels if self.finish_labels is None else self.finish_labels(labels), *others)


class CudaLane:
    """A stream of a GPU beside the one that computes."""

    def __init__(self, device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, function, *arguments):
        """(what the function gives on this stream, an event of its end)."""
        with torch.cuda.stream(self.stream):
            return function(*arguments), self.stream.record_event()

    def hand_over(self, prepared):
        """The batch for the computing stream, once it is done; nobody else gets its memory before that stream is done too."""
        batch, done = prepared
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(done)
        for part in batch:
            if part.is_cuda:
                part.record_stream(computing)
        return batch


# --- loader workers -------------------------------------------------------------------------------------------------


def in_worker(_worker):
    """A loader worker leaves signals and memory to the process that it belongs to.

    Launchers send SIGTERM to a process and its workers alike, and a worker that ends at once would take the process with it
    before it has saved. So it works on for a while, then ends as if it had been asked to; a second SIGTERM ends it at once.
    """
    sys.excepthook = _tell_what_matters
    gc.freeze()  # the collector would write to every object there is, and each worker would end with its own copy of all
    for name in ("SIGUSR1", "SIGINT"):
        with contextlib.suppress(AttributeError):  # not on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _tell_what_matters(kind, error, traceback):
    """sys.excepthook of a worker: the thread that hands its batches over prints what breaks it off, and goes on.

    Where that is the process that asked for a batch, as it ends with a line of its own, there is nothing to tell.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def end_workers():
    """End the loader workers of this process, which is about to end, at once: Python sends them SIGTERM, and waits."""
    with contextlib.suppress(AttributeError):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own takes it for a fault
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _end_later(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(LAST_BATCHES)
