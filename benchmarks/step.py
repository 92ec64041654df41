"""Images per second of the scripts' own loops against the bare step: forward, backward and optimizer on one batch in memory.

    python benchmarks/step.py                                       # convnextv2_atto at 128 pixels on a CPU
    python benchmarks/step.py --task segmentation --batch 16        # the same as a backbone under UPerNet
    python benchmarks/step.py --threads 1                           # to compare with two processes of a thread each:
    torchrun --nproc_per_node 2 benchmarks/step.py --threads 1
    python benchmarks/step.py --model convnext_tiny --size 224 --batch 256 --precision bf16 --compile --channels_last --jpeg \\
        --workers 16
    python benchmarks/step.py --neighbours 2                        # beside two programs that want the same cores
    python benchmarks/step.py --neighbours 2 --spin                 # the same with OpenMP's own way of waiting

The loop is the script's train_one_epoch: its loader over images that lie in memory, decoded or (--jpeg) as JPEG files of
500 x 375 pixels, its augmentation, the copy to the device, mixup, logging, with and without EMA. The bare step has the same
model, batch, precision, loss and optimizer, and torch's DistributedDataParallel on several processes; nothing else. Both take
turns in short rounds, and the ratio is the median of the rounds' own, so that other load on the machine meets both.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from utils.cli.threads import spin_briefly  # isort: skip

if "--spin" not in sys.argv:
    spin_briefly()  # as the scripts do, before torch is imported

import accelerate
import numpy as np
import timm
import torch
import torch.distributed
from data import jpeg_files
from PIL import Image

import train_recognition
import train_segmentation
from optim_factory import create_optimizer
from segmentation_networks.network import build_network
from utils.augment import recognition, segmentation
from utils.augment.mixup import make_mixup
from utils.cli import recognition_flags, segmentation_flags
from utils.cli.arguments import Batch
from utils.data.datasets import RecognitionDataset, SegmentationDataset
from utils.data.loaders import build_loaders
from utils.losses.recognition import make_loss
from utils.losses.segmentation import SegmentationLoss
from utils.model import processes as machine
from utils.model.ema import EMA
from utils.run.run import Run

CLASSES = 100
PICTURES = 64


class InMemory:
    """Crops of scikit-learn's two photographs, decoded, or with `jpeg` as files; masks of four classes by brightness."""

    classes, title = [str(number) for number in range(CLASSES)], "photographs"

    def __init__(self, count, size, jpeg, with_masks):
        self.jpeg, self.with_masks, self.labels = jpeg, with_masks, np.arange(count) % CLASSES
        self.files = jpeg_files() if jpeg else crops(size)
        self.masks = [np.asarray(decoded(file).convert("L")).astype(np.int64) // 64 for file in self.files if with_masks]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        image = decoded(self.files[index % len(self.files)])
        return (image, self.masks[index % len(self.files)]) if self.with_masks else image

    def encoded(self, index):
        return self.files[index % len(self.files)] if self.jpeg else None

    def name(self, index):
        return str(index)


def decoded(file):
    return file if isinstance(file, Image.Image) else Image.open(io.BytesIO(file)).convert("RGB")


def crops(size):
    from sklearn.datasets import load_sample_images

    photographs, rng, found = load_sample_images().images, np.random.default_rng(0), []
    for number in range(PICTURES):
        top, left = rng.integers(0, 427 - size), rng.integers(0, 640 - size)
        found.append(Image.fromarray(photographs[number % 2][top : top + size, left : left + size]))
    return found


def build_model(args, device):
    """(model, optimizer), the same each time."""
    torch.manual_seed(0)
    if args.task == "segmentation":
        model = build_network(args.model, "upernet", CLASSES, input_size=args.size, head_kwargs={"channels": 64})
    else:
        model = timm.create_model(args.model, num_classes=CLASSES)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    options = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "opt_eps": None, "opt_betas": None}
    return model.to(device).train(), create_optimizer(argparse.Namespace(**options, fused=True), model)


def build_data(args, device):
    """(source, the Loader of its images), a round of them for all processes."""
    source = InMemory(args.batch.total * args.updates, args.size, args.jpeg, args.task == "segmentation")
    options = {"device": device, "seed": 0, "workers": args.workers, "channels_last": args.channels_last}
    if args.task == "segmentation":
        settings = segmentation_flags.Augmentation(crop_size=args.size, base_size=args.size)
        transforms, make = segmentation.build_transforms(settings), SegmentationDataset
        options |= transforms.batches
    else:
        transforms = recognition.build_transforms(recognition_flags.Augmentation(input_size=args.size, aa="none", reprob=0.0))
        make = RecognitionDataset
        options |= {"collate": transforms.collate, "finish": transforms.finish}
    sets = make(source, transforms.train, seed=0), make(source, transforms.evaluate)
    return source, build_loaders(*sets, args.batch, **options)[0]


def bare_updates(args, device, criterion):
    """() -> None, a round of bare updates."""
    model, optimizer = build_model(args, device)
    if args.compile:
        model.compile()
    if args.batch.processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    images = torch.randn(args.batch.size, 3, args.size, args.size, device=device).to(memory_format=layout)
    if args.task == "segmentation":
        targets = torch.randint(4, (args.batch.size, args.size, args.size), device=device)
    else:
        targets = torch.full((args.batch.size, CLASSES), 1 / CLASSES, device=device)

    def run():
        for step in range(args.updates * args.batch.update_freq):
            last = (step + 1) % args.batch.update_freq == 0
            with model.no_sync() if args.batch.processes > 1 and not last else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
                    outputs = model(images)
                loss = criterion(outputs, targets) / args.batch.update_freq
                loss.backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()

    return run


def loop_updates(args, accelerator, criterion, with_ema, stack):
    """() -> None, an epoch of as many updates of the script's. The run ends with the ExitStack `stack`."""
    model, optimizer = build_model(args, accelerator.device)
    network, optimizer = accelerator.prepare(model, optimizer)
    if args.compile:
        model.compile()
    source, loader = build_data(args, accelerator.device)
    ema, norm = EMA(model) if with_ema else None, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    options, script, metric = {"ema": ema}, train_segmentation, "miou"
    if args.task == "recognition":
        script, metric = train_recognition, "acc1"
        options["mixup"] = make_mixup(recognition_flags.MixupOptions(mixup=0.8), CLASSES, 0.1)
    else:
        norm["palette"] = np.zeros((CLASSES, 3), np.uint8)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    words = ["--output_dir", f"{folder}/run", "--report_to", "none", "--save_ckpt", "false", "--lr", "1e-3"]
    run = Run(accelerator, script.parse_args(words), args.batch, script.__name__, metric)
    run.log.say = lambda text: None
    run.open(source, source, {}, weights="from scratch", shown=norm, groups=[{"lr_scale": 1.0}])
    run.resume(model, optimizer, ema, loader)
    stack.enter_context(run)

    def updates():
        run.start_epoch((run.counters.epoch + 1) * loader.updates)
        script.train_one_epoch(accelerator, network, criterion, loader, optimizer, lambda update: 1e-3, run, **options)
        run.counters.epoch += 1

    return updates


@contextlib.contextmanager
def neighbours(count):
    """So many programs that never wait, as long as this lasts."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def seconds_of(part, args):
    """Of a whole round, on all processes."""
    for wait in (True, False):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if args.batch.processes > 1:
            torch.distributed.barrier()
        if wait:
            start = time.perf_counter()
            part()
    return time.perf_counter() - start


def measure(args, accelerator, with_ema):
    """(images/s of the bare step, of the loop, ratio): medians over the rounds."""
    criterion = SegmentationLoss(CLASSES) if args.task == "segmentation" else make_loss("ce", 0.1)
    rows = []
    with contextlib.ExitStack() as stack:
        bare = bare_updates(args, accelerator.device, criterion)
        loop = loop_updates(args, accelerator, criterion, with_ema, stack)
        for part in (bare, loop):
            part()  # warm-up, and compilation
        for number in range(args.rounds):
            order = (bare, loop) if number % 2 else (loop, bare)
            row = {part: seconds_of(part, args) for part in order}
            rows.append((row[bare], row[loop]))
    images = args.batch.total * args.updates
    of_bare, of_loop = (images / statistics.median(column) for column in zip(*rows, strict=True))
    return of_bare, of_loop, statistics.median(a / b for a, b in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="recognition", choices=("recognition", "segmentation"))
    parser.add_argument("--model", default="convnextv2_atto")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per process and step")
    parser.add_argument("--update_freq", type=int, default=1, help="steps that accumulate to an update")
    parser.add_argument("--updates", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of each process; none: its share of the cores")
    parser.add_argument("--jpeg", action="store_true", help="decode files instead of cropping decoded images")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--plain_malloc", action="store_true", help="give freed memory back, as programs do by default")
    parser.add_argument("--neighbours", type=int, default=0, help="programs beside it that keep a core busy each")
    parser.add_argument("--spin", action="store_true", help="OpenMP's threads wait as they do by default")
    parser.add_argument("--ema", choices=("off", "on", "both"), default="both")
    args = parser.parse_args()
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    args.batch = Batch(args.batch, args.update_freq, world, rank)
    threads = machine.use_all_cores()
    if args.threads:
        torch.set_num_threads(threads := args.threads)
    if not args.plain_malloc:
        machine.keep_freed_memory()
    accelerator = accelerate.Accelerator(
        cpu=not machine.has_accelerator(), mixed_precision=args.precision, gradient_accumulation_steps=args.update_freq
    )
    if accelerator.is_main_process:
        print(f"{args.task}, {args.model}, {args.size} pixels, {args.batch} of {threads} threads, "
              f"{args.neighbours} neighbours, {'spinning' if args.spin else 'as the scripts wait'}, torch {torch.__version__}",
              flush=True)  # fmt: skip
    for with_ema in {"off": (False,), "on": (True,), "both": (False, True)}[args.ema]:
        with neighbours(args.neighbours if rank == 0 else 0):
            bare, loop, ratio = measure(args, accelerator, with_ema)
        if accelerator.is_main_process:
            print(f"EMA {'on' if with_ema else 'off'}: bare step {bare:.1f} images/s, the loop {loop:.1f}, ratio {ratio:.3f}",
                  flush=True)  # fmt: skip
    accelerator.end_training()


if __name__ == "__main__":
    main()
