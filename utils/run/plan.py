"""The plan of a run on a user's own data that starts from trained weights: what it sets where its user says nothing.

The published defaults are for a million images and hundreds of thousands of updates. On some hundred images they are a few
dozen updates at a hundredth of a useful rate, and nothing is learned. `plan` holds the rules; docs/PLAN.md says why, and what
was measured. The rest of this file finds out when they hold, and how many epochs fit into --minutes.
"""

import copy
import json
import math
import os
import statistics
import time
from typing import NamedTuple

import accelerate
import torch

from utils.cli.errors import InputError
from utils.model.processes import loader_workers

MOST_IMAGES = 100_000  # to plan for: with more the published defaults are at home
SAMPLED = 32  # images whose size is looked at
ADAM, SGD = ("adam", "adamw", "nadamw", "radam"), ("sgd", "momentum", "nesterov")  # whose rates are known


class Facts(NamedTuple):
    """What a plan is made from. images: to train on; validation: to score; total: images per update; opt: name of the
    optimizer; parameters: of the network; batch_norm: it has batch norm; side: of segmentation, the usual long side of an
    image in pixels, else None; epochs: that the user set, else None.
    """

    images: int
    validation: int
    total: int
    opt: str
    parameters: int
    batch_norm: bool
    side: int | None = None
    epochs: int | None = None


def images_per_update(images, processes, least):
    """Small data has small batches, for the number of updates counts. least: images on each process, if there are enough."""
    wanted = least if images < 2000 else 32 if images < 20_000 else 64
    on_each = max(wanted // processes, least)
    return max(1, min(on_each, images // processes)) * processes


def plan(facts):
    """{flag: value} for these Facts; a pure function."""
    epochs = facts.epochs or min(max(round(700 / math.sqrt(facts.images)), 10), 100)  # 100 of 36 images, 40 of 300, 10 of 5,000
    planned = {
        "epochs": epochs,
        "warmup_epochs": round(epochs / 10, 1),
        "drop_path": 0.1 if facts.parameters > 20e6 else 0.0,  # only large networks learn small data by heart at once
        # an evaluation looks at three times as many images as training does in between, at most
        "eval_freq": max(1, min(math.ceil(facts.validation / max(facts.images, 1) / 3), epochs)),
    }
    if facts.opt in ADAM + SGD:
        rate = 1e-3 if facts.batch_norm else 3e-4  # of 32 images: networks with batch norm bear more
        rate *= math.sqrt(facts.total / 32) * (1 if facts.opt in ADAM else 10)
        planned |= {"lr": float(f"{rate:.2g}"), "weight_decay": 0.05 if facts.opt in ADAM else 1e-4}
    return planned | (_recognition(facts) if facts.side is None else _segmentation(facts))


def _recognition(facts):
    return {
        "layer_decay": 0.8,  # the first layers have learned what edges are; the last ones have to change
        "head_init_scale": 0.01,  # the first loss is near ln(classes): a new head of full size would shake all layers
        "scale": (0.35, 1.0),  # crops of 8 % of an image often show no object, and few images bear few of them
        "aa": "rand-m9-mstd0.5-inc1" if facts.images >= 5000 else "none",  # strong changes cost epochs that small data lacks
        "reprob": 0.25 if facts.images >= 5000 else 0.0,
        "smoothing": 0.1,
    }


def _segmentation(facts):
    base = min(max(facts.side, 64), 800)
    return {
        "opt": facts.opt, "weight_decay_filter": "norm_bias", "sched": "cosine", "head_lr_scale": 1.0,
        "base_size": base, "crop_size": min(480, max(64, base // 32 * 32)),
    }  # fmt: skip


# --- when it holds


def take_plan(args, batch, train_source, val_source, build, say):
    """The Batch of the run. Sets the flags in `args` that the plan names and the user left open, and says them; and --lr by
    --blr, as published, where neither names a rate.

    build: makes the network. A run that goes on takes the plan of its args.json, whatever the data is by now. Raises
    InputError for --plan auto where nothing is planned.
    """
    if (reason := _reason_for_none(args, train_source)) and args.plan == "auto":
        raise InputError(f"--plan auto: nothing is planned {reason}; leave it out")
    if not reason and args.plan != "published":
        batch = _set_plan(args, batch, train_source, val_source, build)
        say(f"planned for {len(train_source):,} images: {flags_text(args.planned)}")
        say("a flag on the line wins over the plan; --plan published keeps the papers' defaults")
    args.lr = args.blr * batch.total / 256 if args.lr is None else args.lr
    return batch


def _reason_for_none(args, train_source):
    """Why no plan holds for such a run, in words; "" where one does."""
    reasons = {
        "in an evaluation": args.eval,
        "beside a recipe, which is a plan of its own": args.given - args.typed,
        "for the built-in data": not (args.data_path or args.dataset),
        "for a --data_set, which has published settings": args.data_set,
        "for a stream": args.streaming,
        "without trained weights (--pretrained true or --finetune)": not (args.pretrained or args.finetune),
        f"for more than {MOST_IMAGES:,} training images": len(train_source) > MOST_IMAGES,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _set_plan(args, batch, train_source, val_source, build):
    chosen = _chosen(args)
    try:
        with torch.device("meta"):
            network = build()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        batch_norm = any("BatchNorm" in type(module).__name__ for module in network.modules())
    except InputError:  # which is said when it is built in earnest; some models cannot be on the meta device
        parameters, batch_norm = 0, False
    if "batch_size" not in chosen:
        least = 16 if hasattr(args, "input_size") else 8  # batch norm; of masks each pixel counts for its statistics
        batch = batch._replace(size=images_per_update(len(train_source), batch.processes, least) // batch.processes)
    planned = {"batch_size": batch.size} | plan(Facts(
        len(train_source), len(val_source), batch.total, args.opt if "opt" in chosen else "adamw", parameters, batch_norm,
        None if hasattr(args, "input_size") else _usual_side(train_source), args.epochs if "epochs" in args.given else None,
    ))  # fmt: skip
    planned |= {flag: value for flag, value in _plan_of_the_run(args).items() if _is_alike(value, planned.get(flag))}
    args.planned = {flag: value for flag, value in planned.items() if flag not in chosen}
    for flag, value in args.planned.items():
        setattr(args, flag, value)
    return batch._replace(size=args.planned.get("batch_size", batch.size))


# A flag of the plan -> flags that say the same in other words, or that would do nothing beside it.
INSTEAD = {
    "lr": "blr", "batch_size": "update_freq total_batch_size", "warmup_epochs": "warmup_steps", "epochs": "minutes max_updates",
    "reprob": "remode recount", "sched": "power", "opt": "momentum",
}  # fmt: skip


def _chosen(args):
    """The flags that the user has set, in these words or in others."""
    return args.given | {flag for flag, others in INSTEAD.items() if args.given & set(others.split())}


def _plan_of_the_run(args):
    """What args.json of the run that this command goes on with had planned, {} where there is none."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(args.resume))) if args.resume else args.output_dir
    try:
        with open(os.path.join(folder or "", "args.json"), encoding="utf-8") as file:
            return dict(json.load(file)["args"]["planned"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _is_alike(value, usual):
    """Whether a value of args.json is of the kind of the usual one: text, numbers, or as many of them."""
    if isinstance(usual, tuple):
        return isinstance(value, list) and len(value) == len(usual) and all(map(_is_alike, value, usual))
    if isinstance(usual, str):
        return isinstance(value, str)
    return type(value) in (int, float) and type(usual) in (int, float) and 0 <= value < math.inf and (value > 0 or usual == 0)


def fit_minutes(args, model, size, batch, sets, updates, device):
    """Set --epochs, and the warm-up that nobody set, to what fits into --minutes; nothing without that flag.

    model: on the CPU, and left as it is; size: pixels of the side of its input; sets: datasets to train on, of which some
    samples are made, and to score; updates: of an epoch. All processes of the run call it together, and the slowest counts.
    Raises InputError where not one epoch fits. A dry run measures nothing: its epochs are those without --minutes.
    """
    if args.minutes is None or args.dry_run:
        return
    (train_set, val_set), workers = sets, loader_workers(args.num_workers)
    known = {flag: value for flag, value in _plan_of_the_run(args).items() if _is_alike(value, 1)}
    if "epochs" not in known:
        sample = _seconds(lambda: [train_set[index] for index in range(min(8, len(train_set)))]) / min(8, len(train_set))
        trial = copy.deepcopy(model).to(device).train()
        images = torch.zeros(batch.size, 3, size, size, device=device)

        def update():
            output = trial(images)
            (output["logits"] if isinstance(output, dict) else output).float().mean().backward()
            if device.type != "cpu":
                torch.accelerator.synchronize()

        update()  # makes the kernels ready
        step = min(_seconds(update), _seconds(update))
        loading = batch.size * sample / max(workers, 1)
        micro_batch = step + loading if device.type == "cpu" else max(step, loading)
        evaluation = len(val_set) / batch.processes * (step / 3 + loading) / batch.size / args.eval_freq
        files = 0.3 + sum(p.numel() for p in model.parameters()) * 4 * 4 / 300e6  # seconds: logs, cards, best/ and a state
        epoch = max(accelerate.utils.gather_object([updates * batch.update_freq * micro_batch + evaluation + files]))
        fits = int(60 * args.minutes / epoch)
        if not fits:
            raise InputError(f"--minutes {args.minutes:g}: an epoch takes about {epoch / 60:.1f} minutes here; give more, a "
                             "smaller model, or fewer pixels")  # fmt: skip
        known = {"epochs": fits, "warmup_epochs": round(fits / 10, 1)}
    chosen = _chosen(args) - {"epochs"}
    args.planned |= {flag: known[flag] for flag in ("epochs", "warmup_epochs") if flag not in chosen}
    args.epochs, args.warmup_epochs = args.planned["epochs"], args.planned.get("warmup_epochs", args.warmup_epochs)


def _seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _usual_side(source):
    """The median of the long side over some images."""
    step = max(1, len(source) // SAMPLED)
    return int(statistics.median(max(source.read(index)[0].size) for index in range(0, len(source), step)))


def flags_text(flags):
    """{flag: value} as a line of flags."""
    return " ".join(f"--{flag} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
                    for flag, value in flags.items())  # fmt: skip
