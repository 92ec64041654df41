"""Learning rate and weight decay schedules: pure functions of how far training has come.

This file travels alone: it imports `math` and nothing else. A schedule is no object, so there is nothing to
`prepare`, nothing to save, and nothing that steps once per process. Copy it and write, before every update,

    lr = learning_rate(update, updates_per_epoch, sched="cosine", lr=1e-3, epochs=100, warmup_epochs=5)
    set_learning_rate(optimizer, lr)

The one word it shares with optim_factory.py is `lr_scale`, the multiplier that a parameter group may carry. Another word of
a group, `late_warmup`, is for `make_schedule`.
"""

import math

SCHEDULES = ("cosine", "cosine_v1", "poly", "poly_mmseg", "cosine_dinov3", "step", "constant", "wsd")


def set_learning_rate(optimizer, lr):
    """Write `lr` into every parameter group, times the group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr


def set_head_lr_scale(optimizer, head_lr_scale=10.0):
    """Let every group but the first (the backbone) learn `head_lr_scale` times as fast.

    Source: PyTorch-Encoding, encoding/utils/lr_scheduler.py, LR_Scheduler_Head (fixed at 10 there).
    """
    for group in optimizer.param_groups[1:]:
        group["lr_scale"] = head_lr_scale * group.get("lr_scale", 1.0)


def adjust_learning_rate(optimizer, epoch, args):
    """Half-cycle cosine after a linear warm-up, by fractional epoch; sets the groups and returns the rate.

    epoch: float, completed epochs (0.5 is the middle of the first). args: has lr, min_lr, epochs, warmup_epochs.
    As published, `lr_scale` multiplies `min_lr` too, and the very first update of a warm-up has rate 0.
    Source: ConvNeXt-V2, utils.py, and MAE, util/lr_sched.py, functions of the same name.
    """
    lr = _half_cosine(epoch, args.lr, args.min_lr, args.epochs, args.warmup_epochs)
    set_learning_rate(optimizer, lr)
    return lr


def cosine_scheduler(base_value, final_value, epochs, niter_per_ep, warmup_epochs=0, start_warmup_value=0, warmup_steps=-1):
    """List of `epochs * niter_per_ep` values, one per update: linear warm-up, then half-cycle cosine.

    `warmup_steps` > 0 (updates) wins over `warmup_epochs`. The warm-up includes its end, so the peak occurs twice,
    and the cosine stops one update short of `final_value`, both as published; ConvNeXt uses the same function for
    the weight decay. Raises ValueError where the schedule would be empty or the warm-up longer than the run (the
    published code fails an assertion there, and also for `warmup_steps` with `warmup_epochs=0`, which works here).
    Source: ConvNeXt, utils.py, function of the same name.
    """
    total = epochs * niter_per_ep
    warmup = _warmup_updates(warmup_epochs, warmup_steps, niter_per_ep, total)
    return [_cosine_v1(i, total, base_value, final_value, warmup, start_warmup_value) for i in range(total)]


def learning_rate(
    update,
    updates_per_epoch,
    *,
    sched="cosine",
    lr,
    epochs,
    min_lr=0.0,
    warmup_epochs=0,
    warmup_steps=-1,
    power=0.9,
    step_epochs=30,
    step_rate=0.1,
    decay_epochs=None,
):
    """The rate of update number `update` (0 is the first) of `epochs * updates_per_epoch` (epochs may be a fraction).

    Every schedule starts with a linear warm-up from 0 over `warmup_epochs` (or over `warmup_steps` updates, if > 0):
      cosine     half cycle down to `min_lr` (ConvNeXt V2, MAE; PyTorch-Encoding's `cos` with min_lr 0)
      cosine_v1  the values of `cosine_scheduler` (ConvNeXt)
      poly       lr * (1 - progress) ** power, not below `min_lr` (PyTorch-Encoding, mmsegmentation)
      poly_mmseg the same curve over the whole run, which the warm-up multiplies from 1e-6 on (mmsegmentation)
      cosine_dinov3  a half cycle over the whole run, an update ahead, whose beginning is instead a warm-up from 1e-6 of a
                 straight line to 0; the first update occurs twice (DINOv3's linear segmentation)
      step       lr * step_rate ** (epoch // step_epochs), epochs counted from the start of the run
      constant   lr
      wsd        warm-up, stable, then a straight line to `min_lr` over the last `decay_epochs` (default: a tenth)

    Raises ValueError for an unknown schedule, an empty run, a warm-up that is longer than the run, and step_epochs that are
    not above 0.
    """
    total = round(epochs * updates_per_epoch)
    warmup = _warmup_updates(warmup_epochs, warmup_steps, updates_per_epoch, total)
    if sched == "cosine_v1":
        return _cosine_v1(update, total, lr, min_lr, warmup, 0.0)
    if warmup_steps > 0:
        warmup_epochs = warmup_steps / updates_per_epoch
    epoch = update / updates_per_epoch
    if sched == "poly_mmseg":
        curve = (lr - min_lr) * max(1 - update / total, 0.0) ** power + min_lr
        return curve * (1 - (1 - update / warmup) * (1 - 1e-6)) if update < warmup else curve
    if sched == "cosine_dinov3":
        step = max(update - 1, 0)
        if step < warmup:
            return lr * (1 - (1 - step / warmup) * (1 - 1e-6)) * (1 - step / total)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step + 1) / total))
    if sched == "cosine":
        return _half_cosine(epoch, lr, min_lr, epochs, warmup_epochs)
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if sched == "poly":
        left = 1 - (update - warmup) / max(total - warmup, 1)
        return max(lr * max(left, 0.0) ** power, min_lr)
    if sched == "step":
        if not step_epochs > 0:
            raise ValueError(f"step_epochs {step_epochs}: expected a number above 0, the epochs between two drops of the rate")
        return max(lr * step_rate ** (update // (step_epochs * updates_per_epoch)), min_lr)
    if sched == "constant":
        return lr
    if sched == "wsd":
        decay = (epochs / 10 if decay_epochs is None else decay_epochs) * updates_per_epoch
        left = min(1.0, (total - update) / decay) if decay > 0 else 1.0
        return min_lr + (lr - min_lr) * max(left, 0.0)
    raise ValueError(f"unknown schedule '{sched}': choose from {', '.join(SCHEDULES)}")


def make_schedule(optimizer, updates_per_epoch, *, weight_decay=None, weight_decay_end=None, **settings):
    """Function of an update's number that sets the rates of `optimizer` for it and returns the learning rate.

    settings: those of `learning_rate`. With `weight_decay_end`, weight decay goes there from `weight_decay` in a half
    cosine, in the groups whose weight decay is above 0 now (ConvNeXt, engine.py; there a group that comes to 0 stays
    there). A group with `late_warmup` stands still during the warm-up of the others, and then has one of so many updates and
    what is left of the schedule (EoMT). Raises ValueError at once for settings that no update could have.
    """
    learning_rate(0, updates_per_epoch, **settings)
    warmup = settings.get("warmup_steps", -1)
    wait = warmup if warmup > 0 else round(settings.get("warmup_epochs", 0) * updates_per_epoch)
    late = {i: group["late_warmup"] for i, group in enumerate(optimizer.param_groups) if group.get("late_warmup")}
    rest = {**settings, "epochs": settings["epochs"] - wait / updates_per_epoch}

    def late_rate(update, steps):
        lr = learning_rate(max(update - wait, 0), updates_per_epoch, **{**rest, "warmup_steps": steps})
        return lr if update >= wait else 0.0

    for steps in late.values():
        late_rate(0, steps)
    decays = None
    if weight_decay_end is not None:
        decays = cosine_scheduler(weight_decay, weight_decay_end, 1, round(settings["epochs"] * updates_per_epoch))
    # by number, for loading a state (and Accelerate's prepare) puts new dicts in the place of the groups
    decaying = [i for i, group in enumerate(optimizer.param_groups) if group["weight_decay"] > 0]

    def schedule(update):
        lr = learning_rate(update, updates_per_epoch, **settings)
        set_learning_rate(optimizer, lr)
        for i, steps in late.items():
            group = optimizer.param_groups[i]
            group["lr"] = late_rate(update, steps) * group.get("lr_scale", 1.0)
        if decays is not None:
            for i in decaying:
                optimizer.param_groups[i]["weight_decay"] = decays[update]
        return lr

    return schedule


def _half_cosine(epoch, lr, min_lr, epochs, warmup_epochs):
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if epochs == warmup_epochs:  # reached only past the end of a run that is all warm-up
        return min_lr
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def _cosine_v1(update, total, base_value, final_value, warmup, start_value):
    if update < warmup:
        if warmup == 1:
            return float(start_value)
        return base_value if update == warmup - 1 else start_value + update * ((base_value - start_value) / (warmup - 1))
    return final_value + 0.5 * (base_value - final_value) * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))


def _warmup_updates(warmup_epochs, warmup_steps, updates_per_epoch, total):
    """Length of the warm-up in updates, checked against the `total` of the run."""
    if total <= 0:
        raise ValueError(
            f"the schedule is empty: {total} updates in the whole run; "
            "one update needs a full batch on every process, times the accumulation"
        )
    warmup = warmup_steps if warmup_steps > 0 else round(warmup_epochs * updates_per_epoch)
    if warmup > total:
        raise ValueError(
            f"the warm-up has {warmup} updates but the whole run only {total}: "
            "lower warmup_epochs (or warmup_steps), or train for more epochs"
        )
    return warmup
