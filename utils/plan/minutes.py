"""How many epochs fit into --minutes on this machine."""

import copy
import time

import accelerate
import torch

from utils.cli.errors import InputError
from utils.model.processes import loader_workers
from utils.model.sizes import channels_of
from utils.plan.take import chosen_flags, is_alike, plan_of_the_run


def fit_minutes(args, model, size, batch, sets, updates, accelerator):
    """Set --epochs, and the warm-up that nobody set, to what fits into --minutes; nothing without that flag.

    model: on the CPU, and left as it is; size: pixels of the side of its input; sets: datasets to train on, of which some
    samples are made, and to score; updates: of an epoch. All processes of the run call it together, and the slowest counts.
    Raises InputError where not one epoch fits. A dry run measures nothing: its epochs are those without --minutes.
    """
    if args.minutes is None or args.dry_run:
        return
    (train_set, val_set), workers = sets, loader_workers(args.num_workers)
    known = {flag: value for flag, value in plan_of_the_run(args).items() if is_alike(value, 1)}
    if "epochs" not in known:
        sample = _seconds(lambda: [train_set[index] for index in range(min(8, len(train_set)))]) / min(8, len(train_set))
        device, trial = accelerator.device, copy.deepcopy(model).to(accelerator.device).train()
        images = torch.zeros(batch.size, channels_of(model), size, size, device=device)

        def update():
            with accelerator.autocast():
                output = trial(images)
            _total(output).backward()
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
    chosen = chosen_flags(args) - {"epochs"}
    args.planned |= {flag: known[flag] for flag in ("epochs", "warmup_epochs") if flag not in chosen}
    args.epochs, args.warmup_epochs = args.planned["epochs"], args.planned.get("warmup_epochs", args.warmup_epochs)


def _total(output):
    """The sum of means of all tensors in a model's output, dicts and lists."""
    if torch.is_tensor(output):
        return output.float().mean()
    return sum(_total(part) for part in (output.values() if isinstance(output, dict) else output))


def _seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
