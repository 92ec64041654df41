"""What a run would do, without doing it: as a dict, for `--dry_run json`, and as text."""

import textwrap

import torch
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model, input_size):
    """Multiply-adds of the convolutions and matrix products for one image, (3, input_size, input_size).

    The model may be on the meta device; it is in evaluation mode afterwards.
    """
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, 3, input_size, input_size, device=device))
    return counter.get_total_flops() // 2


def describe(
    args, *, model, name, input_size, train_set, val_set, processes, epochs, per_epoch, updates, weights, groups, schedule
):
    """The run as a dict that JSON can hold.

    args: every flag by its name; weights: lines that say where they come from; groups: rows of optim_factory's
    group_table; per_epoch, updates: numbers of updates; schedule: sets the rates for an update and returns the rate.
    """
    warmup = args["warmup_steps"] if args["warmup_steps"] > 0 else round(args["warmup_epochs"] * per_epoch)
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": multiply_adds(model, input_size),
        "input_size": input_size,
        "weights": weights,
        "data": train_set.source.title,
        "train_images": len(train_set),
        "val_images": len(val_set),
        "classes": len(train_set.source.classes),
        "processes": processes,
        "batch_size": args["batch_size"],
        "update_freq": args["update_freq"],
        "total_batch_size": args["batch_size"] * args["update_freq"] * processes,
        "epochs": epochs,
        "updates_per_epoch": per_epoch,
        "updates": updates,
        "warmup_updates": warmup,
        "lr": {"peak": args["lr"], **learning_rates(schedule, updates, warmup)},
        "groups": groups,
        "args": {flag: value for flag, value in args.items() if flag != "dry_run"},
    }


def learning_rates(schedule, updates, warmup_updates):
    """Learning rate at the start, after the warm-up, in the middle and at the last update."""
    moments = {"start": 0, "after_warmup": warmup_updates, "middle": updates // 2, "end": updates - 1}
    return {moment: schedule(min(update, updates - 1)) for moment, update in moments.items()}


def as_text(run, table):
    """What `describe` gives, as lines; `table`: its parameter groups, already laid out."""
    lr, args = run["lr"], run["args"]
    flags = " ".join(f"--{flag} {_flag_text(value)}" for flag, value in args.items() if value not in (None, "", []))
    lines = [
        "dry run: nothing is trained and nothing is written",
        f"model: {run['model']}, {run['parameters']:,} parameters, {run['multiply_adds'] / 1e9:.2f} G multiply-adds at "
        f"{run['input_size']} pixels",
        *[f"weights: {line}" for line in run["weights"]],
        f"data: {run['data']}, {run['train_images']:,} training and {run['val_images']:,} validation images, "
        f"{run['classes']:,} classes",
        f"batch: {run['batch_size']} x update_freq {run['update_freq']} x {run['processes']} processes = "
        f"{run['total_batch_size']} images per update",
        f"schedule: {args['sched']}, {run['epochs']} epochs x {run['updates_per_epoch']:,} updates = {run['updates']:,}, "
        f"the first {run['warmup_updates']:,} of them warm-up",
        f"learning rate: {lr['start']:.4g} at the start, {lr['after_warmup']:.4g} after the warm-up, {lr['middle']:.4g} in the "
        f"middle, {lr['end']:.4g} at the end",
        textwrap.fill(f"flags: {flags}", 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False),
        f"parameter groups ({args['opt']}):",
        table,
    ]
    return "\n".join(lines)


def _flag_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join("=".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in value)
    return str(value)
