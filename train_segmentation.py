"""Train a semantic segmentation network on built-in scenes, the field's data sets, or folders of images and masks.

    accelerate launch train_segmentation.py                                                  # a CPU, a few minutes
    accelerate launch train_segmentation.py --data_path my_images --pretrained true          # images/ and masks/, one GPU
    accelerate launch --config_file accelerate_configs/gpu_8.yaml train_segmentation.py \\
        @recipes/segmentation/upernet_convnext_tiny_ade20k_512.args --data_path ADE20K       # a paper's row, eight GPUs
"""

import functools
import json
import math
import os
import pathlib
import time
import warnings

from utils.cli import flags
from utils.cli.arguments import Parser, add_switch, key_value, number, whole
from utils.cli.errors import InputError, input_errors, run_script

HEADS = ("fcn", "psp", "deeplab", "encnet", "upernet", "fpn")
# What suits the built-in scenes of digits. Holds where neither --data_path nor --dataset is given; a flag on the line wins.
SCENES = {
    "crop_size": 96, "base_size": 96, "backbone": "resnet10t", "channels": 48, "opt": "adamw", "lr": 4e-3,
    "weight_decay": 0.05, "weight_decay_filter": "norm_bias", "head_lr_scale": 1.0, "epochs": 12, "warmup_epochs": 1,
    "batch_size": 8, "eval_batch_size": 16, "transforms": "none", "num_workers": 0,
}  # fmt: skip
# Epochs and learning rate (for each 256 images of SGD's batch) of PyTorch-Encoding, experiments/segmentation/train.py.
PUBLISHED = {
    "ade20k": {"epochs": 180, "blr": 0.064}, "citys": {"epochs": 240, "blr": 0.064}, "coco": {"epochs": 30, "blr": 0.064},
    "pascal_aug": {"epochs": 80, "blr": 0.016}, "pascal_voc": {"epochs": 50, "blr": 0.0016},
    "pcontext": {"epochs": 80, "blr": 0.016},
}  # fmt: skip


def parse_args(argv=None):
    scenes = ", ".join(f"{flag} {value}" for flag, value in SCENES.items())
    parser = Parser(prog="train_segmentation.py", description=__doc__, epilog=f"defaults for the scenes: {scenes}")
    group = parser.add_argument_group("network")
    add = group.add_argument
    add("--model", choices=HEADS, default="upernet", help="the head")
    add("--backbone", default="convnextv2_atto", help="any name that timm knows and that gives feature maps")
    add("--backbone_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="for timm.create_model")
    add("--output_stride", type=int, choices=(8, 16, 32), help="of the last features; none: the backbone's own")
    add("--channels", type=whole(1), help="inner width of the head; none: the published one")
    add("--dropout", type=number(0, 0.99), default=0.1, help="before the last convolution")
    add("--drop_path", type=number(0, 0.99), default=0.0, help="stochastic depth rate of the backbone")
    add_switch(group, "--aux", False, "an auxiliary FCN head on the third stage")
    add("--aux_channels", type=whole(1), help="its inner width; none: a quarter of its input's")
    add_switch(group, "--se_loss", False, "of encnet: predict which classes are in the image")
    add_switch(group, "--lateral", False, "of encnet: use the second and third stage too")
    add("--codewords", type=whole(1), help="of encnet; none: 32")
    add_switch(group, "--with_global", False, "of fcn: concatenate the global average")
    add("--atrous_rates", type=whole(1), nargs=3, help="of deeplab; none: 12 24 36 at output stride 8, half at 16")
    flags.add_start_flags(parser)

    group = parser.add_argument_group("data: built-in scenes of digits unless --data_path or --dataset is given")
    add = group.add_argument
    add("--data_path", metavar="DIR", help="images/{train,val} and masks/{train,val}, or the folder of --data_set")
    add("--data_set", choices=(*PUBLISHED, "pets"), help="what is in --data_path; brings its published epochs and rate (pets: "
        "Oxford's pets, downloaded there)")  # fmt: skip
    add("--train_split", choices=("train", "trainval"), help="of --data_set: train on the validation images too; none: train")
    add("--dataset", metavar="NAME_OR_DIR", help="through the library datasets: Hub name, Parquet, Arrow, imagefolder")
    add("--image_column", help="of --dataset, where it cannot be found")
    add("--mask_column", help="of --dataset, where it cannot be found")
    add("--val_split", type=number(above=0, maximum=0.9), help="of --dataset: hold out this share, fixed by the seed")
    add("--nb_classes", type=whole(2), help="must agree with the data; none: as many as the data has")
    flags.add_bad_sample_flags(group)
    flags.add_stream_flags(group)

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--transforms", choices=("encoding", "mmseg", "none"), default="encoding", help="PyTorch-Encoding's, mmsegmentation's")
    add("--crop_size", type=whole(16), default=480, help="pixels of a training crop and of an evaluation window")
    add("--base_size", type=whole(16), default=520, help="pixels of the long side (encoding) or short side (mmseg) at scale 1")
    add("--ratio_range", type=number(above=0), nargs=2, default=(0.5, 2.0), help="random scale of a training image")
    add("--cat_max_ratio", type=number(above=0, maximum=1), default=0.75, help="of mmseg: most of a crop in one class")

    group = parser.add_argument_group("loss")
    add = group.add_argument
    add("--aux_weight", type=number(0), default=0.2, help="of the auxiliary head's loss")
    add("--se_weight", type=number(0), default=0.2, help="of the SE loss")
    add("--ohem", type=number(0), nargs=2, metavar=("THRESHOLD", "MIN_KEPT"), help="train on the pixels whose class has less "
        "than this probability, or on so many per image")  # fmt: skip
    flags.add_batch_flags(parser)
    group = flags.add_optimizer_flags(parser, layer_decay_types=("stage_wise", "layer_wise", "single", "group"))
    group.add_argument("--head_lr_scale", type=number(above=0), default=10.0, help="lr of all but the backbone, times the lr")
    group = flags.add_schedule_flags(parser)
    group.add_argument("--max_updates", type=whole(1), help="length of the run, instead of --epochs")
    flags.add_ema_flags(parser)
    group = flags.add_evaluation_flags(parser)
    add = group.add_argument
    add("--eval_mode", choices=("whole", "slide", "crop"), default="whole", help="the image at once, windows, or its centre")
    add("--eval_scales", type=number(above=0), nargs="+", default=(1.0,), help="of --base_size; several are added up")
    add_switch(group, "--eval_flip", False, "add the mirror image's scores")
    add("--eval_batch_size", type=whole(1), default=1, help="images per process; above 1 all must have the same size")
    add("--eval_freq", type=whole(1), default=1, help="epochs between evaluations")
    add("--predict", metavar="DIR", help="write masks and overlays for the images in DIR to --output_dir, and stop")
    flags.add_speed_flags(parser)
    flags.add_output_flags(parser, "train_segmentation")
    flags.add_result_flags(parser)
    # PyTorch-Encoding's SGD, for which its learning rates are
    parser.set_defaults(opt="momentum", weight_decay=1e-4, weight_decay_filter="none", sched="poly", warmup_epochs=0, min_lr=0)

    args = parser.parse_args(argv)
    if args.data_path and args.dataset:
        parser.error("--data_path and --dataset: give one of the two")
    if args.streaming and (not args.dataset or args.val_split or args.check_data):
        parser.error("--streaming needs --dataset, and goes neither with --val_split nor with --check_data")
    for flag, needs in {
        "data_set": args.data_path, "train_split": args.data_set, "image_column": args.dataset, "mask_column": args.dataset,
        "val_split": args.dataset,
    }.items():  # fmt: skip
        if getattr(args, flag) is not None and not needs:
            other = {"data_set": "--data_path", "train_split": "--data_set"}.get(flag, "--dataset")
            parser.error(f"--{flag} needs {other} too")
    if args.se_loss and args.model != "encnet":
        parser.error(f"--se_loss is for --model encnet; found {args.model}")
    if args.predict and not (args.output_dir and args.finetune):
        parser.error("--predict needs --finetune RUN/best, and --output_dir, where masks and overlays go")
    defaults = PUBLISHED.get(args.data_set, {}) if args.data_path or args.dataset else SCENES
    parser.set_defaults(**defaults)  # and read once more, so that what is on the line wins
    return parser.parse_args(argv) if defaults else args


if __name__ == "__main__":  # before the heavy imports, so that --help, a wrong flag and the first line come at once
    args = parse_args()
    if os.environ.get("RANK", "0") == "0" and args.dry_run != "json":
        on = args.data_path or args.dataset or "built-in scenes"
        print(f"train_segmentation: {args.model} on {args.backbone}, {on}", flush=True)

import accelerate
import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lr_sched import make_schedule
from optim_factory import create_optimizer, format_group_table, group_table, layer_decay_assigner
from segmentation_networks.network import build_network
from utils.augment import segmentation as segmentation_transforms
from utils.data.bad_samples import BadSamples, check_data
from utils.data.loaders import DeviceBatches
from utils.data.sampling import MODEL, EvalBatches, TrainBatches, stream_seed
from utils.data.streaming import StreamLoader
from utils.losses.segmentation import SegmentationLoss
from utils.metrics.segmentation import ConfusionMatrix, scores
from utils.metrics.windows import evaluated_region, predict
from utils.model import processes as machine
from utils.model import sharding
from utils.model.download import fetch, is_remote
from utils.model.ema import EMA
from utils.model.segmentation_weights import load_segmentation_weights, open_network, read_config
from utils.report import pictures
from utils.report.gallery import Gallery, lr_range, put_segmentation
from utils.result import dry_run
from utils.result.predict_segmentation import predict_folder
from utils.result.result import Cards, check_wishes, pass_on
from utils.run import checkpoint, trackers
from utils.run import folder as run_folder
from utils.run import state as run_state
from utils.run.log import RunLog, clock
from utils.run.signals import SavePoints, in_worker
from utils.run.state_checks import check_tensors
from utils.sources import segmentation as segmentation_data
from utils.sources import torchvision_sets as torchvision_data

NORM = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def main(args):
    # processes and the arithmetic of the batch
    check_wishes(args.export, args.push_to_hub, args.license)
    threads = machine.use_all_cores()
    accelerator, args.batch_size, args.update_freq = machine.start_processes(
        args.batch_size, args.update_freq, args.total_batch_size, args.use_amp, default_batch_size=16
    )
    machine.check_support(accelerator, sync_bn=args.sync_bn)
    if accelerator.distributed_type == "FSDP" and args.eval_mode == "slide" and not args.disable_eval:
        raise InputError("--eval_mode slide with FSDP: the processes would wait for each other's windows; use whole or crop")
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
    with accelerator.local_main_process_first():  # which downloads, where there is something to
        train_set, val_set = build_data(args, check=accelerator.is_main_process)
    classes, palette = train_set.source.classes, train_set.source.palette
    share = (accelerator.process_index, processes)
    batches = TrainBatches(len(train_set), args.batch_size, args.update_freq, *share, args.seed)
    if batches.updates == 0 and not args.eval:
        raise InputError(f"{len(train_set)} training images are less than one update needs, {total_batch} ({recipe})")
    updates = args.max_updates or args.epochs * batches.updates
    epochs = math.ceil(updates / batches.updates) if batches.updates else args.epochs
    workers = min(10, machine.cores_per_process()) if args.num_workers is None else args.num_workers
    loader = functools.partial(
        torch.utils.data.DataLoader, num_workers=workers, pin_memory=args.pin_mem and device.type == "cuda",
        worker_init_fn=in_worker, persistent_workers=workers > 0,
    )  # fmt: skip
    if args.streaming:
        train_loader = batches = StreamLoader(
            train_set.source.table, train_set, len(train_set), args.batch_size, args.update_freq, workers, *share, args.seed,
            args.shuffle_buffer, pin_memory=loader.keywords["pin_memory"], worker_init_fn=in_worker,
        )  # fmt: skip
    else:
        train_loader = loader(train_set, batch_sampler=batches)
    eval_share = share if args.dist_eval else (0, 1)
    val_loader = loader(val_set, batch_sampler=EvalBatches(len(val_set), args.eval_batch_size, *eval_share))
    on_device = functools.partial(DeviceBatches, device=device, channels_last=args.channels_last)
    train_loader, val_loader = map(on_device, (train_loader, val_loader))
    log.say(f"data: {train_set.source.title}, {len(train_set)} training and {len(val_set)} validation images, "
            f"{len(classes)} classes")  # fmt: skip

    # network; which weights win: 1. --resume (below)  2. --finetune  3. --pretrained  4. from scratch
    weights = args.finetune
    if args.eval and args.resume and not checkpoint.is_state(args.resume):
        weights, args.resume = args.resume, ""
    network_settings = {
        "backbone": args.backbone, "head": args.model, "classes": len(classes), "output_stride": args.output_stride,
        "channels": args.channels, "dropout": args.dropout, "aux": args.aux, "aux_channels": args.aux_channels,
        "se_loss": args.se_loss, "lateral": args.lateral, "codewords": args.codewords, "with_global": args.with_global,
        "atrous_rates": args.atrous_rates, "backbone_kwargs": dict(args.backbone_kwargs),
    }  # fmt: skip
    if args.eval and weights and (config := read_config(weights)):
        network_settings = {**config["network"], "classes": len(classes)}  # as it was trained, whatever the flags
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build_network(
            **network_settings, input_size=args.crop_size, drop_path=args.drop_path,
            pretrained=args.pretrained and not args.dry_run,
        )  # fmt: skip
    origin = [args.resume or weights or ("timm's pretrained weights" if args.pretrained else "from scratch")]
    if weights and not (args.dry_run and (is_remote(weights) or not os.path.exists(weights))):
        with accelerator.local_main_process_first():
            path = fetch(weights)  # one process of a machine downloads, the others find it in the cache
        origin = load_segmentation_weights(model, path, model_key=args.model_key, model_prefix=args.model_prefix)
    n_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.say(f"network: {network_settings['head']} on {network_settings['backbone']}, {n_parameters:,} parameters")
    for line in origin:
        log.say(f"weights: {line}")
    config = {
        "network": network_settings, "classes": classes, "palette": palette.tolist(), "crop_size": args.crop_size,
        "base_size": args.base_size, "transforms": args.transforms, **NORM,
    }  # fmt: skip
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.sync_bn and processes > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    scores_of = functools.partial(predict, **evaluation_settings(args, len(classes)))
    run_eval = functools.partial(evaluate, accelerator, model, val_loader, len(classes), scores_of)
    if args.eval and not args.dry_run:
        return evaluate_only(args, accelerator, model, run_eval, classes, log)

    # optimizer and schedule
    args.lr = args.blr * total_batch / 256 if args.lr is None else args.lr
    optimizer, get_layer_id = build_optimizer(args, model, log)
    with input_errors():
        schedule = make_schedule(
            optimizer, batches.updates, weight_decay=args.weight_decay, weight_decay_end=args.weight_decay_end,
            sched=args.sched, lr=args.lr, epochs=updates / batches.updates, min_lr=args.min_lr,
            warmup_epochs=args.warmup_epochs, warmup_steps=args.warmup_steps, power=args.power,
            step_epochs=args.step_epochs, step_rate=args.step_rate, decay_epochs=args.decay_epochs,
        )  # fmt: skip
    criterion = SegmentationLoss(
        len(classes), aux_weight=args.aux_weight if args.aux else 0.0, se_weight=args.se_weight if args.se_loss else 0.0,
        ohem=args.ohem and (args.ohem[0], int(args.ohem[1])),
    )  # fmt: skip
    if args.dry_run:
        return show_dry_run(
            args, accelerator, model, train_set, val_set, batches.updates, updates, origin, optimizer, get_layer_id, schedule
        )
    log.say(f"updates: {updates} in {epochs} epochs, of {total_batch} images ({recipe}); peak lr {args.lr:.3g}")

    # output, and the run to go on with
    settings = {flag: value for flag, value in vars(args).items() if flag not in flags.FREE}
    settings.update(total_batch=total_batch, train_images=len(train_set), val_images=len(val_set), classes=classes)
    args.output_dir, resume_from = run_folder.open_together(
        accelerator, args.output_dir, "train_segmentation", settings, vars(args), resume=args.resume,
        auto_resume=args.auto_resume, say=log.say,
    )  # fmt: skip
    log = RunLog(args.output_dir, accelerator.is_main_process)
    log.say(f"output: {args.output_dir}")
    groups = group_table(model, optimizer.param_groups, get_layer_id)
    gallery = Gallery(log, "test_miou", lr_range(groups))
    gallery.put("lr_groups", pictures.lr_groups, groups=groups)
    on_first = functools.partial(gallery.first_batch, classes=classes, palette=palette, **NORM)
    network, optimizer = sharding.prepare(accelerator, model, optimizer)
    if not args.disable_eval and accelerator.distributed_type != "FSDP":  # whose model one process alone cannot run
        put_segmentation(
            gallery, val_set, functools.partial(scores_of, logits_of(model)), classes, palette, **NORM, size=args.crop_size,
            device=device,
        )  # fmt: skip
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
        for epoch in range(state["epoch"], epochs):
            batches.epoch, batches.first_update = epoch, state["update"] - epoch * batches.updates
            batches.last_update = min(batches.updates, updates - epoch * batches.updates)
            log.start_epoch(epoch, epochs, batches.first_update, batches.last_update, total_batch)
            train_one_epoch(
                accelerator, network, criterion, train_loader, optimizer, schedule, state, log, ema=ema,
                clip_grad=args.clip_grad, seed=args.seed, log_every=args.log_every, bad_samples=bad_samples,
                skip_nonfinite=args.skip_nonfinite, save_points=save_points, on_first=on_first,
            )  # fmt: skip
            speed, improved = log.end_epoch(), {}
            record = {"epoch": epoch, "train_loss": state["loss_sum"] / max(state["losses"], 1)}
            record["train_lr"] = schedule(state["update"] - 1)
            if not args.disable_eval and ((epoch + 1) % args.eval_freq == 0 or epoch + 1 == epochs):
                result = run_eval(check=save_points.stop_if_asked)
                record.update({f"test_{name}": value for name, value in result.items()})
                improved["best"] = run_state.keep_best(state["best"], "test_miou", result["miou"], lambda: keep_weights("best"))
                if ema and args.model_ema_eval:
                    with ema.in_model():
                        result = run_eval(check=save_points.stop_if_asked)
                        record.update({f"test_{name}_ema": value for name, value in result.items()})
                        improved["best_ema"] = run_state.keep_best(
                            state["best"], "test_miou_ema", result["miou"], lambda: keep_weights("best_ema")
                        )
            record.update(bad_samples=bad_samples.total, skipped_updates=state["skipped"], n_parameters=n_parameters)
            log.epoch(record)
            for name in filter(improved.get, improved):
                cards.write(name, record, state["best"])
            passed = clock(time.perf_counter() - start)
            log.say(f"{describe(record, epochs, state['best'])}, {speed:.1f} images/s, "
                    f"{machine.peak_memory(device)}, {passed}")  # fmt: skip
            gallery.refresh()
            state.update(epoch=epoch + 1, loss_sum=0.0, losses=0)
            if args.save_ckpt and ((epoch + 1) % args.save_ckpt_freq == 0 or epoch + 1 == epochs):
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
    log.say(f"done in {clock(time.perf_counter() - start)}: {best}; weights in {folder}")
    log.say(f"next: look at {os.path.join(args.output_dir, 'report.html')}, or python train_segmentation.py --predict PICTURES "
            f"--output_dir OUT --finetune {folder}")  # fmt: skip
    if accelerator.is_main_process:
        pass_on(folder, args.export, args.push_to_hub, args.hub_private, log.say)
    accelerator.end_training()


def train_one_epoch(
    accelerator, model, criterion, loader, optimizer, schedule, state, log, *, ema=None, clip_grad=None,
    seed=0, log_every=50, bad_samples=None, skip_nonfinite=0, save_points=None, on_first=None,
):  # fmt: skip
    """Train on the batches of `loader`, (images (B, 3, H, W), masks (B, H, W) int64) on the device, in whole windows.

    As in train_recognition.py: a third element tells which broken images were replaced; schedule sets the rates for an
    update by its number; losses stay on the device, and are looked at every `log_every` updates and before a save;
    on_first gets the first (images, masks), and returns what gets the next ones, or None.
    """
    model.train()
    backward = {"create_graph": True} if getattr(optimizer.optimizer, "is_second_order", False) else {}
    watch = run_state.Watch(accelerator, state, log, bad_samples, skip_nonfinite)
    steps = 0
    for images, masks, *replaced in loader:
        watch.lap("data")
        if steps == 0:
            rate = schedule(state["update"])
        position = (state["update"], steps, accelerator.process_index)
        if on_first is not None:
            on_first = on_first(images, masks)
        torch.manual_seed(stream_seed(seed, MODEL, *position))  # for dropout: no random state that a resume could lose
        with accelerator.accumulate(model):
            loss = criterion(model(images), masks)
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
def evaluate(accelerator, model, loader, classes, scores_of, check=None):
    """Pixel accuracy, mean accuracy and mean IoU in per cent, IoU per class, over the masks' own pixels.

    model: not wrapped, for the processes may need different numbers of windows, which a collective would wait for.
    scores_of: (logits of images, images) -> scores (B, classes, H, W). What fills up the last batch has no labels.
    check: called after each batch.
    """
    model.eval()
    accelerate.utils.broadcast([*model.buffers()])  # batch norm's, which each process has averaged over its own batches
    matrix = ConfusionMatrix(classes, accelerator.device)
    for images, masks in loader:
        rows, columns = evaluated_region(*masks.shape[1:], scores_of.keywords["mode"], scores_of.keywords["crop_size"])
        matrix.update(scores_of(logits_of(model), images)[:, :, rows, columns], masks[:, rows, columns])
        if check is not None:
            check()
    total = matrix.matrix
    if loader.batch_sampler.processes > 1:
        total = accelerator.reduce(total, "sum")
    return scores(total)


# --- what main is made of -------------------------------------------------------------------------------------------


def logits_of(model):
    return lambda images: model(images, only_logits=True)["logits"]


def evaluation_settings(args, classes):
    """How `predict` is to look at an image: as the repository does whose transforms train the network."""
    common = {"classes": classes, "mode": args.eval_mode, "crop_size": args.crop_size, "flip": args.eval_flip, **NORM}
    common["scales"] = tuple(args.eval_scales)
    if args.transforms == "mmseg":
        return common | {"base_size": (4 * args.base_size, args.base_size), "edge": "shift", "combine": "softmax"}
    several = args.eval_flip or len(args.eval_scales) > 1
    base_size = args.base_size if args.transforms == "encoding" else None
    return common | {"base_size": base_size, "combine": "exp" if several else "softmax"}


def build_data(args, check):
    """(training set, validation set); with `check`, names and a sample of the files are looked at."""
    if args.data_set == "pets":
        train, val = torchvision_data.pets_masks(args.data_path, sizes_only=args.dry_run)
    elif args.data_path and args.dry_run and not os.path.isdir(args.data_path):
        train, val = segmentation_data.published_sizes(args.data_path, args.data_set, args.train_split or "train")
    elif args.data_set:
        train, val = segmentation_data.open_data(args.data_set, args.data_path, args.train_split or "train")
    elif args.data_path:
        train, val = segmentation_data.folder(args.data_path)
    elif args.streaming:
        train, val = segmentation_data.hub_stream(args.dataset, args.image_column, args.mask_column, args.train_images)
    elif args.dataset:
        columns = (args.image_column, args.mask_column)
        train, val = segmentation_data.hub_table(args.dataset, *columns, args.val_split, args.seed)
    else:
        train, val = segmentation_data.scenes(args.crop_size)
    if args.nb_classes not in (None, len(train.classes)):
        raise InputError(
            f"--nb_classes {args.nb_classes}: the data has {len(train.classes)} classes "
            f"({', '.join(train.classes[:5])}{', …' if len(train.classes) > 5 else ''}); leave the flag out"
        )
    if check and not args.dry_run:
        if not args.streaming:
            segmentation_data.check_files(train, training=True)
        segmentation_data.check_files(val)
    plain = segmentation_transforms.eval_transform(**NORM)
    if args.transforms == "encoding":
        augment = segmentation_transforms.encoding_transform(
            args.base_size, args.crop_size, ratio_range=tuple(args.ratio_range), **NORM
        )
    elif args.transforms == "mmseg":
        augment = segmentation_transforms.mmseg_transform(
            args.crop_size, scale=(4 * args.base_size, args.base_size), ratio_range=tuple(args.ratio_range),
            cat_max_ratio=args.cat_max_ratio, **NORM,
        )  # fmt: skip
    else:
        augment = plain
    dataset = segmentation_data.SegmentationDataset
    for_training = segmentation_data.SegmentationStream if args.streaming else dataset
    return for_training(train, augment, args.seed), dataset(val, plain)


def build_optimizer(args, model, log):
    """(create_optimizer with layer decay in the backbone and the heads' own rate, name -> layer id)."""
    with input_errors(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assigner = layer_decay_assigner(model, args.layer_decay, args.layer_decay_type)
        get_layer_id, get_scale = (assigner.get_layer_id, assigner.get_scale) if assigner else (lambda name: 0, lambda i: 1.0)

        def layer_or_head(name):  # negative ids for what is not the backbone, in the same order
            return get_layer_id(name) if name.startswith("backbone.") else -1 - get_layer_id(name)

        def scale(i):
            return get_scale(i) if i >= 0 else args.head_lr_scale * get_scale(-1 - i)

        decay = args.weight_decay or args.weight_decay_end or 0.0  # one that starts at 0 still has to tell the groups apart
        wanted = type(args)(**{**vars(args), "weight_decay": decay, "fused": True})
        optimizer = create_optimizer(wanted, model, layer_or_head, scale)
    for note in notes:
        log.say(f"note: {note.message}")
    return optimizer, get_layer_id


def show_dry_run(args, accelerator, model, train_set, val_set, per_epoch, updates, origin, optimizer, get_layer_id, schedule):
    """Print what the run would do."""
    groups = group_table(model, optimizer.param_groups, get_layer_id)
    run = dry_run.describe(
        vars(args), model=model, name=f"{args.model} on {args.backbone}", input_size=args.crop_size, train_set=train_set,
        val_set=val_set, processes=accelerator.num_processes, epochs=updates / per_epoch if args.max_updates else args.epochs,
        per_epoch=per_epoch, updates=updates, weights=origin, groups=groups, schedule=schedule,
    )  # fmt: skip
    if accelerator.is_main_process:
        print(json.dumps(run, indent=1) if args.dry_run == "json" else dry_run.as_text(run, format_group_table(groups)))


def predict_only(args, accelerator, log):
    """Masks and overlays of the images in --predict, by the network in the folder --finetune."""
    with accelerator.local_main_process_first():
        folder = fetch(args.finetune)
    model, config = open_network(folder)
    log.say(f"network: {config['network']['head']} on {config['network']['backbone']}, from {folder}")
    sharding.prepare_to_evaluate(accelerator, model)
    for name in ("transforms", "crop_size", "base_size"):  # as it was trained, whatever the flags
        setattr(args, name, config[name])
    predict_folder(
        model, pathlib.Path(args.predict), pathlib.Path(args.output_dir),
        functools.partial(predict, **evaluation_settings(args, len(config["classes"]))), config["classes"],
        np.array(config["palette"], np.uint8), accelerator.device, NORM,
        share=(accelerator.process_index, accelerator.num_processes), say=log.say,
    )  # fmt: skip
    accelerator.end_training()


def evaluate_only(args, accelerator, model, run_eval, classes, log):
    """Evaluate --resume, --finetune or --pretrained weights, and the average if the state has one."""
    averaged = None
    if args.resume:
        weights, _, averaged, _ = checkpoint.load_state(args.resume)
        for tensors in (weights, averaged or weights):
            check_tensors(f"--resume {args.resume}", tensors, model.state_dict())
        model.load_state_dict(weights)
    sharding.prepare_to_evaluate(accelerator, model)
    start = time.perf_counter()
    results = {"result": run_eval()}
    seconds = time.perf_counter() - start
    if averaged:
        sharding.load_model(model, averaged)
        results["result of the EMA"] = run_eval()
    for title, r in results.items():
        log.say(f"{title}: mIoU {r['miou']:.4f} % of {r['classes']} classes, pixel accuracy {r['pixacc']:.4f} %, "
                f"mean accuracy {r['macc']:.4f} %")  # fmt: skip
        for name, iou in zip(classes, r["iou"], strict=True):
            log.say(f"  {name}: " + (f"{iou:.2f}" if not math.isnan(iou) else "does not occur"))
    log.say(f"throughput: {len(run_eval.args[2].dataset) / seconds:.1f} images/s")
    accelerator.end_training()


def describe(record, epochs, best):
    text = f"epoch {record['epoch'] + 1}/{epochs}: train loss {record['train_loss']:.4f}"
    if "test_miou" in record:
        text += f", mIoU {record['test_miou']:.2f} % (best {best.get('test_miou', 0):.2f})"
        text += f", pixel accuracy {record['test_pixacc']:.2f} %"
    if "test_miou_ema" in record:
        text += f", EMA {record['test_miou_ema']:.2f} % (best {best.get('test_miou_ema', 0):.2f})"
    return text


if __name__ == "__main__":
    run_script("train_segmentation.py", main, args)
