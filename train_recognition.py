"""Train an image recognition model of timm's on built-in digits, a folder of images, or a Hugging Face data set.

    accelerate launch train_recognition.py --layer_decay 0.7                                # a CPU, a minute or two
    accelerate launch train_recognition.py --data_path my_images --pretrained true          # own images, one GPU
    accelerate launch --config_file accelerate_configs/gpu_8.yaml train_recognition.py \\
        --model convnext_tiny --data_path imagenet --total_batch_size 4096 --lr 4e-3        # eight GPUs
"""

import functools
import json
import math
import os
import time
import warnings

from utils.cli import flags
from utils.cli.arguments import Parser, add_switch, key_value, number, whole
from utils.cli.errors import InputError, input_errors, run_script

# What suits 1,438 digits of 8x8 pixels. Holds where neither --data_path nor --dataset is given; a flag on the line wins.
DIGITS = {
    "input_size": 64, "scale": (0.8, 1.0), "ratio": (0.9, 1.1), "crop_pct": 1.0, "hflip": 0.0, "aa": "none", "reprob": 0.0,
    "epochs": 10, "warmup_epochs": 1, "blr": 8e-3, "min_lr": 1e-5, "num_workers": 0,
}  # fmt: skip


def parse_args(argv=None):
    digits = ", ".join(f"{flag} {value}" for flag, value in DIGITS.items())
    parser = Parser(prog="train_recognition.py", description=__doc__, epilog=f"defaults for the digits: {digits}")
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", default="convnextv2_atto", help="any name that timm knows")
    add("--model_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="for timm.create_model")
    add("--drop_path", type=number(0, 0.99), default=0.0, help="stochastic depth rate")
    add("--head_init_scale", type=number(above=0), default=1.0, help="multiplies the weights of the new head")
    add("--layer_scale_init_value", type=number(0), help="of ConvNeXt; none: the model's own")
    add_switch(group, "--last_gamma", None, "of ResNet and ResNeSt: start each block's last norm at 0; none: the model's own")
    add("--drop_block", type=number(0, 0.99), default=0.0, help="of ResNet and ResNeSt: DropBlock's rate")
    flags.add_start_flags(parser)

    group = parser.add_argument_group("data: the built-in digits unless --data_path or --dataset is given")
    add = group.add_argument
    add("--data_path", metavar="DIR", help="train/ and val/ with class folders, or one such tree and --val_split")
    add("--eval_data_path", metavar="DIR", help="validation tree, where it is not --data_path/val")
    add("--data_set", choices=("IMNET", "image_folder", "CIFAR", "CIFAR10", "CIFAR100", "FLOWERS", "PETS"), help="IMNET and "
        "image_folder, as published: class folders in --data_path; the others are downloaded there")  # fmt: skip
    add("--dataset", metavar="NAME_OR_DIR", help="through the library datasets: Hub name, Parquet, Arrow, imagefolder")
    add("--image_column", help="of --dataset, where it cannot be found")
    add("--label_column", help="of --dataset, where it cannot be found")
    add("--val_split", type=number(above=0, maximum=0.9), help="hold out this share of each class, fixed by the seed")
    add("--nb_classes", type=whole(1), help="must agree with the data; none: as many as the data has")
    flags.add_bad_sample_flags(group)
    flags.add_stream_flags(group)

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--transforms", choices=("fast", "timm", "encoding"), default="fast", help="ConvNeXt's, drawn as timm draws them; the "
        "same by timm itself, to the bit; PyTorch-Encoding's")  # fmt: skip
    add("--input_size", type=whole(8), default=224, help="pixels; up to 32 a padded random crop, from 384 warped in eval")
    add("--scale", type=number(above=0, maximum=1), nargs=2, default=(0.08, 1.0), help="share of the image in a random crop")
    add("--ratio", type=number(above=0), nargs=2, default=(0.75, 4 / 3), help="aspect ratio of a random crop")
    add("--hflip", type=number(0, 1), default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=number(0, 1), default=0.0, help="probability of a vertical flip")
    add("--color_jitter", type=number(0), help="strength; with timm's transforms only where --aa is none")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="RandAugment, AutoAugment or AugMix in timm's words, with the encoding "
        "transforms rand-nN-mM; none: off")  # fmt: skip
    add("--train_interpolation", choices=("bicubic", "bilinear", "random"), default="bicubic", help="of random crops")
    add("--crop_pct", type=number(above=0, maximum=1), help="of evaluation below 384 pixels; none: 224 / 256")
    add("--reprob", type=number(0, 1), default=0.25, help="probability of random erasing")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what random erasing puts there")
    add("--recount", type=whole(1), default=1, help="boxes of random erasing")
    add("--mixup", type=number(0), default=0.0, help="alpha; 0: off")
    add("--cutmix", type=number(0), default=0.0, help="alpha; 0: off")
    add("--cutmix_minmax", type=number(0, 1), nargs=2, help="side of the CutMix box, instead of from alpha")
    add("--mixup_prob", type=number(0, 1), default=1.0, help="of mixing at all")
    add("--mixup_switch_prob", type=number(0, 1), default=0.5, help="of CutMix where both are on")
    add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch", help="what one draw is for")
    add("--mixup_off_epoch", type=whole(0), default=0, help="no mixing from this epoch on; 0: never off")
    add_switch(group, "--imagenet_default_mean_and_std", True, "normalise as ImageNet; else as Inception (0.5)")

    group = parser.add_argument_group("loss")
    group.add_argument("--smoothing", type=number(0, 0.99), default=0.1, help="label smoothing")
    add_switch(group, "--bce_loss", False, "binary cross-entropy of each class")
    flags.add_batch_flags(parser)
    flags.add_optimizer_flags(parser, layer_decay_types=("single", "group"))
    flags.add_schedule_flags(parser)
    flags.add_ema_flags(parser)
    group = flags.add_evaluation_flags(parser)
    add_switch(group, "--tta_flip", False, "average the logits of each image and its mirror image")
    add = group.add_argument
    add("--predict", metavar="DIR_OR_FILE", help="classify these images with --finetune RUN/best, write a CSV file, and stop")
    add("--topk", type=whole(1), default=5, help="of --predict: classes per image")
    flags.add_speed_flags(parser)
    flags.add_output_flags(parser, "train_recognition")
    flags.add_result_flags(parser)

    args = parser.parse_args(argv)
    if args.data_path and args.dataset:
        parser.error("--data_path and --dataset: give one of the two")
    if args.predict and not args.finetune:
        parser.error("--predict needs --finetune RUN/best")
    if args.streaming and (not args.dataset or args.val_split or args.check_data):
        parser.error("--streaming needs --dataset, and goes neither with --val_split nor with --check_data")
    for flag, needs in {
        "eval_data_path": args.data_path, "data_set": args.data_path, "image_column": args.dataset,
        "label_column": args.dataset, "val_split": args.data_path or args.dataset,
    }.items():  # fmt: skip
        if getattr(args, flag) is not None and not needs:
            parser.error(f"--{flag} needs images of yours: give {'--dataset' if 'column' in flag else '--data_path'} too")
    if not (args.data_path or args.dataset):  # read once more, so that what is on the line wins
        parser.set_defaults(**DIGITS)
        args = parser.parse_args(argv)
    return args


if __name__ == "__main__":  # before the heavy imports, so that --help, a wrong flag and the first line come at once
    args = parse_args()
    if os.environ.get("RANK", "0") == "0" and args.dry_run != "json":
        print(f"train_recognition: {args.model} on {args.data_path or args.dataset or 'built-in digits'}", flush=True)

import accelerate
import torch
from timm.data import constants as normalisation

from lr_sched import make_schedule
from optim_factory import create_optimizer, format_group_table, group_table, layer_decay_assigner
from utils.augment import encoding as encoding_transforms
from utils.augment import fast as fast_transforms
from utils.augment import timm as recognition_transforms
from utils.augment.mixup import Mixup
from utils.data.bad_samples import BadSamples, check_data
from utils.data.loaders import DeviceBatches
from utils.data.sampling import MIX, MODEL, EvalBatches, TrainBatches, image_numbers, stream_seed
from utils.data.streaming import StreamLoader
from utils.losses.recognition import BinaryCrossEntropy, CrossEntropy
from utils.model import processes as machine
from utils.model import sharding
from utils.model.download import fetch, is_remote
from utils.model.ema import EMA
from utils.model.recognition import build_model, timm_config
from utils.model.weights import load_weights
from utils.report import pictures
from utils.report.gallery import Gallery, lr_range, put_recognition
from utils.result import dry_run
from utils.result import predict_recognition as recognition_prediction
from utils.result.result import Cards, check_wishes, pass_on
from utils.run import checkpoint, trackers
from utils.run import folder as run_folder
from utils.run import state as run_state
from utils.run.log import RunLog, clock
from utils.run.signals import SavePoints, in_worker
from utils.run.state_checks import check_tensors
from utils.sources import recognition as recognition_data
from utils.sources import torchvision_sets as torchvision_data


def main(args):
    # processes and the arithmetic of the batch
    check_wishes(args.export, args.push_to_hub, args.license)
    threads = machine.use_all_cores()
    accelerator, args.batch_size, args.update_freq = machine.start_processes(
        args.batch_size, args.update_freq, args.total_batch_size, args.use_amp
    )
    machine.check_support(accelerator, sync_bn=args.sync_bn)
    log = RunLog(None, accelerator.is_main_process and not args.dry_run)
    report_to = trackers.check(args.report_to or ["tensorboard"], default=args.report_to is None, say=log.say)
    device, processes = accelerator.device, accelerator.num_processes
    on = f"{threads} CPU threads" if device.type == "cpu" else f"one {device.type}"
    log.say(f"processes: {processes}, each with {on}; precision {accelerator.mixed_precision}")
    total_batch = args.batch_size * args.update_freq * processes
    recipe = f"batch size {args.batch_size} x update_freq {args.update_freq} x {processes} processes"
    torch.manual_seed(args.seed)
    if args.predict:
        return predict_only(args, accelerator, log)

    # data
    with accelerator.local_main_process_first():  # which downloads or indexes, where there is something to
        train_set, val_set, geometry = build_data(args, check=accelerator.is_main_process)
    classes = train_set.source.classes
    share = (accelerator.process_index, processes)
    batches = TrainBatches(len(train_set), args.batch_size, args.update_freq, *share, args.seed)
    if batches.updates == 0 and not args.eval:
        raise InputError(f"{len(train_set)} training images are less than one update needs, {total_batch} ({recipe})")
    workers = min(10, machine.cores_per_process()) if args.num_workers is None else args.num_workers
    loader = functools.partial(
        torch.utils.data.DataLoader, num_workers=workers, pin_memory=args.pin_mem and device.type == "cuda",
        worker_init_fn=in_worker, persistent_workers=workers > 0,
    )  # fmt: skip
    on_device = functools.partial(
        DeviceBatches, device=device, mean=geometry["mean"], std=geometry["std"], channels_last=args.channels_last
    )
    collate = fast_transforms.collate if args.transforms == "fast" else None
    if args.streaming:
        train_loader = batches = StreamLoader(
            train_set.source.table, train_set, len(train_set), args.batch_size, args.update_freq, workers, *share, args.seed,
            args.shuffle_buffer, collate, pin_memory=loader.keywords["pin_memory"], worker_init_fn=in_worker,
        )  # fmt: skip
    else:
        train_loader = loader(train_set, batch_sampler=batches, collate_fn=collate)
    eval_share = share if args.dist_eval else (0, 1)
    val_batches = EvalBatches(len(val_set), args.batch_size, *eval_share)
    val_loader = loader(val_set, batch_sampler=val_batches, collate_fn=collate)
    train_loader, val_loader = map(on_device, (train_loader, val_loader))
    log.say(f"data: {len(train_set)} training and {len(val_set)} validation images, {len(classes)} classes")

    # model; which weights win: 1. --resume (below)  2. --finetune  3. --pretrained  4. from scratch
    weights = args.finetune
    if args.eval and args.resume and not checkpoint.is_state(args.resume):
        weights, args.resume = args.resume, ""  # as published: --eval true --resume WEIGHTS
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build_model(
            args.model, classes, input_size=args.input_size, pretrained=args.pretrained and not args.dry_run,
            model_kwargs=args.model_kwargs, drop_path=args.drop_path, drop_block=args.drop_block, last_gamma=args.last_gamma,
            layer_scale_init_value=args.layer_scale_init_value, head_init_scale=args.head_init_scale,
        )  # fmt: skip
    origin = [args.resume or weights or ("timm's pretrained weights" if args.pretrained else "from scratch")]
    if weights and not (args.dry_run and (is_remote(weights) or not os.path.exists(weights))):
        with accelerator.local_main_process_first():
            path = fetch(weights)  # one process of a machine downloads, the others find it in the cache
        origin = load_weights(model, path, model_key=args.model_key, model_prefix=args.model_prefix)
    n_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.say(f"model: {args.model}, {n_parameters:,} parameters, {args.input_size} pixels")
    for line in origin:
        log.say(f"weights: {line}")
    config = timm_config(model, args.model, classes, input_size=args.input_size, model_kwargs=args.model_kwargs, **geometry)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.sync_bn and processes > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    run_eval = functools.partial(evaluate, accelerator, loader=val_loader, flip=args.tta_flip)
    if args.eval and not args.dry_run:
        return evaluate_only(args, accelerator, model, run_eval, log)

    # optimizer and schedule
    args.lr = args.blr * total_batch / 256 if args.lr is None else args.lr
    optimizer, get_layer_id = build_optimizer(args, model, log)
    with input_errors():
        schedule = make_schedule(
            optimizer, batches.updates, weight_decay=args.weight_decay, weight_decay_end=args.weight_decay_end,
            sched=args.sched, lr=args.lr, epochs=args.epochs, min_lr=args.min_lr, warmup_epochs=args.warmup_epochs,
            warmup_steps=args.warmup_steps, power=args.power, step_epochs=args.step_epochs, step_rate=args.step_rate,
            decay_epochs=args.decay_epochs,
        )  # fmt: skip
    criterion = (BinaryCrossEntropy if args.bce_loss else CrossEntropy)(args.smoothing)
    mixup = None
    if args.mixup or args.cutmix or args.cutmix_minmax:
        mixup = Mixup(
            len(classes), args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob,
            args.mixup_mode, args.smoothing,
        )  # fmt: skip
    if args.dry_run:
        return show_dry_run(args, accelerator, model, train_set, val_set, batches, origin, optimizer, get_layer_id, schedule)
    log.say(f"updates: {args.epochs} epochs x {batches.updates}, of {total_batch} images ({recipe}); peak lr {args.lr:.3g}")

    # output, and the run to go on with
    settings = {flag: value for flag, value in vars(args).items() if flag not in flags.FREE}
    settings.update(total_batch=total_batch, train_images=len(train_set), val_images=len(val_set), classes=len(classes))
    args.output_dir, resume_from = run_folder.open_together(
        accelerator, args.output_dir, "train_recognition", settings, vars(args), resume=args.resume,
        auto_resume=args.auto_resume, say=log.say,
    )  # fmt: skip
    log = RunLog(args.output_dir, accelerator.is_main_process)
    log.say(f"output: {args.output_dir}")
    groups = group_table(model, optimizer.param_groups, get_layer_id)
    gallery = Gallery(log, "test_acc1", lr_range(groups))
    gallery.put("lr_groups", pictures.lr_groups, groups=groups)
    norm = {name: geometry[name] for name in ("mean", "std")}
    on_first = functools.partial(gallery.first_batch, classes=classes, **norm)
    network, optimizer = sharding.prepare(accelerator, model, optimizer)
    if args.torchcompile:
        model.compile()  # in place, so that parameters keep their names
    ema = EMA(model, args.model_ema_decay, args.model_ema_warmup) if args.model_ema else None  # after prepare: equal everywhere
    state = run_state.new_state(recipe)
    if resume_from:
        state = run_state.load(resume_from, accelerator, model, optimizer, ema, settings, recipe, log.say)
    log.cut(state["epoch"], state["update"])
    log.trackers = trackers.Trackers(accelerator, report_to, args.output_dir, settings, state["update"], log.say)
    bad_samples = BadSamples(train_set.source.name, len(train_set), args.max_bad_samples, state["bad_samples"])
    if args.check_data:
        check_data(accelerator, bad_samples, train_set.source, val_set.source, log)
        state["bad_samples"] = bad_samples.indices
    stream = train_loader if args.streaming else None
    if stream and state["stream"]:
        stream.load_state_dict(state["stream"])
    save = functools.partial(
        run_state.save, accelerator, log, args.output_dir, model, optimizer, ema, state, settings, args.save_ckpt_num, stream
    )
    keep_weights = functools.partial(run_state.export, accelerator, log, model, config, args.output_dir)
    cards = Cards(
        log, config=config, settings=settings, title=args.data_path or args.dataset or train_set.source.title,
        weights=origin[0], data_id=args.dataset, license=args.license, repo_id=args.push_to_hub,
    )  # fmt: skip

    # train; a signal is heard between two updates, and in evaluation
    start = time.perf_counter()
    save_points = SavePoints(
        save if args.save_ckpt else None, args.output_dir, is_main=accelerator.is_main_process, processes=processes,
        updates=args.save_ckpt_updates, minutes=args.save_ckpt_minutes,
    )  # fmt: skip
    with save_points, log:
        for epoch in range(state["epoch"], args.epochs):
            batches.epoch, batches.first_update = epoch, state["update"] - epoch * batches.updates
            log.start_epoch(epoch, args.epochs, batches.first_update, batches.updates, total_batch)
            mixing = mixup if epoch < (args.mixup_off_epoch or args.epochs) else None
            train_one_epoch(
                accelerator, network, criterion, train_loader, optimizer, schedule, state, log, mixup=mixing, ema=ema,
                clip_grad=args.clip_grad, seed=args.seed, log_every=args.log_every, bad_samples=bad_samples,
                skip_nonfinite=args.skip_nonfinite, save_points=save_points, on_first=on_first,
            )  # fmt: skip
            speed, improved = log.end_epoch(), {}
            record = {"epoch": epoch, "train_loss": state["loss_sum"] / max(state["losses"], 1)}
            record["train_lr"] = schedule(state["update"] - 1)
            if not args.disable_eval:
                answers = []
                result = run_eval(network, check=save_points.stop_if_asked, answers=answers)
                put_recognition(gallery, *answers, val_set.source, classes, args.input_size, **norm)
                record.update({f"test_{name}": value for name, value in result.items()})
                improved["best"] = run_state.keep_best(state["best"], "test_acc1", result["acc1"], lambda: keep_weights("best"))
            if ema and args.model_ema_eval and not args.disable_eval:
                with ema.in_model():
                    result = run_eval(network, check=save_points.stop_if_asked)
                    record.update({f"test_{name}_ema": value for name, value in result.items()})
                    improved["best_ema"] = run_state.keep_best(
                        state["best"], "test_acc1_ema", result["acc1"], lambda: keep_weights("best_ema")
                    )
            record.update(bad_samples=bad_samples.total, skipped_updates=state["skipped"], n_parameters=n_parameters)
            log.epoch(record)
            for name in filter(improved.get, improved):
                cards.write(name, record, state["best"])
            passed = clock(time.perf_counter() - start)
            log.say(f"{describe(record, args.epochs, state['best'])}, {speed:.0f} images/s, "
                    f"{machine.peak_memory(device)}, {passed}")  # fmt: skip
            gallery.refresh()
            state.update(epoch=epoch + 1, loss_sum=0.0, losses=0)
            if args.save_ckpt and ((epoch + 1) % args.save_ckpt_freq == 0 or epoch + 1 == args.epochs):
                save_points.save()

    # result
    fault = keep_weights("last") or save_points.fault
    run_state.end(accelerator, log, args.output_dir, state["best"], fault)
    cards.write("last", best=state["best"])
    gallery.finish()
    log.trackers.pictures(gallery.files(), state["update"] - 1)
    log.trackers.finish()
    best = ", ".join(f"best {name} {value:.3f}" for name, value in state["best"].items()) or "not evaluated"
    folder = os.path.join(args.output_dir, "best" if state["best"] else "last")
    log.say(f"done in {clock(time.perf_counter() - start)}: {best}; timm opens the weights as local-dir:{folder}")
    log.say(f"next: look at {os.path.join(args.output_dir, 'report.html')}, or python train_recognition.py --predict PICTURES "
            f"--finetune {folder}")  # fmt: skip
    if accelerator.is_main_process:
        pass_on(folder, args.export, args.push_to_hub, args.hub_private, log.say)
    accelerator.end_training()


def train_one_epoch(
    accelerator, model, criterion, loader, optimizer, schedule, state, log, *, mixup=None, ema=None, clip_grad=None,
    seed=0, log_every=50, bad_samples=None, skip_nonfinite=0, save_points=None, on_first=None,
):  # fmt: skip
    """Train on the batches of `loader`, (images (B, 3, H, W), labels (B,) int64) on the device, in whole windows.

    A third element (B,) int64 tells which broken samples were replaced (see `bad_samples`). schedule: sets the rates for an
    update by its number and returns the learning rate. state: the run's counters, carried on. Losses stay on the device;
    every `log_every` updates, and before a save, they are averaged over the processes, logged, and checked (`Watch`).
    on_first: gets the first (images, targets) as the model does, and returns what gets the next ones, or None.
    """
    model.train()
    backward = {"create_graph": True} if getattr(optimizer.optimizer, "is_second_order", False) else {}
    watch = run_state.Watch(accelerator, state, log, bad_samples, skip_nonfinite)
    steps = 0
    for images, labels, *replaced in loader:
        watch.lap("data")
        if steps == 0:
            rate = schedule(state["update"])
        position = (state["update"], steps, accelerator.process_index)
        targets = labels
        if mixup is not None:
            images, targets = mixup(images, labels, stream_seed(seed, MIX, *position))
        if on_first is not None:
            on_first = on_first(images, targets)
        torch.manual_seed(stream_seed(seed, MODEL, *position))  # for drop path: no random state that a resume could lose
        with accelerator.accumulate(model):
            loss = criterion(model(images), targets)
            accelerator.backward(loss, **backward)
            watch.step(loss, *replaced)
            watch.lap("forward and backward")
            steps += 1
            norm, left_out = None, False
            if accelerator.sync_gradients:
                if clip_grad or watch.skip_nonfinite:
                    norm = accelerator.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
                left_out = watch.skip_nonfinite and watch.leaves_out(steps, norm)
            if not left_out:
                optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        if ema is not None and not (left_out or accelerator.optimizer_step_was_skipped):
            ema.update(state["update"])
        watch.end_update(rate, norm)
        watch.lap("optimizer")
        state["update"] += 1
        steps = 0
        log.advance()
        due = save_points is not None and save_points.due(state["update"])
        if due or len(watch) == log_every:
            watch.look()
        if due:
            save_points.act()
        watch.lap("logging and saving")
    watch.finish()


@torch.no_grad()
def evaluate(accelerator, model, loader, flip=False, check=None, answers=None):
    """Top-1 and top-5 in per cent, cross-entropy, and the number of images, each counted once on any number of processes.

    flip: the logits are the mean of those of the image and of its mirror image. check: called after each batch.
    answers: a list that gets (N, 4) float32 on the CPU: number of the image, label, predicted class, its probability.
    Per-image values are gathered and summed exactly (fsum), so that the order of the images does not matter.
    """
    model.eval()
    accelerate.utils.broadcast([*model.buffers()])  # batch norm's, which each process has averaged over its own batches
    rows = []
    for images, labels in loader:  # labels (B,) int64, -1 where an image does not count
        logits = model(images).float()  # (B, classes)
        if flip:
            logits = (logits + model(images.flip(-1)).float()) / 2
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        best = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        correct = best == labels.unsqueeze(1)
        sure = logits.softmax(1).amax(1)
        columns = [correct[:, 0], correct.any(1), loss, labels >= 0, labels, best[:, 0], sure]
        rows.append(torch.stack([column.float() for column in columns], dim=1))
        if check is not None:
            check()
    rows = torch.cat(rows)
    if loader.batch_sampler.processes > 1:
        rows = accelerator.gather(rows)
    rows = rows.cpu()
    if answers is not None:
        order = torch.tensor(image_numbers(loader.batch_sampler))
        answers.append(torch.cat([order[:, None], rows[:, 4:]], dim=1)[rows[:, 3] > 0])
    rows = rows[rows[:, 3] > 0].double()
    acc1, acc5, loss = (math.fsum(column) / len(rows) for column in rows[:, :3].T.tolist())
    return {"acc1": round(100 * acc1, 5), "acc5": round(100 * acc5, 5), "loss": round(loss, 6), "images": len(rows)}


# --- what main is made of -------------------------------------------------------------------------------------------


def build_data(args, check):
    """(training set, validation set, geometry); with `check`, headers of validation images are read for broken ones.

    geometry: mean, std, crop_pct and crop_mode, as the saved weights tell them to timm.
    """
    if args.data_set in torchvision_data.DATASETS:
        train, val = torchvision_data.open_data(args.data_set, args.data_path, sizes_only=args.dry_run)
    elif args.data_path and args.dry_run and not os.path.isdir(args.data_path):
        train, val = recognition_data.imagenet_sizes(args.data_path, args.nb_classes)
    elif args.data_path:
        train, val = recognition_data.folders(
            args.data_path, args.eval_data_path, args.val_split, args.seed, need_val=args.eval or not args.disable_eval
        )
    elif args.streaming:
        train, val = recognition_data.hub_stream(args.dataset, args.image_column, args.label_column, args.train_images)
    elif args.dataset:
        columns = (args.image_column, args.label_column)
        train, val = recognition_data.hub_table(args.dataset, *columns, args.val_split, args.seed)
    else:
        train, val = recognition_data.digits()
    if args.nb_classes not in (None, len(train.classes)):
        raise InputError(
            f"--nb_classes {args.nb_classes}: the data has {len(train.classes)} classes "
            f"({', '.join(train.classes[:5])}{', …' if len(train.classes) > 5 else ''}); leave the flag out"
        )
    if check:
        recognition_data.check_headers(val)
    norm = {"mean": normalisation.IMAGENET_INCEPTION_MEAN, "std": normalisation.IMAGENET_INCEPTION_STD}
    if args.imagenet_default_mean_and_std:
        norm = {"mean": normalisation.IMAGENET_DEFAULT_MEAN, "std": normalisation.IMAGENET_DEFAULT_STD}
    kinds = {"fast": fast_transforms, "timm": recognition_transforms, "encoding": encoding_transforms}
    kind = kinds[args.transforms]
    with input_errors(f"--aa {args.aa}: "):
        augment = kind.train_transform(
            args.input_size, scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
            color_jitter=args.color_jitter, aa=None if args.aa.lower() in ("", "none") else args.aa,
            interpolation=args.train_interpolation, reprob=args.reprob, remode=args.remode, recount=args.recount, **norm,
        )  # fmt: skip
    plain = kind.eval_transform(args.input_size, crop_pct=args.crop_pct, **norm)
    crop_pct, crop_mode = kind.eval_geometry(args.input_size, args.crop_pct)
    dataset = recognition_data.RecognitionDataset
    for_training = recognition_data.RecognitionStream if args.streaming else dataset
    return for_training(train, augment, args.seed), dataset(val, plain), {**norm, "crop_pct": crop_pct, "crop_mode": crop_mode}


def build_optimizer(args, model, log):
    """(create_optimizer with layer decay, in torch's fused form where the device has it; name -> layer id or None)."""
    with input_errors(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assigner = layer_decay_assigner(model, args.layer_decay, args.layer_decay_type)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        # A weight decay that starts at 0 still has to tell the groups that will decay from those that never do.
        decay = args.weight_decay or args.weight_decay_end or 0.0
        wanted = type(args)(**{**vars(args), "weight_decay": decay, "fused": True})
        optimizer = create_optimizer(wanted, model, *by_layer)
    for note in notes:
        log.say(f"note: {note.message}")
    return optimizer, by_layer[0]


def show_dry_run(args, accelerator, model, train_set, val_set, batches, origin, optimizer, get_layer_id, schedule):
    """Print what the run would do."""
    groups = group_table(model, optimizer.param_groups, get_layer_id)
    run = dry_run.describe(
        vars(args), model=model, name=args.model, input_size=args.input_size, train_set=train_set, val_set=val_set,
        processes=accelerator.num_processes, epochs=args.epochs, per_epoch=batches.updates,
        updates=args.epochs * batches.updates, weights=origin, groups=groups, schedule=schedule,
    )  # fmt: skip
    if accelerator.is_main_process:
        print(json.dumps(run, indent=1) if args.dry_run == "json" else dry_run.as_text(run, format_group_table(groups)))


def predict_only(args, accelerator, log):
    """The classes of the images in --predict, by the model in the folder --finetune: predictions.csv, and a table."""
    with accelerator.local_main_process_first():
        folder = fetch(args.finetune)
    workers = machine.cores_per_process() if args.num_workers is None else args.num_workers
    recognition_prediction.predict(
        folder, args.predict, os.path.join(args.output_dir or ".", "predictions.csv"), topk=args.topk,
        batch_size=args.batch_size, device=accelerator.device, workers=workers,
        share=(accelerator.process_index, accelerator.num_processes), gather=accelerate.utils.gather_object, say=log.say,
    )  # fmt: skip
    accelerator.end_training()


def evaluate_only(args, accelerator, model, run_eval, log):
    """Evaluate --resume, --finetune or --pretrained weights, and the average if the state has one."""
    averaged = None
    if args.resume:
        weights, _, averaged, _ = checkpoint.load_state(args.resume)
        for tensors in (weights, averaged or weights):
            check_tensors(f"--resume {args.resume}", tensors, model.state_dict())
        model.load_state_dict(weights)
    network = sharding.prepare_to_evaluate(accelerator, model)
    start = time.perf_counter()
    results = {"result": run_eval(network)}
    seconds = time.perf_counter() - start
    if averaged:
        sharding.load_model(model, averaged)
        results["result of the EMA"] = run_eval(network)
    for title, r in results.items():
        log.say(f"{title}: top-1 {r['acc1']:.5f} %, top-5 {r['acc5']:.5f} %, loss {r['loss']:.6f}, {r['images']} images")
    log.say(f"throughput: {results['result']['images'] / seconds:.0f} images/s")
    accelerator.end_training()


def describe(record, epochs, best):
    text = f"epoch {record['epoch'] + 1}/{epochs}: train loss {record['train_loss']:.4f}"
    if "test_acc1" in record:
        text += f", top-1 {record['test_acc1']:.2f} % (best {best.get('test_acc1', 0):.2f})"
    if "test_acc1_ema" in record:
        text += f", EMA {record['test_acc1_ema']:.2f} % (best {best.get('test_acc1_ema', 0):.2f})"
    return text


if __name__ == "__main__":
    run_script("train_recognition.py", main, args)
