"""The parts of benchmarks/gpu.py that measure the training loop and its loader.

A part is a function (args, device, add) that calls add(**columns) for each row of its table as soon as it has it. The loop
and the loader are those of a run of the script itself, with its flags: `within` stops the run where its first epoch begins.
"""

import contextlib
import copy
import functools
import gc
import io
import itertools
import os
import pathlib
import statistics
import tempfile
import time
import unittest.mock

import numpy as np
import timm.optim
import torch
from accelerate.state import AcceleratorState, GradientState
from gpu_kernels import seconds_of, synchronize, training_flops
from PIL import Image
from timm.data.loader import PrefetchLoader

import train_recognition
import train_segmentation
from utils.data.loaders import end_workers

# (name of the row, script, flags, pixels, images in a batch)
JOBS = (
    ("convnext_tiny", "recognition", "--model convnext_tiny", 224, 256),
    ("convnextv2_base", "recognition", "--model convnextv2_base", 224, 128),
    ("resnet50", "recognition", "--model resnet50", 224, 256),
    ("UPerNet on convnext_tiny", "segmentation", "--backbone convnext_tiny --model upernet", 512, 16),
)
SMALL_JOBS = (
    ("test_convnext", "recognition", "--model test_convnext", 64, 4),
    ("UPerNet on test_convnext", "segmentation", "--backbone test_convnext --model upernet --channels 8", 64, 4),
)
COMPILED = (False, True)
COMMON = "--opt adamw --epochs 1000 --disable_eval true --save_ckpt false --report_to none --log_every 50".split()
FIRST_GUESS = {False: 20.0, True: 60.0}  # seconds that a row takes, without and with compilation, before one was measured
# Dense bf16 operations and bytes of memory per second, from NVIDIA's data sheets; the first name that is in the card's holds.
CARDS = {
    "H200": (989e12, 4.8e12), "H100 PCIe": (756e12, 2.0e12), "H100 NVL": (835e12, 3.9e12), "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
}  # fmt: skip


def peak_of(device):
    """bf16 operations per second that the card's data sheet promises; None for a card that is not in CARDS."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for card, (peak, _) in CARDS.items() if card in name), None)


# --- a run of the script ----------------------------------------------------------------------------------------------


def within(script, words, measure):
    """What measure(train_one_epoch, accelerator, network, criterion, loader, optimizer, schedule, run, …) returns. It stands in
    for the script's train_one_epoch in a run with these flags, in bf16, and gets that function and its arguments. The run ends
    there.
    """
    module, found = {"recognition": train_recognition, "segmentation": train_segmentation}[script], []

    def instead(*arguments, train_one_epoch=module.train_one_epoch):
        found.append(measure(train_one_epoch, *arguments))
        raise _Measured

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(unittest.mock.patch.dict(os.environ, ACCELERATE_MIXED_PRECISION="bf16"))
        stack.enter_context(unittest.mock.patch.object(module, "train_one_epoch", instead))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.callback(_forget)
        with contextlib.suppress(_Measured):
            module.main(module.parse_args([*COMMON, *words, "--output_dir", str(pathlib.Path(folder) / "run")]))
    return found[0]


class _Measured(Exception):
    """All is known that the run was started for."""


def _forget():
    """What a run leaves in its process goes, so that the next one starts as the first."""
    end_workers()  # which would finish the batches that they have begun
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_images(folder, distinct, links):
    """Flags of both scripts for the data in `folder`: JPEG files of 500 x 375 pixels, about as large as photographs are.

    distinct: number of files; links: names of each, so that an epoch is long. Masks are four classes by brightness.
    """
    folder, rng = pathlib.Path(folder), np.random.default_rng(0)
    for part in ("train/0", "train/1", "val/0", "val/1", "images/train", "images/val", "masks/train", "masks/val"):
        (folder / part).mkdir(parents=True)
    for number in range(distinct):
        pixels = np.full((375, 500, 3), 128.0, np.float32)
        for cells in (3, 6, 12, 25, 50, 100, 200):
            grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
            pixels += (np.asarray(grid.resize((500, 375), Image.Resampling.BICUBIC), np.float32) - 128) * 1.5 / cells**0.45
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        first = folder / "train" / str(number % 2) / f"{number}.jpg"
        image.save(first, quality=90)
        for link in range(links):
            os.link(first, first.with_name(f"{number}-{link}.jpg"))
        split = "val" if number < 4 else "train"
        os.link(first, folder / "images" / split / first.name)
        Image.fromarray(np.asarray(image.convert("L")) // 64).save(folder / "masks" / split / f"{number}.png")
        if number < 4:
            os.link(first, folder / "val" / str(number % 2) / first.name)
    (folder / "classes.txt").write_text("dark\ngrey\nlight\nwhite\n")
    return ["--data_path", str(folder)]


# --- (b) the loop, the bare step, timm's step -------------------------------------------------------------------------


def speed(args, device, add):
    """Images/s, share of the card's bf16 peak and peak memory of the script's loop, the bare step and timm's training step.

    All three have the model, loss, batch and precision of the run, AdamW, channels_last, TF32 and cuDNN's search. The loop is
    train_one_epoch on batches that wait in page-locked memory: copy, normalising, schedule, logging. The bare step is
    forward, backward and optimizer on one batch that is on the device. timm's is that of its train.py, with its
    PrefetchLoader and its own choice of AdamW. They take turns, and a ratio is the median of the rounds' own.
    """
    cost = dict(FIRST_GUESS)
    with tempfile.TemporaryDirectory() as folder:
        data = make_images(folder, *((12, 1) if args.small else (64, 39)))
        for job, compiled in itertools.product(SMALL_JOBS if args.small else JOBS, COMPILED):
            name, script, flags, pixels, batch = job
            columns = {"model": name, "pixels": pixels, "batch": batch, "compile": compiled}
            if args.end - time.monotonic() < cost[compiled]:
                add(**columns, why="no time left")
                continue
            start = time.monotonic()
            size = "--input_size" if script == "recognition" else "--crop_size"
            words = [
                *data,
                *flags.split(),
                size,
                str(pixels),
                "--channels_last",
                "true",
                "--num_workers",
                str(min(8, args.workers)),
            ]
            columns |= _speed_row(args, device, script, words, batch, compiled)
            add(**columns)
            cost[compiled] = (time.monotonic() - start) * 1.3


def _speed_row(args, device, script, words, batch, compiled):
    """The columns of a row; where the card's memory does not do, of half the batch."""
    words = [*words, "--torchcompile", str(compiled).lower()]
    while True:
        measure = functools.partial(_take_turns, args, device, batch, compiled)
        try:
            with _eager_backend() if args.small else contextlib.nullcontext():
                return within(script, [*words, "--batch_size", str(batch)], measure)
        except torch.OutOfMemoryError:
            if batch == 1:
                return {"why": "out of memory"}
            batch //= 2
        except Exception as error:  # the other rows are worth having
            return {"why": f"{type(error).__name__}: {error}"[:300]}


def _eager_backend():
    """Within this compilation is traced and not compiled, which takes a tenth of the time."""
    compile_model = torch.nn.Module.compile
    return unittest.mock.patch.object(torch.nn.Module, "compile", lambda model: compile_model(model, backend="eager"))


def _take_turns(
    args, device, batch, compiled, train, accelerator, network, criterion, loader, optimizer, schedule, run, *rest
):  # fmt: skip
    updates, rounds = (2, 1) if args.small else (5, 3)
    kept, rate = list(itertools.islice(loader.batches, 4)), optimizer.param_groups[0]["lr"]
    loader.batches = _Again(kept, updates)

    def copied():
        model = accelerator.unwrap_model(copy.deepcopy(network), keep_fp32_wrapper=False).train()
        if compiled:
            model.compile()
        return model

    def of_loop():
        def one_round():
            run.counters.update = run.counters.epoch * loader.updates
            run.start_epoch(run.counters.update + updates)
            train(accelerator, network, criterion, loader, optimizer, schedule, run, *rest)
            run.counters.epoch += 1

        return one_round

    def of_bare_step():
        images, targets = (part.clone() for part in next(iter(loader))[:2])
        model = copied()
        own = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05, fused=True)

        def one_round():
            for _ in range(updates):
                with torch.autocast(device.type, torch.bfloat16):
                    outputs = model(images)
                criterion(outputs, targets).backward()
                own.step()
                own.zero_grad()

        return one_round

    def of_timm():
        model = copied()
        own = timm.optim.create_optimizer_v2(model, "adamw", lr=rate, weight_decay=0.05)
        place = 1 if loader.finish is None else 2  # of the labels, after the images and the rest
        widen = loader.finish_labels or (lambda labels: labels)  # masks travel in few bytes
        batches = PrefetchLoader(_Again([(part[0], widen(part[place])) for part in kept], updates), device=device)

        def one_round():
            for images, targets in batches:
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = criterion(model(images), targets)
                loss.backward()
                own.step()
                own.zero_grad()
            loss.item()

        return one_round

    # One after the other, so that what each adds to the memory is its own.
    turns, memory = [], []
    for build in (of_loop, of_bare_step, of_timm):
        before = torch.cuda.memory_allocated(device) if turns and device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        turns.append(build())
        for _ in range(2):
            turns[-1]()
        memory.append(torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None)
    seconds = [[seconds_of(turn, device) for turn in turns] for _ in range(rounds)]
    loop, bare, of_timms = (batch * updates / statistics.median(column) for column in zip(*seconds, strict=True))
    flops, peak = flops_per_image(accelerator, network, next(iter(loader))), peak_of(device)
    return {
        "batch": batch, "loop": loop, "bare": bare, "timm": of_timms,
        "loop / bare": statistics.median(row[1] / row[0] for row in seconds),
        "loop / timm": statistics.median(row[2] / row[0] for row in seconds),
        "GFLOP": flops / 1e9, "share of peak": flops * loop / peak if peak else None, "memory": memory,
    }  # fmt: skip


class _Again:
    """`count` batches: these, again and again."""

    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __len__(self):
        return self.count

    def __iter__(self):
        return itertools.islice(itertools.cycle(self.batches), self.count)


def flops_per_image(accelerator, network, batch):
    """Floating point operations of an image's forward and backward pass, two for each multiplication with its addition."""
    model = accelerator.unwrap_model(copy.deepcopy(network), keep_fp32_wrapper=False).train()
    return training_flops(model, batch[0][:2]) / 2


# --- (c) the loader ---------------------------------------------------------------------------------------------------

AUGMENTATIONS = {"crop and flip": "--aa none --reprob 0", "RandAugment and erasing": ""}


def loader(args, device, add):
    """Images/s that the script's loader brings to the device from JPEG files, with nothing else to do."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_images(folder, *((12, 1) if args.small else (64, 299)))
        for name, flags in AUGMENTATIONS.items():
            seconds = 0.5 if args.small else min(12.0, (args.end - time.monotonic()) / 3)
            words = [*data, *flags.split(), "--model", "test_convnext", "--num_workers", str(args.workers)]
            words += (
                ["--batch_size", "4", "--input_size", "64"] if args.small else ["--batch_size", "256", "--input_size", "224"]
            )
            rate = within("recognition", words, lambda *of_run: _loader_rate(device, seconds, of_run[4]))  # noqa: B023
            add(augmentation=name, workers=args.workers, rate=rate)


def _loader_rate(device, seconds, loader):
    """Images per second over `seconds`, after the workers have started and filled their queues."""
    images, start, epoch = 0, None, 0
    while True:
        loader.start(epoch, 0)
        for number, (batch, *_) in enumerate(loader):
            if start is None and (number == 2 or number == loader.updates - 1):
                synchronize(device)
                start = time.perf_counter()
            elif start is not None:
                images += len(batch)
                if time.perf_counter() - start > seconds:
                    synchronize(device)
                    return images / (time.perf_counter() - start)
        epoch += 1
