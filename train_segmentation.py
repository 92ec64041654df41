"""Train a semantic segmentation network on built-in scenes, the field's data sets, or folders of images and masks.

    python train_segmentation.py                                                             # a CPU, a few minutes
    python train_segmentation.py --data_path my_images --pretrained true                     # images/ and masks/, one GPU
    accelerate launch --config_file accelerate_configs/gpu_8.yaml train_segmentation.py \\
        @recipes/segmentation/upernet_convnext_tiny_ade20k_512.args --data_path ADE20K       # a paper's row, eight GPUs
"""

from utils.cli.first import parse  # isort: skip  it answers --help and wrong flags before torch is imported

import functools
import math
import time

import accelerate
import numpy as np
import torch

from lr_sched import make_schedule
from segmentation_networks.network import build_network
from utils.augment.segmentation import build_transforms, colours, of_one_size
from utils.check.data import report_data
from utils.cli.errors import fail, input_errors, run_script
from utils.cli.flags import Schedule, Speed
from utils.cli.segmentation_flags import Augmentation, Data, LossOptions, View, check_network, defaults_for, network_options
from utils.data.classes import in_classes
from utils.data.colours import colours_of
from utils.data.datasets import SegmentationDataset, SegmentationStream
from utils.data.loaders import build_loaders
from utils.data.masks import unknown_line
from utils.data.sampling import MODEL, image_numbers
from utils.images.read import Reading
from utils.losses.class_weights import class_weights, count_pixels
from utils.losses.segmentation import make_segmentation_loss
from utils.mask_folders.options import mask_config
from utils.metrics.published_views import view_options
from utils.metrics.segmentation import ConfusionMatrix, MaskAnswers, mean_loss, scores
from utils.metrics.windows import evaluated_region, predict
from utils.model.download import fetch_folder
from utils.model.ema import EMA
from utils.model.optimizer import build_optimizer, can_fuse
from utils.model.processes import describe, fit_to_hardware, loader_workers, start_processes, without_kernel_search
from utils.model.segmentation_weights import load_segmentation_weights, network_config, open_network
from utils.model.sharding import load_model, prepare, prepare_to_evaluate
from utils.model.sizes import check_batch_of_one, check_crop
from utils.plan.minutes import fit_minutes
from utils.plan.take import take_plan
from utils.report.scores import result_lines
from utils.result.dry_run import print_dry_run
from utils.result.evaluation import keep_evaluation
from utils.result.predict_segmentation import Segmenter, predict_folder, usual_size
from utils.result.publish import check_result_flags
from utils.run.run import Run
from utils.run.start import license_of, load_start, network_of, open_held_out, take_start
from utils.run.state import load_weights_of
from utils.sources.segmentation import check_files, check_sources, open_segmentation_data


def parse_args(argv=None):
    """Arguments of the command line; the flags stand in utils/cli/segmentation_flags.py and flags.py."""
    return parse("train_segmentation.py", __doc__, argv)


def main(args):
    # processes
    check_result_flags(args.export, args.push_to_hub, args.license)
    accelerator, batch = start_processes(
        args.batch_size, args.update_freq, args.total_batch_size, Speed.of(args), default_batch_size=16
    )
    run = Run(accelerator, args, batch, "train_segmentation", metric=args.best_metric)
    run.say(*describe(accelerator))
    torch.manual_seed(args.seed)
    start, told = take_start(args, args.backbone, defaults_for(args))
    if args.predict:
        return predict_only(args, accelerator, batch, run, told)
    if args.eval:
        return evaluate_only(args, accelerator, batch, run, start, told)
    check_network(args, fail)

    # data
    with accelerator.local_main_process_first():  # which downloads, where there is something to
        train_source, val_source = open_segmentation_data(
            Data.of(args), crop_size=args.crop_size, seed=args.seed, need_val=not args.disable_eval, dry_run=args.dry_run,
            say=run.say,
        )  # fmt: skip
    if report_data(args, run, train_source, val_source, check_sources):
        return
    classes, palette = train_source.classes, train_source.palette
    options = network_of(start, args, {**network_options(args), "classes": len(classes)})
    build = lambda **more: build_network(**options, input_size=args.crop_size, drop_path=args.drop_path, **more)  # noqa: E731
    batch = run.batch = take_plan(args, batch, train_source, val_source, build, run.say)
    args.mean, args.std = colours_of(train_source, args.mean, args.std, seed=args.seed)
    settings = Augmentation.of(args)
    transforms, norm = build_transforms(settings), colours(settings)
    train_set = (SegmentationStream if args.streaming else SegmentationDataset)(train_source, transforms.train, args.seed)
    val_set = SegmentationDataset(val_source, transforms.evaluate)
    train_loader, val_loader = build_loaders(
        train_set, val_set, batch, device=accelerator.device, seed=args.seed, **transforms.batches,
        workers=loader_workers(args.num_workers), pin_memory=args.pin_mem, dist_eval=args.dist_eval,
        shuffle_buffer=args.streaming and args.shuffle_buffer, eval_batch_size=args.eval_batch_size,
        channels_last=args.channels_last,
    )  # fmt: skip
    run.say(
        f"data: {train_source.title}, {len(train_set)} training and {len(val_set)} validation images, {len(classes)} classes"
    )

    # network; which weights win: 1. --resume (below)  2. --finetune  3. --pretrained  4. from scratch
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build(pretrained=args.pretrained and not args.dry_run)
    args.eval_mode = check_crop(model, options, args.crop_size, args.eval_mode, run.say)
    check_batch_of_one(model, args.crop_size, batch.size * (batch.processes if args.sync_bn else 1))
    origin = load_start(accelerator, model, args, load_segmentation_weights, start, classes)
    run.say(f"network: {options['head']} on {options['backbone']}, {sum(p.numel() for p in model.parameters()):,} parameters")
    run.say(*[f"weights: {line}" for line in origin + told])
    facts = {"image_size": usual_size(val_source), **norm, **license_of(start, args.license)}
    facts |= mask_config(Data.of(args), train_source)
    config = network_config(options, classes, palette, settings, View.of(args), **facts)
    model = fit_to_hardware(
        model, channels_last=args.channels_last, grad_checkpointing=args.grad_checkpointing, freeze=args.freeze,
        sync_bn=args.sync_bn and batch.processes > 1,
    )  # fmt: skip
    view = view_options(settings, View.of(args), classes=len(classes), sharded=accelerator.distributed_type == "FSDP", **norm)

    # loss, optimizer, schedule
    weights = class_weights(args.class_weights, classes, functools.partial(count_pixels, train_source), run.say)
    criterion = make_segmentation_loss(LossOptions.of(args), len(classes), aux=args.aux, weights=weights).to(accelerator.device)
    fit_minutes(args, model, criterion, batch, (train_set, val_set), train_loader.updates, accelerator, run.say)
    optimizer, groups = build_optimizer(model, args, head_lr_scale=args.head_lr_scale, fused=can_fuse(accelerator), say=run.say)
    per_epoch = train_loader.updates
    updates = args.max_updates or args.epochs * per_epoch
    epochs = math.ceil(updates / per_epoch)
    with input_errors():
        schedule = model.follow(make_schedule(
            optimizer, per_epoch, weight_decay=args.weight_decay, weight_decay_end=args.weight_decay_end,
            **Schedule.of(args)._replace(epochs=updates / per_epoch)._asdict(),
        ), updates)  # fmt: skip
    if args.dry_run:
        return print_dry_run(
            args, model=model, sources=(train_source, val_source), batch=batch, weights=origin + told,
            training=(per_epoch, groups, schedule),
        )  # fmt: skip
    run.say(f"updates: {updates} in {epochs} epochs, of {batch.total} images ({batch}); peak lr {args.lr:.3g}")

    # the run
    run.open(train_source, val_source, config, weights=origin[0], shown={"palette": palette, **norm}, groups=groups)
    network, optimizer = prepare(accelerator, model, optimizer)
    if args.torchcompile:
        model.compile()  # in place, so that parameters keep their names
    ema = EMA(model, args.model_ema_decay, args.model_ema_warmup) if args.model_ema else None  # after prepare: equal everywhere
    run.resume(model, optimizer, ema, train_loader)

    # epochs
    with run:
        for _ in run.epochs(updates):
            train_one_epoch(accelerator, network, criterion, train_loader, optimizer, schedule, run, ema)
            if run.evaluates:
                run.score(*evaluate(accelerator, model, val_loader, view, run))
                if ema and args.model_ema_eval:
                    with ema.in_model():
                        run.score(*evaluate(accelerator, model, val_loader, view, run), "best_ema")
            run.end_epoch(train_lr=schedule(run.counters.update - 1))
        run.finish(functools.partial(score_test, args, accelerator, batch, run, model, val_source, transforms, view))
    accelerator.end_training()


def train_one_epoch(accelerator, model, criterion, loader, optimizer, schedule, run, ema=None):
    """Train on the batches of `loader`: images (B, C, H, W) float32, masks (B, H, W) int64, numbers of replaced samples.

    schedule: sets the rates for an update by its number, and returns the learning rate. ema: None: off.
    """
    model.train()
    backward = {"create_graph": True} if getattr(optimizer.optimizer, "is_second_order", False) else {}
    for images, masks, *replaced in loader:
        rate = schedule(run.counters.update)
        run.show_batch(images, masks)
        torch.manual_seed(run.seed(MODEL))  # of dropout and drop path: no random state that a resume could lose
        with accelerator.accumulate(model):
            loss = criterion(model(images), masks)
            accelerator.backward(loss, **backward)
            run.note(loss, *replaced)
            if not accelerator.sync_gradients:
                continue  # with the next micro-batch of this update
            norm = accelerator.clip_grad_norm_(model.parameters(), run.max_norm) if run.max_norm else None
            if made := run.accepts(norm):
                optimizer.step()
                made = not accelerator.optimizer_step_was_skipped  # by the loss scaler of fp16
            optimizer.zero_grad()
        if ema is not None and made:
            ema.update(run.counters.update)
        run.end_update(rate, norm, made)


@torch.no_grad()
@without_kernel_search()  # whole images come in many sizes
def evaluate(accelerator, model, loader, view, run):
    """(scores, MaskAnswers): pixel accuracy, mean IoU and the like in per cent over the masks' own pixels, and their mean
    cross-entropy; and what they come from: pixels by class, of each image too, and on the main process six images to show.

    model: not wrapped, for the processes may need different numbers of windows, which a collective would wait for.
    view: options of windows.predict. What fills up the last batch has no labels.
    """
    model.eval()
    accelerate.utils.broadcast([*model.buffers()])  # batch norm's, which each process has averaged over its own batches
    matrix = ConfusionMatrix(view["classes"], accelerator.device)
    order, examples, chosen = loader.order, [], set(np.linspace(0, len(loader) - 1, 6).astype(int).tolist())
    singly = accelerator.distributed_type == "FSDP"  # its processes call the network together, whatever sizes they have
    for number, batch in enumerate(loader):
        for images, masks in of_one_size(*batch, singly):
            found = predict(logits_of(model), images, **view)
            rows, columns = evaluated_region(*masks.shape[1:], view["mode"], view["crop_size"])
            matrix.update(found[:, :, rows, columns], masks[:, rows, columns])
        if number in chosen and accelerator.is_main_process:
            index = (number * order.processes + order.process) * order.batch_size
            examples.append((index, images[0].cpu(), masks[0].cpu(), found[0].argmax(0).cpu()))
        run.stop_if_asked()
    total, pixels, losses = matrix.matrix, torch.cat(matrix.images), torch.cat(matrix.losses)
    if order.processes > 1:
        total, pixels, losses = accelerator.reduce(total, "sum"), accelerator.gather(pixels), accelerator.gather(losses)
    answers = MaskAnswers.of(total, pixels, image_numbers(order), order.samples, examples, view["crop_size"])
    return scores(total) | {"loss": mean_loss(losses, total)}, answers


def logits_of(model):
    """(B, 3, H, W) -> (B, classes, H, W)"""
    return lambda images: model(images, only_logits=True)["logits"]


def evaluation_loader(args, accelerator, batch, source, transforms):
    """The batches of a `source` in its order, for `evaluate` alone."""
    images = SegmentationDataset(source, transforms.evaluate)
    _, loader = build_loaders(
        None, images, batch, device=accelerator.device, workers=loader_workers(args.num_workers),
        pin_memory=args.pin_mem, dist_eval=args.dist_eval, eval_batch_size=args.eval_batch_size,
        channels_last=args.channels_last, **transforms.batches,
    )  # fmt: skip
    return loader


def score_test(args, accelerator, batch, run, model, val_source, transforms, view):
    """Score the test images, if there are any, by the weights that the page is about: once, so that they choose nothing."""
    if (source := getattr(val_source, "test", None)) is not None:
        name = run.results.load_named()
        loader = evaluation_loader(args, accelerator, batch, source, transforms)
        run.results.keep_test(name, evaluate(accelerator, model, loader, view, run)[0])


def evaluate_only(args, accelerator, batch, run, start, told):
    """Evaluate the start weights or those of the state --resume, and its average, if it has one."""
    with accelerator.local_main_process_first():
        need_train = False if start and start.classes else None
        trained = start.classes if start and start.evaluation.get("mask_numbers") else None
        open_data = lambda: open_segmentation_data(  # noqa: E731
            Data.of(args), crop_size=args.crop_size, seed=args.seed, need_train=need_train, trained=trained,
            dry_run=args.dry_run, say=run.say,
        )  # fmt: skip
        source = open_held_out(args, open_data, run.say)
        if accelerator.is_main_process and not args.dry_run:
            check_files(source)
    masks = source
    network = network_of(start, args, {**network_options(args), "classes": len(source.classes)})
    if start and start.network:
        source = in_classes(source, start.classes, start.palette, say=run.say)
    settings = Augmentation.of(args)
    transforms = build_transforms(settings)
    loader = evaluation_loader(args, accelerator, batch, source, transforms)
    run.say(f"data: {source.title}, {len(source)} validation images, {len(source.classes)} classes")
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build_network(**network, input_size=args.crop_size)
    args.eval_mode = check_crop(model, network, args.crop_size, args.eval_mode, run.say)
    origin = load_start(accelerator, model, args, load_segmentation_weights)
    if args.dry_run:
        return print_dry_run(args, model=model, sources=(None, source), batch=batch, weights=origin + told)
    averaged = load_weights_of(args.resume, model) if args.resume else None
    run.say(f"network: {network['head']} on {network['backbone']}, {sum(p.numel() for p in model.parameters()):,} parameters")
    run.say(*[f"weights: {line}" for line in origin + told])
    model = fit_to_hardware(model, channels_last=args.channels_last)
    prepare_to_evaluate(accelerator, model)
    sharded = accelerator.distributed_type == "FSDP"
    view = view_options(settings, View.of(args), classes=len(source.classes), sharded=sharded, **colours(settings))
    begin = time.perf_counter()
    found, answers = evaluate(accelerator, model, loader, view, run)
    seconds = time.perf_counter() - begin
    if line := unknown_line([masks], accelerate.utils.gather_object, learned=False):
        run.log.warn(line)
    run.say(*result_lines("result", found, source.classes))
    run.say(f"throughput: {loader.order.samples / seconds:.1f} images/s")
    if accelerator.is_main_process:
        shown = {"palette": source.palette, **colours(settings)}
        keep_evaluation(args, found, answers, source, shown, accelerator.device, run.say, run.log.warn)
    if averaged:
        load_model(model, averaged)
        run.say(*result_lines("result of the EMA", evaluate(accelerator, model, loader, view, run)[0], source.classes))
    accelerator.end_training()


def predict_only(args, accelerator, batch, run, told):
    """Write masks and overlays of the images in --predict, by the network in the folder --finetune."""
    with accelerator.local_main_process_first():
        folder = fetch_folder(args.finetune)
    model, config = open_network(folder)
    args.eval_mode = check_crop(model, config["network"], args.crop_size, args.eval_mode, run.say)
    run.say(f"network: {config['network']['head']} on {config['network']['backbone']}, from {folder}")
    run.say(*[f"weights: {line}" for line in told])
    prepare_to_evaluate(accelerator, model)
    settings = Augmentation.of(args)
    view = view_options(settings, View.of(args), classes=len(config["classes"]), **colours(settings))
    predict_folder(
        Segmenter(model, view, config.get("image_size")), args.predict, args.output_dir, classes=config["classes"],
        palette=np.array(config["palette"], np.uint8), process=batch.process, processes=batch.processes,
        gather=accelerate.utils.gather_object, say=run.say, reading=Reading.of(args),
    )  # fmt: skip
    accelerator.end_training()


if __name__ == "__main__":
    run_script("train_segmentation.py", main, parse_args())
