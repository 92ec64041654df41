"""What the loops do besides forward, backward and optimizer: they never wait for the device in an update."""

import collections

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT, Batches, begin_run
from conftest import run as run_script
from torch.utils._python_dispatch import TorchDispatchMode

import train_recognition
import train_segmentation
from utils.augment.mixup import Mixup
from utils.cli.recognition_flags import MixupOptions
from utils.losses.recognition import make_loss
from utils.losses.segmentation import SegmentationLoss
from utils.model.ema import EMA


class Count(TorchDispatchMode):
    """Counts the operators that a GPU's host would wait for (a value read back), and copies between devices or kinds."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def accelerator():
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Dense(torch.nn.Module):
    """A segmentation network of one convolution, with the training outputs of SegmentationNetwork."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return {"logits": self.conv(images)}


@pytest.mark.parametrize("script", ["recognition", "segmentation"])
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_no_value_is_read_back_within_an_update(accelerator, tmp_path, script, clip_grad):
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    if script == "recognition":
        model, train = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.Flatten()), train_recognition.train_one_epoch
        criterion, options = make_loss("ce", 0.1), {"mixup": Mixup(5, MixupOptions(mixup=0.8))}
    else:
        model, train = Dense(), train_segmentation.train_one_epoch
        criterion, options, labels = SegmentationLoss(5), {}, labels[:, None, None].expand(4, 8, 8)
    batch = (images, labels, torch.full((4,), -1))
    network, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    clip = ("--clip_grad", clip_grad) if clip_grad else ()
    calls = {}
    for updates in (5, 25):  # all of them before the first look, so that what differs is the cost of 20 updates
        loader, ema = Batches([batch] * (2 * updates), updates), EMA(model)
        run = begin_run(accelerator, tmp_path / str(updates), model, optimizer, loader, "--log_every", 1000, *clip, ema=ema)
        with run, Count() as count:
            run.start_epoch(updates)
            train(accelerator, network, criterion, loader, optimizer, lambda update: 0.1, run, ema=ema, **options)
        assert run.counters.update == updates
        calls[updates] = count.calls
    read = calls[25]["_local_scalar_dense"] - calls[5]["_local_scalar_dense"]
    assert read == 0
    assert calls[25]["_to_copy"] - calls[5]["_to_copy"] <= 20 * 4


ACCUMULATION = """
import os, sys
sys.path[:0] = ["ROOT", "ROOT/tests"]
import accelerate, torch
from conftest import Batches, begin_run
from train_recognition import train_one_epoch
from utils.losses.recognition import make_loss

accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.Flatten())
network, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
updates_of = []

def hook(state, bucket):
    updates_of.append(run.counters.update)
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future

network.register_comm_hook(None, hook)
loader = Batches([(torch.rand(4, 3, 8, 8), torch.arange(4))] * 12, 4)
run = begin_run(accelerator, sys.argv[1], model, optimizer, loader)
with run:
    run.start_epoch(4)
    train_one_epoch(accelerator, network, make_loss("ce", 0.1), loader, optimizer, lambda update: 0.1, run)
if accelerator.is_main_process:
    print("reduced for the updates", updates_of)
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_accumulation_sends_gradients_once_per_update(tmp_path):
    """Twelve micro-batches in four updates: one bucket of gradients is sent for each update, within its last backward."""
    (tmp_path / "script.py").write_text(ACCUMULATION.replace("ROOT", str(ROOT)))
    done = run_script(tmp_path / "script.py", tmp_path / "log", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reduced for the updates [0, 1, 2, 3]" in done.stdout
