"""What a run would do, without doing it: as JSON for `--dry_run json`, and as text."""

import json
import textwrap

import torch
from torch.utils.flop_counter import FlopCounterMode

from optim_factory import format_group_table
from utils.cli.arguments import flags_text
from utils.model.sizes import channels_of


def print_dry_run(args, **facts):
    """Print what the run would do, once for all processes. args: arguments of the run; facts: of `describe`."""
    run = describe(vars(args), **facts) | {"published_bn_images": args.bn_images, "planned": args.planned}
    if facts["batch"].process == 0:
        print(json.dumps(run, indent=1) if args.dry_run == "json" else as_text(run))


def describe(args, *, model, sources, batch, weights, training=None):
    """The run as a dict that JSON can hold.

    args: {flag: value}; sources: of the training and the validation data, the first None in an evaluation; batch: Batch;
    weights: lines that say where they come from; training: (updates of an epoch, rows of optim_factory's group_table, schedule,
    which sets the rates for an update and returns the rate), None in an evaluation.
    The model may be on the meta device; it is in evaluation mode afterwards.
    """
    train_source, val_source = sources
    input_size = args.get("input_size") or args["crop_size"]
    run = {
        "model": " on ".join(args[name] for name in ("model", "backbone") if name in args),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": multiply_adds(model, input_size),
        "input_size": input_size,
        "weights": weights,
        "data": (train_source or val_source).title,
        "train_images": len(train_source or ()),
        "val_images": len(val_source),
        "classes": len((train_source or val_source).classes),
        "processes": batch.processes,
        "batch_size": batch.size,
        "update_freq": batch.update_freq,
        "total_batch_size": batch.total,
        "bn_images": batch.size * (batch.processes if args["sync_bn"] else 1),
        "args": {flag: value for flag, value in args.items() if flag != "dry_run"},
    }
    return run | (_training(args, *training) if training else {})


def _training(args, updates_per_epoch, groups, schedule):
    """What an evaluation lacks: the updates, and the rates at some of them."""
    updates = args.get("max_updates") or args["epochs"] * updates_per_epoch
    warmup = args["warmup_steps"] if args["warmup_steps"] > 0 else round(args["warmup_epochs"] * updates_per_epoch)
    moments = {"start": 0, "after_warmup": warmup, "middle": updates // 2, "end": updates - 1}
    return {
        "epochs": updates / updates_per_epoch if args.get("max_updates") else args["epochs"],
        "updates_per_epoch": updates_per_epoch,
        "updates": updates,
        "warmup_updates": warmup,
        "lr": {"peak": args["lr"], **{moment: schedule(min(update, updates - 1)) for moment, update in moments.items()}},
        "groups": groups,
    }


def multiply_adds(model, input_size):
    """Multiply-adds of the convolutions and matrix products for one image, (C, input_size, input_size)."""
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, channels_of(model), input_size, input_size, device=device))
    return counter.get_total_flops() // 2


def as_text(run):
    """What `describe` returns, as lines."""
    planned = run.get("planned")
    images = f"{run['train_images']:,} training and " * bool("updates" in run) + f"{run['val_images']:,} validation images"
    lines = [
        f"dry run: nothing is {'trained' if 'updates' in run else 'evaluated'} and nothing is written",
        f"model: {run['model']}, {run['parameters']:,} parameters, {run['multiply_adds'] / 1e9:.2f} G multiply-adds at "
        f"{run['input_size']} pixels",
        *[f"weights: {line}" for line in run["weights"]],
        f"data: {run['data']}, {images}, {run['classes']:,} classes",
        *(_training_text(run) if "updates" in run else ()),
        *([_filled(f"planned for {run['train_images']:,} images: {flags_text(planned)}")] if planned else []),
        _filled(f"flags: {flags_text(run['args'])}"),
    ]
    if "groups" in run:
        lines += [f"parameter groups ({run['args']['opt']}):", format_group_table(run["groups"])]
    return "\n".join(lines)


def _filled(text):
    return textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _training_text(run):
    lr, updates, bn_images, published = run["lr"], run["updates_per_epoch"], run["bn_images"], run["published_bn_images"]
    differs = published not in (None, bn_images)
    return [
        f"batch: {run['batch_size']} x update_freq {run['update_freq']} x {run['processes']} processes = "
        f"{run['total_batch_size']} images per update",
        *[f"batch norm: statistics over {bn_images} images, over {published} in the published run"] * differs,
        f"schedule: {run['args']['sched']}, {run['epochs']} epochs x {updates:,} updates = {run['updates']:,}, "
        f"the first {run['warmup_updates']:,} of them warm-up",
        f"learning rate: {lr['start']:.4g} at the start, {lr['after_warmup']:.4g} after the warm-up, {lr['middle']:.4g} in the "
        f"middle, {lr['end']:.4g} at the end",
    ]
