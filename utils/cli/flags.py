"""The flags that both training scripts have, by topic. Names and meanings are those of ConvNeXt and ConvNeXt-V2."""

from lr_sched import SCHEDULES
from utils.cli.arguments import add_switch, number, whole


def add_start_flags(parser):
    group = parser.add_argument_group("weights to start from: --resume before --finetune before --pretrained")
    add_switch(group, "--pretrained", False, "timm's pretrained weights of this model")
    add = group.add_argument
    add("--finetune", default="", metavar="WEIGHTS", help="a file, a folder, https://…, hf-hub:USER/NAME or timm/NAME")
    group.add_argument("--model_key", default="model|module", help="where a .pth holds them; model_ema for averaged ones")
    group.add_argument("--model_prefix", default="", help="put before every name in the file")


def add_bad_sample_flags(group):
    """For the data group."""
    share = number(0, 1)
    group.add_argument("--max_bad_samples", type=share, default=0.01, help="share of training images that may be broken")
    add_switch(group, "--check_data", False, "read every sample before training, and list the broken ones")


def add_batch_flags(parser):
    add = parser.add_argument_group("batch").add_argument
    add("--batch_size", type=whole(1), help="images per process and step; none: 64, or less for --total_batch_size")
    add("--update_freq", type=whole(1), help="steps that accumulate to one update; none: 1")
    add("--total_batch_size", type=whole(1), help="images per update; derives --update_freq on any hardware")


def add_optimizer_flags(parser, layer_decay_types):
    group = parser.add_argument_group("optimizer")
    add = group.add_argument
    add("--opt", default="adamw", help="sgd, momentum, adam, adamw, or any of timm's; lookahead_ before it")
    add("--opt_eps", type=number(above=0), help="none: the optimizer's own")
    add("--opt_betas", type=number(0, 1), nargs="+", help="none: the optimizer's own")
    add("--momentum", type=number(0, 1), default=0.9, help="of SGD and its kin")
    add("--weight_decay", type=number(0), default=0.05, help="see --weight_decay_filter")
    add("--weight_decay_end", type=number(0), help="cosine from --weight_decay to this; none: constant")
    add("--clip_grad", type=number(above=0), help="largest norm of the gradient; none: no clipping")
    add("--weight_decay_filter", choices=("norm_bias", "bn_names", "none"), default="norm_bias", help="what is free of weight "
        "decay: norms and biases; names with bn or bias in them (PyTorch-Encoding's --no-bn-wd); nothing")  # fmt: skip
    add("--layer_decay", type=number(above=0, maximum=1), default=1.0, help="lr multiplier from each layer to the one before")
    add("--layer_decay_type", choices=layer_decay_types, default=layer_decay_types[0], help="how layers are numbered")
    return group


def add_schedule_flags(parser):
    group = parser.add_argument_group("schedule, per update")
    add = group.add_argument
    add("--epochs", type=whole(1), default=100, help="passes over the data")
    add("--lr", type=number(0), help="peak learning rate; none: --blr x images per update / 256")
    add("--blr", type=number(0), default=5e-4, help="base learning rate")
    add("--min_lr", type=number(0), default=1e-6, help="where the schedule ends")
    add("--warmup_epochs", type=number(0), default=20, help="linear, from 0")
    add("--warmup_steps", type=int, default=-1, help="in updates; wins over --warmup_epochs if above 0")
    add("--sched", choices=SCHEDULES, default="cosine", help="shape")
    add("--power", type=number(above=0), default=0.9, help="of poly")
    add("--step_epochs", type=whole(1), default=30, help="of step: epochs between drops")
    add("--step_rate", type=number(above=0, maximum=1), default=0.1, help="of step: factor of a drop")
    add("--decay_epochs", type=number(above=0), help="of wsd: length of the last leg; none: a tenth of the run")
    return group


def add_ema_flags(parser):
    group = parser.add_argument_group("average of the weights (EMA)")
    add_switch(group, "--model_ema", False, "keep one")
    group.add_argument("--model_ema_decay", type=number(0, 1), default=0.9999, help="per update")
    add_switch(group, "--model_ema_warmup", False, "smaller decay in the first updates: for short runs")
    add_switch(group, "--model_ema_eval", True, "evaluate it too, and keep its best")


def add_speed_flags(parser):
    group = parser.add_argument_group("speed and memory")
    add_switch(group, "--channels_last", False, "memory order that convolutions on GPUs prefer")
    add_switch(group, "--torchcompile", False, "compile the model")
    add_switch(group, "--grad_checkpointing", False, "recompute activations in the backward pass: less memory, slower")
    add_switch(group, "--sync_bn", False, "batch norm statistics over all processes")
    add_switch(group, "--use_amp", False, "as published: bf16 (or fp16) if the launcher chose no precision")
    group.add_argument("--num_workers", type=whole(0), help="loader processes; none: the cores at hand, 10 at most")
    add_switch(group, "--pin_mem", True, "page-locked memory for faster copies to a GPU")
    return group


def add_evaluation_flags(parser):
    group = parser.add_argument_group("evaluation")
    add_switch(group, "--eval", False, "evaluate the weights and stop")
    add_switch(group, "--disable_eval", False, "train without evaluating")
    add_switch(group, "--dist_eval", True, "share the evaluation among the processes; exact either way")
    return group


def add_output_flags(parser, script):
    group = parser.add_argument_group("output and resume")
    add = group.add_argument
    add("--output_dir", metavar="DIR", help=f"none: a new output/{script}/DATE-TIME")
    add_switch(group, "--auto_resume", True, "go on with an unfinished run in --output_dir")
    add("--resume", default="", metavar="CHECKPOINT", help="go on from this state, with these flags")
    add_switch(group, "--save_ckpt", True, "save resumable states")
    add("--save_ckpt_freq", type=whole(1), default=1, help="epochs between states")
    add("--save_ckpt_updates", type=whole(1), help="updates between states, within epochs too")
    add("--save_ckpt_minutes", type=number(above=0), help="minutes between states, within epochs too")
    add("--save_ckpt_num", type=whole(1), default=3, help="states to keep")
    add("--log_every", type=whole(1), default=50, help="updates between looks at the loss")
    add("--skip_nonfinite", type=whole(0), default=0, help="leave out up to so many updates in a row whose loss or gradient is "
        "no number; costs a look at the device each update")  # fmt: skip
    add("--dry_run", nargs="?", const="text", choices=("text", "json"), help="print what the run would do, and stop")
    add("--seed", type=whole(0), default=0, help="of weights, data order and augmentation")


def add_stream_flags(group):
    """For the data group."""
    add_switch(group, "--streaming", False, "of --dataset: read training data as it comes, without storing it first")
    group.add_argument("--shuffle_buffer", type=whole(1), default=1000, help="of --streaming: samples shuffled at a time")
    group.add_argument("--train_images", type=whole(1), help="of --streaming: how many there are, where the data does not tell")


def add_result_flags(parser):
    """What is done with the result, and where the run can be watched."""
    group = parser.add_argument_group("result")
    add = group.add_argument
    add("--report_to", nargs="+", metavar="TRACKER", help="none, or tensorboard (as without this), wandb, trackio, mlflow, …")
    add("--export", nargs="+", default=(), metavar="FORMAT", help="of best/, after training: onnx, torchscript, torch_export")
    add("--push_to_hub", metavar="USER/NAME", help="upload best/ to the Hub after training")
    add_switch(group, "--hub_private", False, "make that repository private")
    add("--license", help="of the weights, for the model card: apache-2.0, mit, …")


# What may change between a run and its resumption, for the result stays the same (the data is compared by its size,
# the batch by its total).
FREE = frozenset(
    [
        "output_dir",
        "auto_resume",
        "resume",
        "save_ckpt",
        "save_ckpt_freq",
        "save_ckpt_updates",
        "save_ckpt_minutes",
        "max_bad_samples",
        "skip_nonfinite",
        "save_ckpt_num",
        "log_every",
        "report_to",
        "export",
        "push_to_hub",
        "hub_private",
        "license",
        "dry_run",
        "check_data",
        "eval_batch_size",
        "num_workers",
        "pin_mem",
        "dist_eval",
        "data_path",
        "eval_data_path",
        "data_set",
        "dataset",
        "batch_size",
        "update_freq",
        "total_batch_size",
    ]
)
