"""The flags that both training scripts have, by topic. Names and meanings are those of ConvNeXt and ConvNeXt-V2.

A flag is added here, or in image_flags.py, recognition_flags.py or segmentation_flags.py, and nowhere else: `settings_of`
hands the flags of a topic on as one NamedTuple. `free=True`: the flag may change between a run and its resumption.
"""

import os

from lr_sched import SCHEDULES
from utils.cli import image_flags
from utils.cli.arguments import Fold, boolean, number, refuse_idle, settings_of, whole


def add_start_flags(parser):
    topic = parser.topic("weights to start from: --resume before --finetune before --pretrained")
    topic.switch("--pretrained", False, "start from the weights that timm offers for this model")
    topic.add("--finetune", nargs="+", default="", metavar="WEIGHTS", help="start from these weights: a file, a folder such as "
              "RUN/best, https://…, hf-hub:USER/NAME, or timm/NAME; several: train_recognition.py --predict averages their "
              "answers")  # fmt: skip
    topic.add("--freeze", choices=("none", "bn", "backbone"), default="none", help="what stays as it starts. bn: "
              "statistics and weights of batch norm (of the backbone, in segmentation), for batches of few images; backbone: "
              "all but the classifier or the heads, which is a linear probe in recognition")  # fmt: skip
    topic.add("--model_key", default="model|module", help="the names, tried in turn, under which a .pth holds its weights; "
              "model_ema takes the averaged ones")  # fmt: skip
    topic.add("--model_prefix", default="", help="this text is put before every name in the file, such as backbone.")


def add_plan_flags(parser):
    topic = parser.topic("plan: what the run sets by itself; flags that are given always win")
    topic.add("--plan", choices=("auto", "published"), help="auto: epochs, rates and augmentation follow the data "
              "(docs/PLAN.md); published: the papers' defaults; none: auto where own images meet trained weights without a "
              "recipe")  # fmt: skip
    topic.add("--minutes", type=number(above=0), help="as many epochs as fit into this time on this machine, evaluations "
              "included, instead of --epochs")  # fmt: skip


def add_bad_sample_flags(topic):
    topic.add("--max_bad_samples", free=True, type=number(0, 1), default=0.01, help="the run stops when more than this share "
              "of the training images cannot be read; until then others take their place")  # fmt: skip
    topic.add("--check_data", free=True, nargs="?", type=_boolean_or_only, const=True, default=False, metavar="BOOL",
              help="read every sample before training, and list what cannot be read; only: report on the data, and "
              "stop")  # fmt: skip


def _boolean_or_only(text):
    return text if text == "only" else boolean(text)


def add_stream_flags(topic):
    topic.switch("--streaming", False, "read the training data of --dataset in order, without storing it first")
    topic.add("--shuffle_buffer", type=whole(1), default=1000, help="samples that --streaming shuffles at a time")
    topic.add("--train_images", type=whole(1), help="training images of --streaming, where the data does not tell")


def add_balance_flags(topic):
    topic.add("--class_weights", nargs="+", metavar="WORD_FILE_OR_NAME=W", help="how much each class counts in the loss: "
              "inv_freq, the inverse of its share of the training data; auto, the square root of that; effective_num "
              "(beta 0.999); a JSON file {name: weight}; or name=weight …, others 1")  # fmt: skip


def add_batch_flags(parser):
    topic = parser.topic("batch")
    topic.add("--batch_size", free=True, type=whole(1), help="images per process and micro-batch; none: 64 in recognition, 16 "
              "in segmentation, or less where --total_batch_size asks for less")  # fmt: skip
    topic.add("--update_freq", free=True, type=whole(1), help="micro-batches whose gradients are summed up for one update; "
              "none: 1")  # fmt: skip
    topic.add("--total_batch_size", free=True, type=whole(1), help="images per update over all processes; --update_freq "
              "follows from it, so that a recipe is the same on any hardware")  # fmt: skip
    topic.add("--bn_images", free=True, type=whole(1), help="images over which batch norm took its statistics in the published "
              "run; where this run has others, --dry_run says so")  # fmt: skip


def add_optimizer_flags(parser, layer_decay_types):
    topic = parser.topic("optimizer")
    topic.add("--opt", default="adamw", help="sgd (with Nesterov momentum), momentum (without), adam, adamw, or any name of "
              "timm's; lookahead_adamw averages over six steps")  # fmt: skip
    topic.add("--blr", type=number(0, 1000), default=5e-4,
              help="learning rate for 256 images per update, where --lr is not given")  # fmt: skip
    topic.add("--opt_eps", type=number(above=0, maximum=1000), help="the optimizer's epsilon; none: its own")
    topic.add("--opt_betas", type=number(0, 1), nargs="+", help="the optimizer's betas, such as 0.9 0.95; none: its own")
    topic.add("--momentum", type=number(0, 1), default=0.9, help="momentum of SGD, RMSprop and the like")
    topic.add("--weight_decay", type=number(0, 1000), default=0.05, help="weight decay; --weight_decay_filter says of what")
    topic.add("--weight_decay_end", type=number(0, 1000),
              help="weight decay of the last update, reached in a half cosine; none: it "
              "stays constant")  # fmt: skip
    topic.add("--weight_decay_filter", choices=("norm_bias", "bn_names", "none"), default="norm_bias", help="parameters "
              "without weight decay: norms and biases; names with bn or bias in them (PyTorch-Encoding's --no-bn-wd); "
              "none")  # fmt: skip
    topic.add("--clip_grad", type=number(above=0), help="scale the gradient down to this norm where it is larger; none: never")
    topic.add("--layer_decay", type=number(0.001, 1), default=1.0, help="each layer learns this many times as fast "
              "as the one after it: 0.7 gives the last block 0.7 of the head's rate, the one before 0.49")  # fmt: skip
    topic.add("--layer_decay_min_scale", type=number(0, 1), default=0.0, help="no layer learns less than this many times as "
              "fast as the head: 0.01 for deep models")  # fmt: skip
    topic.add("--layer_decay_type", choices=layer_decay_types, default=layer_decay_types[0], help="what a layer is: " +
              ", ".join(_LAYER_DECAY_TYPES[name] for name in layer_decay_types))  # fmt: skip
    return topic


_LAYER_DECAY_TYPES = {
    "single": "single, every block",
    "group": "group, ConvNeXt's 12 groups of blocks",
    "stage_wise": "stage_wise, a stage with mmsegmentation's numbers",
    "layer_wise": "layer_wise, groups with mmsegmentation's numbers",
}


def add_schedule_flags(parser):
    topic = parser.topic("schedule, per update")
    topic.add("--epochs", type=whole(1, 1_000_000), default=100, help="passes over the training data")
    topic.add("--lr", type=number(0, 1000), help="peak learning rate; none: --blr x images per update / 256")
    topic.add("--min_lr", type=number(0, 1000), default=1e-6, help="learning rate at the end of the run")
    topic.add("--warmup_epochs", type=number(0, 1_000_000), default=20,
              help="epochs in which the rate grows from 0 to its peak")  # fmt: skip
    topic.add("--warmup_steps", type=whole(-1), default=-1, help="the same in updates; above 0 it wins over --warmup_epochs")
    topic.add("--sched", choices=SCHEDULES, default="cosine", help="curve from the peak to --min_lr; lr_sched.py, "
              "learning_rate, describes each")  # fmt: skip
    topic.add("--power", type=number(above=0, maximum=100), default=0.9, help="exponent of the curve poly")
    topic.add("--step_epochs", type=whole(1), default=30, help="epochs between two drops of the curve step")
    topic.add("--step_rate", type=number(above=0, maximum=1), default=0.1, help="each drop of the curve step multiplies the "
              "rate by this")  # fmt: skip
    topic.add("--decay_epochs", type=number(above=0), help="epochs in which the curve wsd falls at the end; none: a tenth of "
              "the run")  # fmt: skip
    return topic


Schedule = settings_of("Schedule", add_schedule_flags)


def add_ema_flags(parser):
    topic = parser.topic("average of the weights (EMA)")
    topic.switch("--model_ema", False, "keep an exponential moving average of the weights beside them")
    topic.add("--model_ema_decay", type=number(0, 1), default=0.9999, help="after each update the average keeps this share of "
              "itself and takes the rest from the weights")  # fmt: skip
    topic.switch("--model_ema_warmup", False, "begin with a smaller decay that grows to --model_ema_decay: for short runs")
    topic.switch("--model_ema_eval", True, "evaluate the average too, and keep its best in best_ema/")


def add_speed_flags(parser):
    topic = parser.topic("speed and memory")
    topic.switch("--channels_last", False, "store images channel by channel last (NHWC), which convolutions on GPUs prefer")
    topic.switch("--torchcompile", False, "compile the model with torch.compile")
    topic.switch("--grad_checkpointing", False, "compute activations again in the backward pass: less memory, more time")
    topic.switch("--sync_bn", False, "batch norm takes its statistics over the images of all processes")
    topic.switch("--use_amp", False, "as published: compute in bf16 (in fp16 on a GPU without bf16 of its own), where the "
                 "launcher chose neither")  # fmt: skip
    topic.switch("--tf32", True, "GPUs multiply float32 numbers in TF32: faster, with 10 bits of the mantissa instead of 23")
    topic.switch("--cudnn_benchmark", True, "cuDNN times its kernels at the first batch and takes the fastest", free=True)
    topic.switch("--deterministic", False, "only kernels that give the same bits again on the same GPU: slower; an operation "
                 "that has none ends the run")  # fmt: skip
    topic.add("--num_workers", free=True, type=whole(0, 1000),
              help="loader processes per process; none: its share of the cores, 10 "
              "at most")  # fmt: skip
    topic.switch("--pin_mem", True, "read batches into page-locked memory, from which copies to a GPU are faster", free=True)
    return topic


Speed = settings_of("Speed", add_speed_flags)


def add_evaluation_flags(parser, best_metrics):
    """best_metrics: {score that may decide: what it is}, the usual one first."""
    topic = parser.topic("evaluation")
    names = "; ".join(f"{name}, {what}" for name, what in best_metrics.items())
    topic.add("--best_metric", choices=tuple(best_metrics), default=next(iter(best_metrics)), help="the score that decides "
              f"which weights are kept in best/, of equal ones those of the lower loss: {names}")  # fmt: skip
    topic.add("--eval_freq", type=whole(1), default=1, help="epochs between two evaluations")
    topic.add("--patience", type=whole(1), help="the run ends when so many evaluations in a row brought no better "
              "--best_metric; none: after all epochs")  # fmt: skip
    topic.switch("--eval", False, "evaluate --resume, --finetune or --pretrained weights, and stop")
    topic.switch("--disable_eval", False, "train without evaluating")
    topic.switch("--dist_eval", True, "share the evaluation among the processes; each image counts once either way", free=True)
    return topic


def add_output_flags(parser, script):
    topic = parser.topic("output and resume")
    topic.add("--output_dir", free=True, metavar="DIR", help=f"folder of the run; none: a new output/{script}/DATE-TIME")
    topic.switch("--auto_resume", True, "go on with the unfinished run in --output_dir, if there is one", free=True)
    topic.add("--resume", free=True, default="", metavar="STATE", help="go on from this state, such as "
              "RUN/checkpoints/update_00000100, with the flags of this line")  # fmt: skip
    topic.switch("--save_ckpt", True, "save states that a run can go on from", free=True)
    topic.add("--save_ckpt_freq", free=True, type=whole(1), default=1, help="epochs between two states")
    topic.add("--save_ckpt_updates", free=True, type=whole(1), help="updates between two states, within epochs too")
    topic.add("--save_ckpt_minutes", free=True, type=number(above=0), help="minutes between two states, within epochs too")
    topic.add("--save_ckpt_num", free=True, type=whole(1), default=3, help="number of states that are kept")
    topic.add("--log_every", free=True, type=whole(1), default=50, help="updates after which losses are read from the device, "
              "logged and checked")  # fmt: skip
    topic.add("--skip_nonfinite", free=True, type=whole(0), default=0, help="number of updates in a row that may be left out "
              "since their loss or gradient is not finite; above 0 every update waits for the device")  # fmt: skip
    topic.add("--dry_run", free=True, nargs="?", const="text", choices=("text", "json"), help="print what the run would do, "
              "and stop")  # fmt: skip
    topic.add("--seed", type=whole(0, 2**63 - 1), default=0,
              help="decides new weights, the order of the data and its augmentation")  # fmt: skip


def add_result_flags(parser):
    topic = parser.topic("result")
    topic.add("--report_to", free=True, nargs="+", metavar="TRACKER", help="where the run can be watched: tensorboard (as "
              "without this flag), wandb, trackio, mlflow, …, or none")  # fmt: skip
    topic.add("--export", free=True, nargs="+", default=(), metavar="FORMAT", help="write the best weights in these "
              "formats after training: onnx, torchscript, torch_export")  # fmt: skip
    topic.add("--push_to_hub", free=True, metavar="USER/NAME", help="upload the best weights to this repository of the Hub "
              "after training")  # fmt: skip
    topic.switch("--hub_private", False, "make that repository private", free=True)
    topic.add("--license", free=True, help="license of the weights in the model card, such as apache-2.0 or mit")


def check_order(args, error, names):
    """error(message) where one of these flags, of two numbers each, has the larger one first."""
    for name in names.split():
        numbers = getattr(args, name)
        if numbers and numbers[0] > numbers[1]:
            error(f"--{name} {numbers[0]} {numbers[1]}: expected the smaller number first")


def check_folds(args, error):
    """--folds and --fold become --val_split."""
    if args.folds is None and args.fold is None:
        return
    if args.folds is None or args.fold is None:
        error("--folds and --fold go together, such as --folds 5 --fold 1")
    if args.fold > args.folds:
        error(f"--fold {args.fold}: found {args.folds} folds; expected a number of 1 to {args.folds}")
    if args.val_split is not None:
        error("--folds and --val_split: found both, expected one; leave the other out")
    args.val_split = Fold(args.fold, args.folds)


def check_common(args, error):
    """error(message) for flags of both scripts that contradict each other, or that would do nothing."""
    check_folds(args, error)
    if isinstance(args.finetune, list):
        args.finetune, *args.others = args.finetune
    if args.others and not (args.predict and hasattr(args, "input_size")):
        error(f"--finetune {args.finetune} {' '.join(args.others)}: found several weights, which --predict of "
              "train_recognition.py averages; expected one")  # fmt: skip
    if args.eval and args.resume and not os.path.isfile(os.path.join(args.resume, "manifest.json")):
        args.finetune, args.resume = args.resume, ""  # as published: --eval true --resume WEIGHTS
    if args.eval and not (args.finetune or args.resume or args.pretrained):
        error("--eval true needs weights: --finetune RUN/best, --resume STATE, or --pretrained true")
    if args.freeze != "none" and not (args.finetune or args.resume or args.pretrained):
        error(f"--freeze {args.freeze} needs weights to start from: --finetune, --resume, or --pretrained true")
    if args.data_path and args.dataset:
        error("--data_path and --dataset: found both, expected one; leave the other out")
    if args.streaming and (not args.dataset or args.val_split or args.check_data):
        error("--streaming needs --dataset, and goes neither with --val_split nor with --check_data")
    image_flags.check_bands(args, error)
    image_flags.check_colours(args, error)
    refuse_idle(
        args, error,
        ("image_column", args.dataset or getattr(args, "labels", None), "with --dataset or --labels"),
        ("shuffle_buffer train_images", args.streaming, "with --streaming true"),
        ("model_ema_decay", args.model_ema, "with --model_ema true"),
        ("model_ema_warmup", args.model_ema or not args.model_ema_warmup, "with --model_ema true"),
        ("model_ema_eval", args.model_ema or not args.model_ema_eval, "with --model_ema true"),
        ("layer_decay_type layer_decay_min_scale", args.layer_decay < 1, "with --layer_decay below 1"),
        ("blr", "lr" not in args.given, "without --lr, which wins"),
        ("warmup_epochs", args.warmup_steps <= 0, "without --warmup_steps, which wins"),
        ("min_lr", args.sched != "constant", "with every --sched but constant"),
        ("power", args.sched in ("poly", "poly_mmseg"), "with --sched poly or poly_mmseg"),
        ("step_epochs step_rate", args.sched == "step", "with --sched step"),
        ("decay_epochs", args.sched == "wsd", "with --sched wsd"),
        ("save_ckpt_freq save_ckpt_updates save_ckpt_minutes save_ckpt_num", args.save_ckpt, "with --save_ckpt true"),
        ("drop_path", args.freeze != "backbone" or not args.drop_path, "without --freeze backbone"),
        ("sync_bn", args.freeze == "none" or hasattr(args, "backbone"), "without --freeze"),
        ("tf32", not (args.deterministic and args.tf32), "without --deterministic true"),
        ("cudnn_benchmark", not (args.deterministic and args.cudnn_benchmark), "without --deterministic true"),
        ("plan minutes test_data_path", not (args.eval or args.predict), "in training"),
        ("export push_to_hub license", not args.eval, "in training"),
        ("check_data", not (args.eval and args.check_data), "in training"),
        ("epochs", args.minutes is None, "without --minutes, which wins"),
        ("minutes", not args.streaming, "without --streaming, of which no sample can be timed before"),
        ("minutes", not args.resume, "without --resume, whose run keeps its epochs"),
        ("dry_run", not args.predict and args.check_data != "only", "without --predict and --check_data only, which write"),
        ("model_key model_prefix", args.finetune and not args.predict, "with --finetune, in training and evaluation"),
        ("hub_private", args.push_to_hub or not args.hub_private, "with --push_to_hub"),
    )  # fmt: skip
    if args.deterministic:
        args.tf32 = args.cudnn_benchmark = False
