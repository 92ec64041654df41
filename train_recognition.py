"""Train an image recognition model of timm's on built-in digits, a folder of images, or a Hugging Face data set.

    python train_recognition.py --layer_decay 0.7                                           # a CPU, a minute or two
    python train_recognition.py --data_path my_images --pretrained true                     # own images, one GPU
    accelerate launch --config_file accelerate_configs/gpu_8.yaml train_recognition.py \\
        --model convnext_tiny --data_path imagenet --total_batch_size 4096 --lr 4e-3        # eight GPUs
"""

from utils.cli.first import parse  # isort: skip  it answers --help and wrong flags before torch is imported

import copy
import functools
import os
import time

import accelerate
import torch

from lr_sched import make_schedule
from utils.augment.mixup import make_mixup
from utils.augment.recognition import build_transforms
from utils.check.data import report_data
from utils.cli.errors import fail, input_errors, run_script
from utils.cli.flags import Schedule, Speed
from utils.cli.recognition_flags import Augmentation, Data, MixupOptions, ModelOptions, check_task, defaults_for
from utils.data.classes import classes_of, in_classes
from utils.data.colours import colours_of
from utils.data.datasets import RecognitionDataset, RecognitionStream
from utils.data.loaders import build_loaders
from utils.data.sampling import MIX, MODEL, Sampling, image_numbers
from utils.images.read import Reading
from utils.losses.class_weights import class_weights, count_labels
from utils.losses.recognition import make_loss
from utils.metrics.label_sets import label_set_scores
from utils.metrics.tasks import LISTED, make_task
from utils.model.download import fetch_folder
from utils.model.ema import EMA
from utils.model.optimizer import build_optimizer, can_fuse
from utils.model.processes import describe, fit_to_hardware, loader_workers, start_processes
from utils.model.recognition import build_model, lasting_kwargs, timm_config
from utils.model.sharding import load_model, prepare, prepare_to_evaluate
from utils.model.sizes import check_batch_of_one
from utils.model.weights import load_weights
from utils.plan.minutes import fit_minutes
from utils.plan.take import take_plan
from utils.report.scores import result_lines
from utils.result.dry_run import print_dry_run
from utils.result.evaluation import keep_evaluation
from utils.result.predict_recognition import predict
from utils.result.publish import check_result_flags
from utils.result.teacher import make_teacher
from utils.run.run import Run
from utils.run.start import license_of, load_start, open_held_out, take_start
from utils.run.state import load_weights_of
from utils.sources.recognition import check_headers, check_sources, open_recognition_data


def parse_args(argv=None):
    """Arguments of the command line; the flags stand in utils/cli/recognition_flags.py and flags.py."""
    return parse("train_recognition.py", __doc__, argv)


def main(args):
    # processes
    check_result_flags(args.export, args.push_to_hub, args.license)
    accelerator, batch = start_processes(
        args.batch_size, args.update_freq, args.total_batch_size, Speed.of(args), default_batch_size=64
    )
    run = Run(accelerator, args, batch, "train_recognition", metric=args.best_metric)
    run.say(*describe(accelerator))
    torch.manual_seed(args.seed)
    start, told = take_start(args, args.model, defaults_for(args))
    if args.predict:
        return predict_only(args, accelerator, batch, run, start, told)
    if args.eval:
        return evaluate_only(args, accelerator, batch, run, start, told)

    # data
    with accelerator.local_main_process_first():  # which downloads or indexes, where there is something to
        train_source, val_source = open_recognition_data(
            Data.of(args), seed=args.seed, need_val=not args.disable_eval, dry_run=args.dry_run, say=run.say
        )
    if report_data(args, run, train_source, val_source, check_sources):
        return
    classes = train_source.classes
    task = make_task(args.task, len(val_source), len(classes))
    build = lambda **more: build_model(ModelOptions.of(args), classes, input_size=args.input_size, **more)  # noqa: E731
    batch = run.batch = take_plan(args, batch, train_source, val_source, build, run.say)
    args.mean, args.std = colours_of(train_source, args.mean, args.std, seed=args.seed)
    transforms = build_transforms(Augmentation.of(args))
    train_set = (RecognitionStream if args.streaming else RecognitionDataset)(train_source, transforms.train, args.seed)
    val_set = RecognitionDataset(val_source, transforms.evaluate)
    train_loader, val_loader = build_loaders(
        train_set, val_set, batch, device=accelerator.device, seed=args.seed, workers=loader_workers(args.num_workers),
        sampling=Sampling(getattr(train_source, "labels", None), args.sampling, args.aug_repeats),
        pin_memory=args.pin_mem, dist_eval=args.dist_eval, shuffle_buffer=args.streaming and args.shuffle_buffer,
        collate=transforms.collate, finish=transforms.finish, channels_last=args.channels_last,
    )  # fmt: skip
    run.say(f"data: {len(train_set)} training and {len(val_set)} validation images, {len(classes)} classes")

    # model; which weights win: 1. --resume (below)  2. --finetune  3. --pretrained  4. from scratch
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build(pretrained=args.pretrained and not args.dry_run)
    check_batch_of_one(model, args.input_size, batch.size * (batch.processes if args.sync_bn else 1))
    origin = load_start(accelerator, model, args, load_weights, start, classes)
    run.say(f"model: {args.model}, {sum(p.numel() for p in model.parameters()):,} parameters, {args.input_size} pixels")
    run.say(*[f"weights: {line}" for line in origin + told])
    norm = {"mean": transforms.mean, "std": transforms.std}
    config = timm_config(
        model, args.model, classes, input_size=args.input_size, model_kwargs=lasting_kwargs(ModelOptions.of(args)),
        crop_pct=transforms.crop_pct, crop_mode=transforms.crop_mode, interpolation=transforms.interpolation,
        transforms=args.transforms, tta_flip=args.tta_flip, **norm, **license_of(start, args.license), **task.config,
    )  # fmt: skip
    model = fit_to_hardware(
        model, channels_last=args.channels_last, grad_checkpointing=args.grad_checkpointing, freeze=args.freeze,
        sync_bn=args.sync_bn and batch.processes > 1,
    )  # fmt: skip

    # loss, optimizer, schedule
    weights = class_weights(args.class_weights, classes, functools.partial(count_labels, train_source), run.say)
    criterion = make_loss(args.loss, args.smoothing, weights, args.bce_target_thresh, args.task).to(accelerator.device)
    mixup = make_mixup(MixupOptions.of(args), len(classes), args.smoothing)
    taught = make_teacher(args, classes, norm, accelerator, run.say)
    fit_minutes(args, model, criterion, batch, (train_set, val_set), train_loader.updates, accelerator, run.say, taught(mixup))
    optimizer, groups = build_optimizer(model, args, fused=can_fuse(accelerator), say=run.say)
    with input_errors():
        schedule = make_schedule(
            optimizer, train_loader.updates, weight_decay=args.weight_decay, weight_decay_end=args.weight_decay_end,
            **Schedule.of(args)._asdict(),
        )  # fmt: skip
    if args.dry_run:
        return print_dry_run(
            args, model=model, sources=(train_source, val_source), batch=batch, weights=origin + told,
            training=(train_loader.updates, groups, schedule),
        )  # fmt: skip
    run.say(f"updates: {args.epochs} epochs x {train_loader.updates}, of {batch.total} images ({batch}); peak lr {args.lr:.3g}")

    # the run
    run.open(train_source, val_source, config, weights=origin[0], shown=norm, groups=groups)
    network, optimizer = prepare(accelerator, model, optimizer)
    if args.torchcompile:
        model.compile()  # in place, so that parameters keep their names
    ema = EMA(model, args.model_ema_decay, args.model_ema_warmup) if args.model_ema else None  # after prepare: equal everywhere
    run.resume(model, optimizer, ema, train_loader)

    # epochs
    with run:
        for epoch in run.epochs(args.epochs * train_loader.updates):
            mixing = mixup if epoch < (args.mixup_off_epoch or args.epochs) else None
            train_one_epoch(accelerator, network, criterion, train_loader, optimizer, schedule, run, taught(mixing), ema)
            if run.evaluates:
                run.score(*evaluate(accelerator, network, val_loader, run, task, args.tta_flip))
                if ema and args.model_ema_eval:
                    with ema.in_model():
                        run.score(*evaluate(accelerator, network, val_loader, run, task, args.tta_flip), "best_ema")
            run.end_epoch(train_lr=schedule(run.counters.update - 1))
        run.finish(functools.partial(score_test, args, accelerator, batch, run, network, task, val_source, transforms))
    accelerator.end_training()


def train_one_epoch(accelerator, model, criterion, loader, optimizer, schedule, run, mixup=None, ema=None):
    """Train on the batches of `loader`: images (B, C, H, W) float32, labels (B,) int64, numbers of replaced samples.

    schedule: sets the rates for an update by its number, and returns the learning rate. mixup, ema: None: off.
    """
    model.train()
    backward = {"create_graph": True} if getattr(optimizer.optimizer, "is_second_order", False) else {}
    for images, labels, *replaced in loader:
        rate = schedule(run.counters.update)
        targets = labels
        if mixup is not None:
            images, targets = mixup(images, labels, run.seed(MIX))
        run.show_batch(images, targets)
        torch.manual_seed(run.seed(MODEL))  # of drop path and dropout: no random state that a resume could lose
        with accelerator.accumulate(model):
            loss = criterion(model(images), targets)
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
def evaluate(accelerator, model, loader, run, task, flip=False):
    """(scores, answers): accuracy or average precision in per cent, the loss and the number of images, each counted once on
    any number of processes; and what the model said of each image, on the CPU.

    task: of metrics/tasks.py, what is kept of an image and scored. flip: the logits are the mean of those of the image and of
    its mirror image. Values of each image are gathered and summed exactly, so that the order of the images does not matter.
    """
    model.eval()
    accelerate.utils.broadcast([*model.buffers()])  # batch norm's, which each process has averaged over its own batches
    rows = []
    for images, labels in loader:  # labels (B,) int64 or, of several, (B, classes) float32; -1 where an image does not count
        logits = model(images).float()  # (B, classes)
        if flip:
            logits = (logits + model(images.flip(-1)).float()) / 2
        rows.append(task.columns(logits, labels))  # (B, values of an image) float32, the first of its labels
        run.stop_if_asked()
    rows, numbers = torch.cat(rows), torch.tensor(image_numbers(loader.order))
    rows = (accelerator.gather(rows) if loader.order.processes > 1 else rows).cpu()
    counted = rows[:, 0] >= 0
    return task.scored(rows[counted].double(), numbers[counted], classes=logits.shape[1])


def evaluation_loader(args, accelerator, batch, source, transforms):
    """The batches of a `source` in its order, for `evaluate` alone."""
    images = RecognitionDataset(source, transforms.evaluate)
    _, loader = build_loaders(
        None, images, batch, device=accelerator.device, workers=loader_workers(args.num_workers),
        pin_memory=args.pin_mem, dist_eval=args.dist_eval, collate=transforms.collate, finish=transforms.finish,
        channels_last=args.channels_last,
    )  # fmt: skip
    return loader


def score_test(args, accelerator, batch, run, network, task, val_source, transforms):
    """Score the test images, if there are any, by the weights that the page is about: once, so that they choose nothing."""
    if (source := getattr(val_source, "test", None)) is not None:
        name = run.results.load_named()
        task = task.at(os.path.join(run.folder, name), len(source.classes), run.say)
        loader = evaluation_loader(args, accelerator, batch, source, transforms)
        run.results.keep_test(name, evaluate(accelerator, network, loader, run, task, args.tta_flip)[0])


def evaluate_only(args, accelerator, batch, run, start, told):
    """Evaluate the start weights or those of the state --resume, and its average, if it has one."""
    check_task(args, fail)  # which the weights tell
    with accelerator.local_main_process_first():
        need_train = False if start and start.classes else None
        open_data = lambda: open_recognition_data(  # noqa: E731
            Data.of(args), seed=args.seed, need_train=need_train, dry_run=args.dry_run, say=run.say
        )
        source = open_held_out(args, open_data, run.say)
        if accelerator.is_main_process:
            check_headers(source)
    classes = classes_of(start, source)
    source = in_classes(source, classes, say=run.say)
    transforms = build_transforms(Augmentation.of(args))
    loader = evaluation_loader(args, accelerator, batch, source, transforms)
    folder = fetch_folder(args.finetune) if args.task and args.finetune else ""
    task = make_task(args.task, len(source), len(classes), most=20 * LISTED).at(folder, len(classes), run.say)
    run.say(f"data: {len(source)} validation images, {len(classes)} classes")
    with torch.device("meta" if args.dry_run else "cpu"):
        model = build_model(
            ModelOptions.of(args), classes, input_size=args.input_size, pretrained=args.pretrained and not args.dry_run
        )
    origin = load_start(accelerator, model, args, load_weights)
    if args.dry_run:
        return print_dry_run(args, model=model, sources=(None, source), batch=batch, weights=origin + told)
    averaged = load_weights_of(args.resume, model) if args.resume else None
    run.say(f"model: {args.model}, {sum(p.numel() for p in model.parameters()):,} parameters, {args.input_size} pixels")
    run.say(*[f"weights: {line}" for line in origin + told])
    network = prepare_to_evaluate(accelerator, fit_to_hardware(model, channels_last=args.channels_last))
    begin = time.perf_counter()
    scores, answers = evaluate(accelerator, network, loader, run, task, args.tta_flip)
    scores |= label_set_scores(args.label_sets, answers, source) if args.label_sets else {}
    run.say(*result_lines("result", scores))
    run.say(f"throughput: {scores['images'] / (time.perf_counter() - begin):.0f} images/s")
    if accelerator.is_main_process:
        keep_evaluation(args, scores, answers, source, {}, accelerator.device, run.say, run.log.warn)
    if averaged:
        load_model(model, averaged)
        run.say(*result_lines("result of the EMA", evaluate(accelerator, network, loader, run, task, args.tta_flip)[0]))
    accelerator.end_training()


def predict_only(args, accelerator, batch, run, start, told):
    """Write the classes of the images in --predict, by the model in the folder --finetune, or the mean of several."""
    with accelerator.local_main_process_first():
        folder, *others = [fetch_folder(source) for source in (args.finetune, *args.others)]
    run.say(*[f"weights: {line}" for line in told])
    members = []
    for source, other in zip(args.others, others, strict=True):
        its = copy.copy(args)  # which looks at images as it was trained
        vars(its).update({name: None for name in Reading._fields if name not in args.given}, finetune=source)
        its_start, told = take_start(its, args.model, defaults_for(args))
        if its.in_chans != args.in_chans:
            fail(f"{source}: trained with another --in_chans than {args.finetune}; expected alike")
        members.append((other, Augmentation.of(its) if its_start else None, its.tta_flip, Reading.of(its)))
        run.say(*[f"weights: {line}" for line in told])
    if others:
        run.say(f"weights: the probabilities of {1 + len(others)} models are averaged")
    predict(
        folder, args.predict, os.path.join(args.output_dir or ".", "predictions.csv"), topk=args.topk, batch_size=batch.size,
        settings=Augmentation.of(args) if start else None, flip=args.tta_flip, device=accelerator.device,
        workers=loader_workers(args.num_workers), process=batch.process, processes=batch.processes,
        gather=accelerate.utils.gather_object, say=run.say, reading=Reading.of(args), unsure=args.unsure, cam=args.cam,
        others=members,
    )  # fmt: skip
    accelerator.end_training()


if __name__ == "__main__":
    run_script("train_recognition.py", main, parse_args())
