"""When a run plans itself, and how the plan becomes its flags. The rules themselves are in rules.py."""

import contextlib
import json
import math
import os
import statistics

import torch

from utils.cli.arguments import derive_batch, flags_text
from utils.cli.errors import InputError
from utils.cli.recognition_flags import SMALL
from utils.images.read import BadImage, size_of
from utils.model.processes import has_accelerator
from utils.plan.rules import LEAST_FOR_BATCH_NORM, Facts, images_per_update, plan

MOST_IMAGES = 100_000  # to plan for: with more the published defaults are at home
SAMPLED = 32  # images whose size is looked at
PUBLISHED_SIDE = 520  # pixels; PyTorch-Encoding's --base_size


def take_plan(args, batch, train_source, val_source, build, say):
    """The Batch of the run. Sets the flags in `args` that the plan names and the user left open, and says them; and --lr by
    --blr, as published, where neither names a rate.

    build: makes the network of the flags in `args`. A run that goes on takes the plan of its args.json, whatever the data is by
    now. Raises InputError for --plan auto where nothing is planned.
    """
    if (reason := _reason_for_none(args, train_source)) and args.plan == "auto":
        raise InputError(f"--plan auto: nothing is planned {reason}; leave it out")
    if not reason and args.plan != "published":
        batch = _set_plan(args, batch, train_source, val_source, build)
        say(f"planned for {len(train_source):,} images: {flags_text(args.planned)}")
        say("a flag on the line wins over the plan; --plan published keeps the papers' defaults")
    if args.lr is None:
        args.lr = args.blr * batch.total / 256
        if not reason and args.plan != "published" and "blr" not in args.given:
            say(f"warning: no rate is planned for --opt {args.opt}; --blr makes it {args.lr:.2g}, as of large data: give --lr")
    return batch


def _reason_for_none(args, train_source):
    """Why no plan holds for such a run, in words; "" where one does."""
    reasons = {
        "beside a recipe, which is a plan of its own": args.given - args.typed,
        "for the built-in data": not (args.data_path or args.dataset),
        "for a --data_set, which has published settings": args.data_set,
        "for a stream": args.streaming,
        "without trained weights (--pretrained true or --finetune)": not (args.pretrained or args.finetune),
        f"for more than {MOST_IMAGES:,} training images": len(train_source) > MOST_IMAGES,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _set_plan(args, batch, train_source, val_source, build):
    """The Batch, after the plan has set the flags that the user left open."""
    chosen, before = chosen_flags(args), plan_of_the_run(args)
    network = _try(build) or torch.nn.Identity()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    batch_norm = args.freeze != "bn" and any("BatchNorm" in type(module).__name__ for module in network.modules())
    total, processes = batch.total, batch.processes
    if "total_batch_size" not in chosen:
        least = LEAST_FOR_BATCH_NORM if hasattr(args, "input_size") else 8  # of masks each pixel counts for the statistics
        known = before.get("total_batch_size")
        total = known if is_alike(known, 1) else images_per_update(len(train_source), processes, least)
    facts = Facts(
        images=len(train_source), validation=len(val_source), total=total, processes=1 if args.sync_bn else processes,
        opt=args.opt if "opt" in chosen else "adamw", parameters=parameters, batch_norm=batch_norm,
        side=None if hasattr(args, "input_size") else _usual_side(train_source),
        epochs=_chosen_epochs(args, len(train_source) / total), several=bool(getattr(args, "task", None)),
        bands=bool(args.in_chans), cudnn=has_accelerator() and torch.cuda.is_available(),
    )  # fmt: skip
    planned = {"total_batch_size": total, "update_freq": 1} | plan(facts)
    if planned.keys() & before:  # a run that goes on keeps its plan, whatever this version, or more processes, would make of it
        planned = {
            flag: before[flag] if is_alike(before[flag], value) else value
            for flag, value in planned.items()
            if flag in before and flag != "freeze"
        }
        planned |= {"freeze": "bn"} if before.get("freeze") == "bn" else {}
    idle = {"scale"} if getattr(args, "input_size", math.inf) <= SMALL else set()  # flags that would do nothing
    idle |= {"base_size"} if getattr(args, "transforms", "") == "none" else set()
    idle |= {"drop_path"} if args.freeze == "backbone" else set()
    idle |= {"model_ema_warmup"} if "model_ema" in chosen and not args.model_ema else set()
    args.planned = {flag: value for flag, value in planned.items() if flag not in chosen | idle}
    for flag, value in args.planned.items():
        setattr(args, flag, value)
    if "cudnn_benchmark" in args.planned:
        torch.backends.cudnn.benchmark = args.cudnn_benchmark  # which the processes began with
    if args.planned.get("drop_path") and _try(build) is None:  # it has no blocks that could be left out
        del args.planned["drop_path"]
        args.drop_path = 0.0
    if "total_batch_size" in chosen:
        return batch
    return derive_batch(None, 1, total, processes, default_batch_size=total, process=batch.process)


def _try(build):
    """The network that `build` makes of the flags, on the meta device; None where it makes none: what is wrong is said when it
    is built in earnest, and some models cannot be on that device."""
    with contextlib.suppress(InputError), torch.device("meta"):
        return build()


def _chosen_epochs(args, updates):
    """The epochs of so many updates that the user asked for, by --epochs or --max_updates; None: neither."""
    if "max_updates" in args.given:
        return args.max_updates / max(updates, 1)
    return args.epochs if "epochs" in args.given else None


# A flag of the plan -> flags that say the same in other words, or that would do nothing beside it.
INSTEAD = {
    "lr": "blr", "total_batch_size": "batch_size update_freq", "update_freq": "batch_size total_batch_size",
    "warmup_epochs": "warmup_steps minutes", "epochs": "minutes max_updates", "reprob": "remode recount", "sched": "power",
    "opt": "momentum", "freeze": "sync_bn", "eval_freq": "disable_eval",
    "cudnn_benchmark": "deterministic",
}  # fmt: skip


def chosen_flags(args):
    """The flags that the user has set, in these words or in others."""
    given = args.given - {"minutes"} if args.dry_run else args.given  # it measures nothing
    return given | {flag for flag, others in INSTEAD.items() if given & set(others.split())}


def plan_of_the_run(args):
    """What args.json of the run that this command goes on with had planned, {} where there is none."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(args.resume))) if args.resume else args.output_dir
    if not folder:
        return {}
    try:
        with open(os.path.join(folder, "args.json"), encoding="utf-8") as file:
            return dict(json.load(file)["args"]["planned"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def is_alike(value, usual):
    """Whether a value of args.json is of the kind of the usual one: text, numbers, or as many of them."""
    if isinstance(usual, tuple):
        return isinstance(value, list) and len(value) == len(usual) and all(map(is_alike, value, usual))
    if isinstance(usual, str | bool):
        return type(value) is type(usual)
    return type(value) in (int, float) and type(usual) in (int, float) and 0 <= value < math.inf and (value > 0 or usual == 0)


def _usual_side(source):
    """The median of the long side over some images; SAMPLED of them at most."""
    sides = []
    for index in range(0, len(source), math.ceil(len(source) / SAMPLED)):
        with contextlib.suppress(BadImage):  # another one takes its place in training
            sides.append(max(size_of(source.read(index)[0])))
    return int(statistics.median(sides or [PUBLISHED_SIDE]))
