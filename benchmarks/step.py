"""Images per second of train_recognition's own loop against the bare step: forward, backward and optimizer on one batch.

    python benchmarks/step.py                              # convnextv2_atto at 128 pixels on a CPU
    python benchmarks/step.py --model convnext_tiny --size 224 --batch 256 --precision bf16 --compile --channels_last

The loop is the script's: its loader over images that lie decoded in memory, crop and flip, normalisation on the device, mixup,
logging, with and without EMA. The bare step has the same model, batch, precision and optimizer. Both take turns in short
rounds, so that other load on the machine meets both; the ratio is that of the medians.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import accelerate
import numpy as np
import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from optim_factory import create_optimizer
from train_recognition import train_one_epoch
from utils import fast_transforms, machine, run_state
from utils.device_batches import DeviceBatches
from utils.ema import EMA
from utils.losses import CrossEntropy
from utils.mixup import Mixup
from utils.recognition_data import RecognitionDataset
from utils.run_log import RunLog
from utils.sampling import TrainBatches
from utils.save_points import in_worker

CLASSES = 100


class InMemory:
    """Decoded pictures: crops of scikit-learn's two photographs."""

    def __init__(self, count, size):
        from sklearn.datasets import load_sample_images

        photographs, rng = load_sample_images().images, np.random.default_rng(0)
        self.images = []
        for number in range(64):
            top, left = rng.integers(0, 427 - size), rng.integers(0, 640 - size)
            self.images.append(Image.fromarray(photographs[number % 2][top : top + size, left : left + size]))
        self.labels = rng.integers(0, CLASSES, count)

    def read(self, index):
        return self.images[index % len(self.images)]

    def encoded(self, index):
        return None

    def name(self, index):
        return str(index)


def make_optimizer(model):
    args = argparse.Namespace(opt="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9, opt_eps=None, opt_betas=None, fused=True)
    return create_optimizer(args, model)


def prepared(args, accelerator):
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=CLASSES)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    network, optimizer = accelerator.prepare(model, make_optimizer(model))
    if args.compile:
        model.compile()
    return model, network, optimizer


def finish_device():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(args, with_ema):
    """(median images/s of the bare step, of the loop) over the rounds."""
    accelerator = accelerate.Accelerator(cpu=not machine.has_accelerator(), mixed_precision=args.precision)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    criterion = CrossEntropy(0.1)
    images = torch.randn(args.batch, 3, args.size, args.size, device=accelerator.device).to(memory_format=layout)
    targets = torch.full((args.batch, CLASSES), 1 / CLASSES, device=accelerator.device)
    _, bare_network, bare_optimizer = prepared(args, accelerator)
    bare_network.train()

    def bare():
        for _ in range(args.updates):
            loss = criterion(bare_network(images), targets)
            accelerator.backward(loss)
            bare_optimizer.step()
            bare_optimizer.zero_grad()

    model, network, optimizer = prepared(args, accelerator)
    source = InMemory(args.batch * args.updates, args.size)
    batches = TrainBatches(len(source.labels), args.batch)
    transform = fast_transforms.train_transform(args.size, hflip=0.5)
    loader = torch.utils.data.DataLoader(
        RecognitionDataset(source, transform, seed=0), batch_sampler=batches, num_workers=args.workers,
        persistent_workers=args.workers > 0, collate_fn=fast_transforms.collate, worker_init_fn=in_worker,
        pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip
    loader = DeviceBatches(loader, accelerator.device, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, args.channels_last)
    mixup = Mixup(CLASSES)
    ema = EMA(model) if with_ema else None
    state, log = run_state.new_state("alone"), RunLog(tempfile.mkdtemp())
    log.say = lambda text: None

    def loop():
        batches.epoch += 1
        log.start_epoch(batches.epoch, 1, 0, args.updates, args.batch)
        train_one_epoch(
            accelerator, network, criterion, loader, optimizer, lambda update: 1e-3, state, log, mixup=mixup, ema=ema,
        )  # fmt: skip

    seconds = []
    for _ in range(args.rounds + 1):
        row = []
        for part in (bare, loop):
            finish_device()
            start = time.perf_counter()
            part()
            finish_device()
            row.append(time.perf_counter() - start)
        seconds.append(row)
    return [args.batch * args.updates / statistics.median(column) for column in zip(*seconds[1:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnextv2_atto")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    args = parser.parse_args()
    threads = machine.use_all_cores()
    print(f"{args.model}, {args.size} pixels, batches of {args.batch}, {threads} threads, torch {torch.__version__}")
    for with_ema in (False, True):
        bare, loop = measure(args, with_ema)
        print(f"EMA {'on' if with_ema else 'off'}: bare step {bare:.1f} images/s, the loop {loop:.1f}: {loop / bare:.3f}")


if __name__ == "__main__":
    main()
