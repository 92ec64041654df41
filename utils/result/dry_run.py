"""What a run would do, without doing it: as JSON for `--dry_run json`, and as text."""

import json
import textwrap

import torch
from torch.utils.flop_counter import FlopCounterMode

from optim_factory import format_group_table


def print_dry_run(args, **facts):
    """Print what the run would do, once for all processes. args: arguments of the run; facts: of `describe`."""
    run = describe(vars(args), **facts) | {"published_bn_images": args.bn_images}
    if facts["batch"].process == 0:
        print(json.dumps(run, indent=1) if args.dry_run == "json" else as_text(run))


def describe(args, *, model, sources, batch, updates_per_epoch, weights, groups, schedule):
    """The run as a dict that JSON can hold.

    args: {flag: value}; sources: of the training and the validation data; batch: Batch; weights: lines that say where they
    come from; groups: rows of optim_factory's group_table; schedule: sets the rates for an update and returns the rate.
    The model may be on the meta device; it is in evaluation mode afterwards.
    """
    train_source, val_source = sources
    input_size = args.get("input_size") or args["crop_size"]
    updates = args.get("max_updates") or args["epochs"] * updates_per_epoch
    warmup = args["warmup_steps"] if args["warmup_steps"] > 0 else round(args["warmup_epochs"] * updates_per_epoch)
    moments = {"start": 0, "after_warmup": warmup, "middle": updates // 2, "end": updates - 1}
    rates = {moment: schedule(min(update, updates - 1)) for moment, update in moments.items()}
    return {
        "model": " on ".join(args[name] for name in ("model", "backbone") if name in args),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": multiply_adds(model, input_size),
        "input_size": input_size,
        "weights": weights,
        "data": train_source.title,
        "train_images": len(train_source),
        "val_images": len(val_source),
        "classes": len(train_source.classes),
        "processes": batch.processes,
        "batch_size": batch.size,
        "update_freq": batch.update_freq,
        "total_batch_size": batch.total,
        "bn_images": batch.size * (batch.processes if args["sync_bn"] else 1),
        "epochs": updates / updates_per_epoch if args.get("max_updates") else args["epochs"],
        "updates_per_epoch": updates_per_epoch,
        "updates": updates,
        "warmup_updates": warmup,
        "lr": {"peak": args["lr"], **rates},
        "groups": groups,
        "args": {flag: value for flag, value in args.items() if flag != "dry_run"},
    }


def multiply_adds(model, input_size):
    """Multiply-adds of the convolutions and matrix products for one image, (3, input_size, input_size)."""
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, 3, input_size, input_size, device=device))
    return counter.get_total_flops() // 2


def as_text(run):
    """What `describe` returns, as lines."""
    lr, args = run["lr"], run["args"]
    bn_images, published = run["bn_images"], run["published_bn_images"]
    differs = published not in (None, bn_images)
    flags = " ".join(f"--{flag} {_flag_text(value)}" for flag, value in args.items() if value not in (None, "", [], ()))
    lines = [
        "dry run: nothing is trained and nothing is written",
        f"model: {run['model']}, {run['parameters']:,} parameters, {run['multiply_adds'] / 1e9:.2f} G multiply-adds at "
        f"{run['input_size']} pixels",
        *[f"weights: {line}" for line in run["weights"]],
        f"data: {run['data']}, {run['train_images']:,} training and {run['val_images']:,} validation images, "
        f"{run['classes']:,} classes",
        f"batch: {run['batch_size']} x update_freq {run['update_freq']} x {run['processes']} processes = "
        f"{run['total_batch_size']} images per update",
        *[f"batch norm: statistics over {bn_images} images, over {published} in the published run"] * differs,
        f"schedule: {args['sched']}, {run['epochs']} epochs x {run['updates_per_epoch']:,} updates = {run['updates']:,}, "
        f"the first {run['warmup_updates']:,} of them warm-up",
        f"learning rate: {lr['start']:.4g} at the start, {lr['after_warmup']:.4g} after the warm-up, {lr['middle']:.4g} in the "
        f"middle, {lr['end']:.4g} at the end",
        textwrap.fill(f"flags: {flags}", 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False),
        f"parameter groups ({args['opt']}):",
        format_group_table(run["groups"]),
    ]
    return "\n".join(lines)


def _flag_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join("=".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in value)
    return str(value)
