"""Train an image recognition model of timm's on built-in digits, a folder of images, or a Hugging Face data set.

    accelerate launch train_recognition.py --layer_decay 0.7                                  # a minute on a CPU
    accelerate launch train_recognition.py --data_path my_images --pretrained                 # one GPU, own images
    accelerate launch --config_file accelerate_configs/gpu_8.yaml train_recognition.py \
        --model convnext_tiny --data_path imagenet --total_batch_size 4096 --lr 4e-3          # eight GPUs
"""

import datetime
import functools
import json
import math
import os
import sys
import time
import warnings

from utils.arguments import InputError, Parser, add_switch, choose_one, derive_batch, key_value, number, whole

# What suits 1,437 digits of 8x8 pixels; holds where neither --data_path nor --dataset is given, unless a flag says more.
DIGITS = dict(
    input_size=32, epochs=20, warmup_epochs=2, blr=8e-3, aa="none", reprob=0.0, hflip=0.0, min_lr=1e-5, num_workers=0
)  # fmt: skip


def parse_args(argv=None):
    parser = Parser(prog="train_recognition.py", description=__doc__, epilog=f"Defaults for the digits: {DIGITS}")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="convnextv2_atto", help="any name that timm knows")
    add("--model_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="handed to timm.create_model")
    group = parser.add_argument_group("weights to start from: --resume before --finetune before --pretrained")
    add_switch(group, "--pretrained", False, "start from timm's pretrained weights of this model")
    group.add_argument("--finetune", default="", metavar="FILE_OR_FOLDER", help="start from these weights")
    group.add_argument("--model_key", default="model|module", help="where a .pth holds them; model_ema for averaged ones")
    group.add_argument("--model_prefix", default="", help="put before every name in the file")
    group = parser.add_argument_group("network")
    group.add_argument("--drop_path", type=number(0, 0.99), default=0.0, help="stochastic depth rate")
    group.add_argument("--head_init_scale", type=number(above=0), default=1.0, help="multiplies the new head's weights")
    group.add_argument("--layer_scale_init_value", type=number(0), help="of ConvNeXt; none: the model's own")
    add_switch(group, "--sync_bn", False, "batch norm statistics over all processes")
    add_switch(group, "--grad_checkpointing", False, "recompute activations in the backward pass: less memory, slower")
    add_switch(group, "--channels_last", False, "memory order that convolutions on GPUs prefer")
    add_switch(group, "--torchcompile", False, "compile the model")

    group = parser.add_argument_group("data: the built-in digits unless one of these is given")
    add = group.add_argument
    add("--data_path", metavar="DIR", help="train/ and val/ with class folders, or one such tree with --val_split")
    add("--eval_data_path", metavar="DIR", help="validation tree, where it is not --data_path/val")
    add("--data_set", choices=("IMNET", "image_folder"), help="as published; both mean class folders in --data_path")
    add("--dataset", metavar="NAME_OR_DIR", help="through the library datasets: Hub name, Parquet, Arrow, imagefolder")
    add("--image_column", help="of --dataset, where it cannot be found")
    add("--label_column", help="of --dataset, where it cannot be found")
    add("--val_split", type=number(above=0, maximum=0.9), help="hold out this share of each class, fixed by the seed")
    add("--nb_classes", type=whole(1), help="must agree with the data; none: as many as the data has")
    add("--num_workers", type=whole(0), help="loader processes; none: the cores at hand, 10 at most")
    add_switch(group, "--pin_mem", True, "page-locked memory for faster copies to a GPU")

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--input_size", type=whole(8), default=224, help="pixels; up to 32 a padded random crop, from 384 warped in eval")
    add("--scale", type=number(0, 1), nargs=2, default=(0.08, 1.0), help="share of the image that a random crop covers")
    add("--ratio", type=number(above=0), nargs=2, default=(0.75, 4 / 3), help="aspect ratio of a random crop")
    add("--hflip", type=number(0, 1), default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=number(0, 1), default=0.0, help="probability of a vertical flip")
    add("--color_jitter", type=number(0), help="strength; only without --aa")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="RandAugment, AutoAugment or AugMix of timm's; none: off")
    add("--train_interpolation", choices=("bicubic", "bilinear", "random"), default="bicubic", help="of random crops")
    add("--crop_pct", type=number(above=0, maximum=1), help="of evaluation below 384 pixels; none: 224 / 256")
    add("--reprob", type=number(0, 1), default=0.25, help="probability of random erasing")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what random erasing puts there")
    add("--recount", type=whole(1), default=1, help="boxes of random erasing")
    add("--mixup", type=number(0), default=0.0, help="alpha; 0: off")
    add("--cutmix", type=number(0), default=0.0, help="alpha; 0: off")
    add("--cutmix_minmax", type=number(0, 1), nargs=2, help="side of the CutMix box instead of drawing it from alpha")
    add("--mixup_prob", type=number(0, 1), default=1.0, help="of mixing a batch at all")
    add("--mixup_switch_prob", type=number(0, 1), default=0.5, help="of CutMix where both are on")
    add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch", help="what one draw is for")
    add("--mixup_off_epoch", type=whole(0), default=0, help="no mixing from this epoch on; 0: never off")
    add_switch(group, "--imagenet_default_mean_and_std", True, "normalise as ImageNet; else as Inception (0.5)")

    group = parser.add_argument_group("loss")
    group.add_argument("--smoothing", type=number(0, 0.99), default=0.1, help="label smoothing")
    add_switch(group, "--bce_loss", False, "binary cross-entropy of each class")

    add = parser.add_argument_group("batch").add_argument
    add("--batch_size", type=whole(1), help="images per process and step; none: 64")
    add("--update_freq", type=whole(1), help="steps that accumulate to one update; none: 1")
    add("--total_batch_size", type=whole(1), help="images per update; derives --update_freq on any hardware")

    add = parser.add_argument_group("optimizer").add_argument
    add("--opt", default="adamw", help="sgd, momentum, adam, adamw, … or any of timm's, lookahead_ before it")
    add("--opt_eps", type=number(above=0), help="none: the optimizer's own")
    add("--opt_betas", type=number(0, 1), nargs="+", help="none: the optimizer's own")
    add("--momentum", type=number(0, 1), default=0.9, help="of SGD and its kin")
    add("--weight_decay", type=number(0), default=0.05, help="not on norms, biases, GRN and layer scale")
    add("--weight_decay_end", type=number(0), help="cosine from --weight_decay to this; none: constant")
    add("--clip_grad", type=number(above=0), help="largest gradient norm; none: no clipping")
    add("--layer_decay", type=number(above=0, maximum=1), default=1.0, help="lr multiplier from each layer to the one before")
    add("--layer_decay_type", choices=("single", "group"), default="single", help="one id per block, or the published 12")

    add = parser.add_argument_group("schedule, per update").add_argument
    add("--epochs", type=whole(1), default=100, help="passes over the data")
    add("--lr", type=number(0), help="peak learning rate; none: --blr x images per update / 256")
    add("--blr", type=number(0), default=5e-4, help="base learning rate")
    add("--min_lr", type=number(0), default=1e-6, help="where the schedule ends")
    add("--warmup_epochs", type=number(0), default=20, help="linear, from 0")
    add("--warmup_steps", type=int, default=-1, help="in updates; wins over --warmup_epochs if above 0")
    add("--sched", choices=("cosine", "cosine_v1", "poly", "step", "constant", "wsd"), default="cosine", help="shape")
    add("--power", type=number(above=0), default=0.9, help="of poly")
    add("--step_epochs", type=number(above=0), default=30, help="of step: epochs between drops")
    add("--step_rate", type=number(above=0, maximum=1), default=0.1, help="of step: factor of a drop")
    add("--decay_epochs", type=number(above=0), help="of wsd: length of the last leg; none: a tenth of the run")

    group = parser.add_argument_group("average of the weights (EMA)")
    add_switch(group, "--model_ema", False, "keep one")
    group.add_argument("--model_ema_decay", type=number(0, 1), default=0.9999, help="per update")
    add_switch(group, "--model_ema_warmup", False, "smaller decay in the first updates: for short runs")
    add_switch(group, "--model_ema_eval", True, "evaluate it too")

    group = parser.add_argument_group("evaluation")
    add_switch(group, "--eval", False, "evaluate the weights and stop")
    add_switch(group, "--disable_eval", False, "train without evaluating")
    add_switch(group, "--dist_eval", True, "share the evaluation among the processes; exact either way")

    group = parser.add_argument_group("output and resume")
    add = group.add_argument
    add("--output_dir", metavar="DIR", help="none: a new output/train_recognition/DATE-TIME")
    add_switch(group, "--auto_resume", True, "go on with an unfinished run in --output_dir")
    add("--resume", default="", metavar="CHECKPOINT", help="go on from this state, with these flags")
    add_switch(group, "--save_ckpt", True, "save resumable states")
    add("--save_ckpt_freq", type=whole(1), default=1, help="epochs between states")
    add("--save_ckpt_updates", type=whole(1), help="updates between states, within epochs too")
    add("--save_ckpt_num", type=whole(1), default=3, help="states to keep")
    add("--log_every", type=whole(1), default=50, help="updates between looks at the loss")
    add("--seed", type=whole(0), default=0, help="of weights, data order and augmentation")
    add_switch(group, "--use_amp", False, "as published: bf16 (or fp16) if the launcher chose no precision")

    first = parser.parse_args(argv)
    on_digits = not (first.data_path or first.dataset)
    if on_digits:  # the flags are read again, so that whatever is on the line wins
        parser.set_defaults(**DIGITS)
    args = parser.parse_args(argv) if on_digits else first
    if args.data_path and args.dataset:
        parser.error("--data_path and --dataset: give one of the two")
    for flag in ("eval_data_path", "data_set", "val_split", "image_column", "label_column"):
        needs = "--dataset" if "column" in flag else "--data_path"
        given = args.dataset if "column" in flag else args.data_path or (flag == "val_split" and args.dataset)
        if getattr(args, flag) is not None and not given:
            parser.error(f"--{flag} belongs to {needs}, which is not given")
    return args


if __name__ == "__main__":  # before the heavy imports, so that --help, a wrong flag and the first line come at once
    args = parse_args()
    if os.environ.get("RANK", "0") == "0":
        print(f"train_recognition: {args.model} on {args.data_path or args.dataset or 'the built-in digits'}", flush=True)

import accelerate  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from timm.data.constants import (  # noqa: E402
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)

from lr_sched import cosine_scheduler, learning_rate, set_learning_rate  # noqa: E402
from optim_factory import create_optimizer, layer_decay_assigner  # noqa: E402
from utils import checkpoint, machine, recognition_data, run_log  # noqa: E402
from utils.ema import EMA  # noqa: E402
from utils.losses import BinaryCrossEntropy, CrossEntropy  # noqa: E402
from utils.mixup import Mixup  # noqa: E402
from utils.recognition_transforms import eval_transform, train_transform  # noqa: E402
from utils.sampling import MIX, MODEL, EvalBatches, TrainBatches, stream_seed  # noqa: E402
from utils.weights import load_weights  # noqa: E402

# Flags that may change between a run and its resumption: they leave the result as it is.
FREE_FLAGS = {
    *("output_dir", "auto_resume", "resume", "save_ckpt", "save_ckpt_freq", "save_ckpt_updates", "save_ckpt_num"),
    *("num_workers", "pin_mem", "log_every", "dist_eval", "data_path", "eval_data_path", "data_set", "dataset"),
    *("batch_size", "update_freq", "total_batch_size", "finetune", "pretrained"),
}


def main(args):
    # processes
    warnings.showwarning = lambda message, *_: log.say(f"note: {message}")
    threads = machine.use_all_cores()
    accelerator = start_accelerator(args)
    batch = derive_batch(args.batch_size, args.update_freq, args.total_batch_size, accelerator.num_processes, 64)
    args.batch_size, args.update_freq = batch
    accelerator.gradient_accumulation_steps = args.update_freq
    total_batch = args.batch_size * args.update_freq * accelerator.num_processes
    torch.manual_seed(args.seed)
    log = run_log.RunLog(None, accelerator.is_main_process)
    log.say(
        f"on {accelerator.num_processes} process(es), {accelerator.device.type}"
        + (f" with {threads} threads each" if accelerator.device.type == "cpu" else "")
        + f", precision {accelerator.mixed_precision}"
    )

    # data
    train_set, val_set, norm = build_data(args, accelerator.is_main_process)
    classes = train_set.source.classes
    if args.nb_classes not in (None, len(classes)):
        raise InputError(f"--nb_classes {args.nb_classes}: the data has {len(classes)} classes ({', '.join(classes[:5])}, …)")
    share = (accelerator.process_index, accelerator.num_processes)
    batches = TrainBatches(len(train_set), args.batch_size, args.update_freq, *share, args.seed)
    if batches.updates == 0 and not args.eval:
        raise InputError(
            f"the training set has {len(train_set)} images, but one update needs {total_batch} (batch size "
            f"{args.batch_size} x update_freq {args.update_freq} x {share[1]} processes): lower --batch_size"
        )
    loader = functools.partial(
        torch.utils.data.DataLoader,
        num_workers=min(10, machine.cores_per_process()) if args.num_workers is None else args.num_workers,
        pin_memory=args.pin_mem and accelerator.device.type == "cuda",
    )
    train_loader = loader(train_set, batch_sampler=batches)
    eval_share = share if args.dist_eval else (0, 1)
    val_loader = loader(val_set, batch_sampler=EvalBatches(len(val_set), args.batch_size, *eval_share))
    if train_loader.num_workers:
        train_loader = loader(train_set, batch_sampler=batches, persistent_workers=True)
    log.say(f"data: {len(train_set)} training and {len(val_set)} validation images, {len(classes)} classes")

    # model; which weights win: 1. --resume (below) 2. --finetune 3. --pretrained 4. from scratch
    model, config = build_model(args, classes, norm)
    if args.finetune:
        for line in load_weights(model, args.finetune, model_key=args.model_key, model_prefix=args.model_prefix):
            log.say(line)
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    origin = args.resume or args.finetune or ("timm's pretrained weights" if args.pretrained else "scratch")
    log.say(f"model: {args.model}, {n_parameters / 1e6:.2f} M parameters, {args.input_size} pixels, from {origin}")
    criterion = (BinaryCrossEntropy if args.bce_loss else CrossEntropy)(args.smoothing)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.sync_bn:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.torchcompile:
        model.compile()  # in place: names stay as they are
    run_eval = functools.partial(evaluate, accelerator, loader=val_loader, channels_last=args.channels_last)

    if args.eval:
        network, ema = accelerator.prepare(model), None
        if args.resume:
            weights, _, averaged, _ = checkpoint.load_state(args.resume)
            model.load_state_dict(weights)
            if averaged:
                ema = EMA(model)
                ema.load_state_dict(averaged)
        log.say(summary("result", run_eval(network)))
        if ema:
            with ema.in_model():
                log.say(summary("result of EMA", run_eval(network)))
        return finish(accelerator)

    # optimizer and schedule
    args.lr = args.blr * total_batch / 256 if args.lr is None else args.lr
    optimizer = build_optimizer(args, model)
    total_updates = args.epochs * batches.updates
    schedule = build_schedule(args, optimizer, batches.updates)
    mixup = None
    if args.mixup or args.cutmix or args.cutmix_minmax:
        mixup = Mixup(
            len(classes), args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob,
            args.mixup_mode, args.smoothing,
        )  # fmt: skip
    log.say(
        f"updates: {args.epochs} epochs x {batches.updates} = {total_updates}, {total_batch} images each (batch size "
        f"{args.batch_size} x update_freq {args.update_freq} x {share[1]} processes), peak lr {args.lr:.3g}, {args.sched}"
    )

    # output; go on with an unfinished run
    settings = {
        "total_batch_size": total_batch, "train_images": len(train_set), "val_images": len(val_set),
        **{flag: value for flag, value in vars(args).items() if flag not in FREE_FLAGS}, "classes": len(classes),
    }  # fmt: skip
    args.output_dir, resume_from = open_output(args, accelerator, settings, log)
    log = run_log.RunLog(args.output_dir, accelerator.is_main_process)
    log.say(f"output: {args.output_dir}")
    network, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, args.model_ema_decay, args.model_ema_warmup) if args.model_ema else None
    state = {"epoch": 0, "update": 0, "loss_sum": 0.0, "best": {}, "settings": settings}
    if resume_from:
        state = load_training(resume_from, model, optimizer, ema, accelerator, settings, log)
    log.cut(state["epoch"], state["update"])
    save = functools.partial(save_training, args, accelerator, model, optimizer, ema, state, log)

    # train
    started = time.perf_counter()
    for epoch in range(state["epoch"], args.epochs):
        batches.epoch, batches.first_update = epoch, state["update"] - epoch * batches.updates
        log.start_epoch(epoch, args.epochs, batches.first_update, batches.updates, total_batch)
        train_one_epoch(
            accelerator, network, criterion, train_loader, optimizer, schedule, state, log,
            mixup=None if args.mixup_off_epoch and epoch >= args.mixup_off_epoch else mixup, ema=ema,
            clip_grad=args.clip_grad, seed=args.seed, log_every=args.log_every, channels_last=args.channels_last,
            save=save, save_every=args.save_ckpt_updates if args.save_ckpt else None,
        )  # fmt: skip
        log.end_epoch()
        record = {"epoch": epoch, "train_loss": state["loss_sum"] / batches.updates, "train_lr": schedule(state["update"] - 1)}
        if not args.disable_eval:
            result = run_eval(network)
            record.update({f"test_{name}": value for name, value in result.items()})
            if improves(state["best"], "test_acc1", result["acc1"]):
                export(accelerator, args.output_dir, "best", network, config)
            if ema and args.model_ema_eval:
                with ema.in_model():
                    averaged = run_eval(network)
                    record.update({f"test_{name}_ema": value for name, value in averaged.items()})
                    if improves(state["best"], "test_acc1_ema", averaged["acc1"]):
                        export(accelerator, args.output_dir, "best_ema", network, config)
        record["n_parameters"] = n_parameters
        state.update(epoch=epoch + 1, loss_sum=0.0)
        if accelerator.is_main_process:
            log.epoch(record)
        log.say(describe_epoch(record, args.epochs, state["best"], time.perf_counter() - started))
        if args.save_ckpt and ((epoch + 1) % args.save_ckpt_freq == 0 or epoch + 1 == args.epochs):
            save()

    # result
    export(accelerator, args.output_dir, "last", network, config)
    if accelerator.is_main_process:
        run_log.write_json(os.path.join(args.output_dir, "finished.json"), state["best"])
    log.say(
        f"done in {run_log.clock(time.perf_counter() - started)}: "
        + (", ".join(f"best {name} {value:.3f}" for name, value in state["best"].items()) or "not evaluated")
        + f"; weights in {os.path.join(args.output_dir, 'best' if state['best'] else 'last')}"
    )
    return finish(accelerator)


def train_one_epoch(
    accelerator, model, criterion, loader, optimizer, schedule, state, log, *, mixup=None, ema=None, clip_grad=None,
    seed=0, log_every=50, channels_last=False, save=None, save_every=None,
):  # fmt: skip
    """Train on the batches of `loader`, (images (B, 3, H, W), labels (B,) int64), whole windows of accumulation.

    schedule: sets the rates for an update, by its number, and returns the learning rate. state: "update" and
    "loss_sum" are carried on. The loss stays on the device and is looked at every `log_every` updates only, and
    before a save: then it is averaged over the processes, logged, and checked to be finite.
    """
    model.train()
    layout = torch.channels_last if channels_last else torch.preserve_format
    second_order = getattr(getattr(optimizer, "optimizer", optimizer), "is_second_order", False)
    losses, norms, rates, step = [], [], [], 0

    def look():
        """Read the losses of the updates since the last look."""
        values = accelerator.reduce(torch.stack(losses).float().view(len(rates), -1).mean(1), "mean").tolist()
        first = state["update"] - len(rates)
        records = [{"update": first + i, "epoch": state["epoch"], "loss": v, "lr": rates[i]} for i, v in enumerate(values)]
        for record, norm in zip(records, norms):
            record["grad_norm"] = float(norm)
        log.updates(records)
        bad = next((first + i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None and accelerator.scaler is None:
            raise NonFiniteLoss(bad, state["epoch"], values[bad - first])
        for value in values:
            state["loss_sum"] += value
        log.progress(values[-1], rates[-1])
        losses.clear(), norms.clear(), rates.clear()

    for images, labels in loader:
        images = images.to(accelerator.device, non_blocking=True, memory_format=layout)
        targets = labels.to(accelerator.device, non_blocking=True)
        position = (state["update"], step, accelerator.process_index)
        if step == 0:
            rates.append(schedule(state["update"]))
        if mixup is not None:
            images, targets = mixup(images, targets, stream_seed(seed, MIX, *position))
        torch.manual_seed(stream_seed(seed, MODEL, *position))  # drop path: no random state to save, none to lose
        with accelerator.accumulate(model):
            loss = criterion(model(images), targets)
            accelerator.backward(loss, **({"create_graph": True} if second_order else {}))
            losses.append(loss.detach())
            if clip_grad and accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), clip_grad))
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if not accelerator.sync_gradients:
            continue
        if ema is not None and not accelerator.optimizer_step_was_skipped:
            ema.update(state["update"])
        state["update"] += 1
        step = 0
        log.advance()
        if len(rates) == log_every:
            look()
        if save_every and state["update"] % save_every == 0:
            if rates:
                look()
            save()
    if rates:
        look()


@torch.no_grad()
def evaluate(accelerator, model, loader, channels_last=False):
    """Top-1 and top-5 in per cent, cross-entropy, number of images: over every image once, on any number of processes.

    Per-image values are gathered and summed exactly, so the sums do not depend on their order.
    """
    model.eval()
    layout = torch.channels_last if channels_last else torch.preserve_format
    rows = []
    for images, labels in loader:
        logits = model(images.to(accelerator.device, non_blocking=True, memory_format=layout)).float()  # (B, classes)
        labels = labels.to(accelerator.device, non_blocking=True)  # -1: counts not
        loss = torch.nn.functional.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        rank = (logits > logits.gather(1, labels.clamp(min=0).unsqueeze(1))).sum(1)  # classes that score higher
        finite = logits.isfinite().all(1)  # a broken model gets nothing right
        rows.append(torch.stack([(rank < k) & finite for k in (1, 5)] + [loss, labels >= 0], dim=1).float())
    rows = torch.cat(rows)
    if loader.batch_sampler.processes > 1:
        rows = accelerator.gather(rows)
    rows = rows[rows[:, 3] > 0].double().cpu()
    count = len(rows)
    acc1, acc5, loss = (math.fsum(column) / count for column in rows[:, :3].T.tolist())
    return {"acc1": round(100 * acc1, 5), "acc5": round(100 * acc5, 5), "loss": round(loss, 6), "images": count}


# --- building blocks of main ----------------------------------------------------------------------------------------


class NonFiniteLoss(InputError):
    def __init__(self, update, epoch, value):
        super().__init__(f"the loss is {value} at update {update} (epoch {epoch})")


def start_accelerator(args):
    """The Accelerator: on the CPU where torch finds nothing better, so that several processes there see each other."""
    precision = None
    if args.use_amp and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        precision = "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else "bf16"
    accelerator = accelerate.Accelerator(
        cpu=not machine.has_accelerator(), mixed_precision=precision, step_scheduler_with_optimizer=False
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise InputError(
            f"the launcher started {world} processes but Accelerate sees {accelerator.num_processes}: launch with "
            "torchrun, or with a config of accelerate_configs/"
        )
    return accelerator


def build_data(args, is_main):
    """(training set, validation set, (mean, std))."""
    if args.data_path:
        train, val = recognition_data.folders(args.data_path, args.eval_data_path, args.val_split, args.seed)
    elif args.dataset:
        train, val = recognition_data.hub_table(
            args.dataset, args.image_column, args.label_column, args.val_split, args.seed
        )
    else:
        train, val = recognition_data.digits()
    if is_main:
        recognition_data.check_headers(train)
        recognition_data.check_headers(val)
    norm = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if not args.imagenet_default_mean_and_std:
        norm = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
    augment = train_transform(
        args.input_size, scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter, aa=None if args.aa in ("", "none", "None") else args.aa,
        interpolation=args.train_interpolation, reprob=args.reprob, remode=args.remode, recount=args.recount,
        mean=norm[0], std=norm[1],
    )  # fmt: skip
    plain = eval_transform(args.input_size, crop_pct=args.crop_pct, mean=norm[0], std=norm[1])
    dataset = recognition_data.RecognitionDataset
    return dataset(train, augment, args.seed), dataset(val, plain), norm


def build_model(args, classes, norm):
    """(timm model, the config.json that opens it again)."""
    if ":" not in args.model:
        choose_one(args.model.partition(".")[0], timm.list_models(), "model")
    kwargs = dict(args.model_kwargs)
    if args.layer_scale_init_value is not None:
        kwargs["ls_init_value"] = args.layer_scale_init_value
    known = timm.models.get_pretrained_cfg(args.model) if ":" not in args.model else None
    if known is not None and known.fixed_input_size:
        kwargs.setdefault("img_size", args.input_size)
    try:
        model = timm.create_model(
            args.model, pretrained=args.pretrained, num_classes=len(classes), drop_path_rate=args.drop_path or None, **kwargs
        )
    except TypeError as error:
        raise InputError(f"--model {args.model} does not take one of --model_kwargs, --drop_path: {error}") from None
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"--model {args.model} cannot be made: {str(error).splitlines()[0]}") from None
    head = model.get_classifier()
    if args.head_init_scale != 1.0:
        if not isinstance(head, torch.nn.Module):
            raise InputError(f"--head_init_scale: {args.model} has no single classifier to scale")
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(args.head_init_scale)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    config = {
        "architecture": model.pretrained_cfg.get("architecture", args.model), "num_classes": len(classes),
        "num_features": model.num_features, "model_args": kwargs, "label_names": classes,
        "pretrained_cfg": {
            "input_size": [3, args.input_size, args.input_size], "fixed_input_size": bool(known and known.fixed_input_size),
            "interpolation": "bicubic", "crop_pct": 1.0 if args.input_size <= 32 else args.crop_pct or 224 / 256,
            "crop_mode": "squash" if args.input_size >= 384 else "center", "mean": norm[0], "std": norm[1],
            "num_classes": len(classes), "first_conv": model.pretrained_cfg.get("first_conv"),
            "classifier": model.pretrained_cfg.get("classifier"),
        },
    }  # fmt: skip
    return model, config


def build_optimizer(args, model):
    args.fused = True  # torch's fused kernels are the fastest where the device has them
    wanted = args.weight_decay
    if args.weight_decay_end is not None:
        args.weight_decay = wanted or args.weight_decay_end  # so that the groups that decay can be told from the others
    try:
        assigner = layer_decay_assigner(model, args.layer_decay, args.layer_decay_type)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        return create_optimizer(args, model, *by_layer)
    except ValueError as error:
        raise InputError(str(error)) from None
    finally:
        args.weight_decay = wanted


def build_schedule(args, optimizer, updates_per_epoch):
    """Function of the update's number that sets learning rates and weight decay, and returns the learning rate."""
    rate = functools.partial(
        learning_rate, updates_per_epoch=updates_per_epoch, sched=args.sched, lr=args.lr, epochs=args.epochs,
        min_lr=args.min_lr, warmup_epochs=args.warmup_epochs, warmup_steps=args.warmup_steps, power=args.power,
        step_epochs=args.step_epochs, step_rate=args.step_rate, decay_epochs=args.decay_epochs,
    )  # fmt: skip
    decay = None
    if args.weight_decay_end is not None:
        decay = cosine_scheduler(args.weight_decay, args.weight_decay_end, args.epochs, updates_per_epoch)
        decaying = [group for group in optimizer.param_groups if group["weight_decay"] > 0]
    try:
        rate(0)
    except ValueError as error:
        raise InputError(str(error)) from None

    def schedule(update):
        lr = rate(update)
        set_learning_rate(optimizer, lr)
        if decay is not None:
            for group in decaying:
                group["weight_decay"] = decay[update]
        return lr

    return schedule


def open_output(args, accelerator, settings, log):
    """(folder, state to resume from or None), the same on every process; refuses a folder that holds another run."""
    choice = [None, None, None]
    if accelerator.is_main_process:
        try:
            choice[:2] = choose_output(args, settings, log)
        except (InputError, OSError) as error:  # told to the other processes, so that none waits
            choice[2] = str(error)
    accelerate.utils.broadcast_object_list(choice)
    if choice[2]:
        raise InputError(choice[2])
    return choice[0], choice[1]


def choose_output(args, settings, log):
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = args.output_dir or os.path.join("output", "train_recognition", stamp)
    record = os.path.join(folder, "args.json")
    resume_from = args.resume or None
    if os.path.exists(record):
        if os.path.exists(os.path.join(folder, "finished.json")):
            raise InputError(f"--output_dir {folder} holds a finished run: choose another one, or remove it")
        if not args.auto_resume and not args.resume:
            raise InputError(f"--output_dir {folder} holds an unfinished run: let --auto_resume go on, or choose another")
        with open(record) as file:
            differ = differences(json.load(file)["settings"], settings)
        if differ and not args.resume:
            raise InputError(f"--output_dir {folder} holds a run with other settings: {differ}; choose another one")
        resume_from = resume_from or checkpoint.newest_state(os.path.join(folder, "checkpoints"), log.say)
    try:
        os.makedirs(folder, exist_ok=True)
        run_log.write_json(
            record,
            {"settings": settings, "args": vars(args), "command": sys.argv, "commit": run_log.commit(),
             "versions": run_log.versions()},
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error.strerror}") from None
    return str(folder), resume_from and str(resume_from)


def differences(old, new):
    """The settings that differ, in words; "" if none does."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in keys)


def load_training(path, model, optimizer, ema, accelerator, settings, log):
    """Put the saved state into place; returns its counters."""
    weights, optimizer_state, averaged, state = checkpoint.load_state(path)
    if differ := differences(state["settings"], settings):
        log.say(f"note: the checkpoint was written with other settings: {differ}")
    try:
        model.load_state_dict(weights)
        optimizer.optimizer.load_state_dict(optimizer_state)
        if ema:
            ema.load_state_dict(averaged or weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"--resume {path} does not fit this model: {str(error).splitlines()[0]}") from None
    if accelerator.scaler is not None and state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    log.say(f"resumed: {path}, epoch {state['epoch'] + 1}, update {state['update']}")
    return {**state, "settings": settings}


def save_training(args, accelerator, model, optimizer, ema, state, log):
    if accelerator.is_main_process:
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        path = checkpoint.save_state(
            os.path.join(args.output_dir, "checkpoints"), state["update"], model.state_dict(),
            optimizer.optimizer.state_dict(), ema and ema.state_dict(), state, args.save_ckpt_num,
        )  # fmt: skip
        state["last_checkpoint"] = str(path)
    accelerator.wait_for_everyone()


def improves(best, name, value):
    """Whether `value` is the best of its name so far; if so it is noted."""
    if value <= best.get(name, -1.0):
        return False
    best[name] = value
    return True


def export(accelerator, output_dir, name, network, config):
    weights = accelerator.get_state_dict(network)
    if accelerator.is_main_process:
        checkpoint.export_weights(os.path.join(output_dir, name), weights, config)


def summary(title, result):
    return (
        f"{title}: top-1 {result['acc1']:.3f} %, top-5 {result['acc5']:.3f} %, loss {result['loss']:.5f}, "
        f"{result['images']} images"
    )


def describe_epoch(record, epochs, best, seconds):
    text = f"epoch {record['epoch'] + 1}/{epochs}: train loss {record['train_loss']:.4f}"
    if "test_acc1" in record:
        text += f", top-1 {record['test_acc1']:.2f} % (best {best['test_acc1']:.2f})"
    if "test_acc1_ema" in record:
        text += f", EMA {record['test_acc1_ema']:.2f} %"
    return f"{text}, {run_log.clock(seconds)}"


def finish(accelerator):
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(args)
    except InputError as error:  # one raised in a loader worker carries its traceback along; the last line is the message
        message = str(error).rpartition("InputError: ")[2].strip()
        print(f"train_recognition.py: error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
