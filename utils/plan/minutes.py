"""How many epochs fit into --minutes on this machine."""

import copy
import time

import accelerate
import torch
from torch.utils.data import default_collate

from utils.cli.arguments import flags_text
from utils.cli.errors import InputError
from utils.images.read import unpack_masks
from utils.model.processes import loader_workers
from utils.model.sizes import channels_of
from utils.plan.take import is_alike, plan_of_the_run


def fit_minutes(args, model, criterion, batch, sets, updates, accelerator, say, mixing=None):
    """Set --epochs, and the warm-up that nobody set, to what fits into --minutes, and say them; nothing without that flag.

    model: on the CPU, and left as it is; criterion: its loss, on the device; sets: datasets to train on, of which some samples
    are made, and to score; updates: of an epoch; mixing: of `train_one_epoch`, or None. All processes of the run call it
    together, and the slowest counts.

    Raises InputError where not one epoch fits. A dry run measures nothing: its epochs are those without --minutes.
    """
    if args.minutes is None or args.dry_run:
        return
    (train_set, val_set), workers = sets, loader_workers(args.num_workers)
    size = args.input_size if hasattr(args, "input_size") else args.crop_size
    known = {flag: value for flag, value in plan_of_the_run(args).items() if is_alike(value, 1)}
    if "epochs" not in known:
        samples = []
        looked = range(min(8, len(train_set)))
        sample = _seconds(lambda: samples.extend(train_set[index] for index in looked)) / len(looked)
        targets = _targets(samples, batch.size).to(accelerator.device)
        device, trial = accelerator.device, copy.deepcopy(model).to(accelerator.device).train()
        images = torch.zeros(batch.size, channels_of(model), size, size, device=device)

        def update():
            mixed, wanted = mixing(images, targets, 0) if mixing else (images, targets)
            with accelerator.autocast():
                loss = criterion(trial(mixed), wanted)
            loss.backward()
            if device.type != "cpu":
                torch.accelerator.synchronize()

        update()  # makes the kernels ready
        step = min(_seconds(update), _seconds(update))
        loading = batch.size * sample / max(workers, 1)
        micro_batch = step + loading if device.type == "cpu" else max(step, loading)
        evaluation = len(val_set) / batch.processes * (step / 3 + loading) / batch.size / args.eval_freq
        evaluation *= 1 + (args.model_ema and args.model_ema_eval)  # of the average too
        files = 0.3 + sum(p.numel() for p in model.parameters()) * 4 * 4 / 300e6  # seconds: logs, cards, best/ and a state
        epoch = max(accelerate.utils.gather_object([updates * batch.update_freq * micro_batch + evaluation + files]))
        fits = int(60 * args.minutes / epoch)
        if not fits:
            raise InputError(f"--minutes {args.minutes:g}: an epoch takes about {epoch / 60:.1f} minutes here; give more, a "
                             "smaller model, or fewer pixels")  # fmt: skip
        known = {"epochs": fits, "warmup_epochs": round(fits / 10, 1)}
    fitted = {"epochs"} if args.given & {"warmup_epochs", "warmup_steps"} else {"epochs", "warmup_epochs"}
    fitted = {flag: value for flag, value in known.items() if flag in fitted}
    args.planned |= fitted
    args.epochs, args.warmup_epochs = args.planned["epochs"], args.planned.get("warmup_epochs", args.warmup_epochs)
    say(f"planned for {args.minutes:g} minutes: {flags_text(fitted)}")


def _targets(samples, size):
    """The labels (B,) int64 or (B, classes) float32, or masks (B, H, W) int64, of a batch of so many samples, in turn."""
    targets = default_collate([samples[number % len(samples)][-2] for number in range(size)])
    return unpack_masks(targets) if torch.is_tensor(samples[0][-2]) else targets


def _seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
