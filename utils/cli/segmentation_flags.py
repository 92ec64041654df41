"""The flags of train_segmentation.py, the defaults that data brings, and which flags go together."""

from segmentation_networks import HEADS
from utils.cli import flags, image_flags
from utils.cli.arguments import key_value, number, refuse_idle, settings_of, value_name, whole
from utils.losses import SEGMENTATION_LOSSES
from utils.sources import SEGMENTATION_SETS

# What suits the built-in scenes of digits. Holds where neither --data_path nor --dataset is given; a flag on the line wins.
SCENES = {
    "crop_size": 96, "base_size": 96, "backbone": "resnet10t", "channels": 48, "opt": "adamw", "lr": 4e-3,
    "weight_decay": 0.05, "weight_decay_filter": "norm_bias", "head_lr_scale": 1.0, "epochs": 8, "warmup_epochs": 1,
    "loss": "ce+dice",  # cross entropy alone takes four epochs longer to leave the background
    "batch_size": 8, "eval_batch_size": 16, "transforms": "none", "num_workers": 0,
}  # fmt: skip
TRANSFORMS = ("encoding", "mmseg", "eomt", "none")
# PyTorch-Encoding's SGD, for which its learning rates are.
SGD = {"opt": "momentum", "weight_decay": 1e-4, "weight_decay_filter": "none", "sched": "poly", "warmup_epochs": 0, "min_lr": 0}

# EoMT's optimizer and loss. It has one width, the backbone's, and no dropout.
EOMT = {"opt": "adamw", "lr": 2e-4, "weight_decay": 0.05, "head_lr_scale": 1.0, "clip_grad": 0.01}
EOMT_ALWAYS = {"loss": "masks", "channels": None, "dropout": None}


def add_flags(parser):
    add_network_flags(parser)
    flags.add_start_flags(parser)
    flags.add_plan_flags(parser)
    add_data_flags(parser)
    image_flags.add_band_flags(parser)
    add_augmentation_flags(parser)
    add_loss_flags(parser)
    flags.add_batch_flags(parser)
    topic = flags.add_optimizer_flags(parser, layer_decay_types=("stage_wise", "layer_wise", "single", "group"))
    topic.add("--head_lr_scale", type=number(above=0, maximum=1000), default=10.0,
              help="all but the backbone learns this many times as fast")  # fmt: skip
    topic = flags.add_schedule_flags(parser)
    topic.add("--backbone_warmup_steps", type=whole(1), help="the backbone stays as it is while the heads warm up, and "
              "then has a warm-up of so many updates; none: it warms up with them")  # fmt: skip
    topic.add("--max_updates", type=whole(1), help="updates of the run, instead of --epochs")
    flags.add_ema_flags(parser)
    add_evaluation_flags(parser)
    add_view_flags(parser)
    flags.add_speed_flags(parser)
    flags.add_output_flags(parser, "train_segmentation")
    flags.add_result_flags(parser)
    parser.set_defaults(**SGD)


def add_network_flags(parser):
    topic = parser.topic("network")
    topic.add("--model", choices=tuple(HEADS), default="upernet", help="the head")
    topic.add("--head_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="options of the head, such "
              "as atrous_rates=(6,12,18) of deeplab, lateral=True of encnet, with_global=True of fcn")  # fmt: skip
    topic.add("--channels", type=whole(1, 65_536), help="inner width of the head; none: the published one")
    topic.add("--dropout", type=number(0, 0.99), default=0.1, help="dropout before the last convolution of each head")
    topic.add("--backbone", default="convnextv2_atto", help="name of a model in timm that gives feature maps")
    topic.add("--backbone_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="options of "
              "timm.create_model for the backbone")  # fmt: skip
    topic.add("--output_stride", type=int, choices=(8, 16, 32), help="pixels of the image per pixel of the last feature map; "
              "none: the backbone's own")  # fmt: skip
    topic.add("--drop_path", type=number(0, 0.99), default=0.0, help="stochastic depth of the backbone: probability that its "
              "last block is left out for an image")  # fmt: skip
    topic.switch("--aux", False, "add an auxiliary FCN head on the third stage, for its loss")
    topic.add("--aux_channels", type=whole(1, 65_536), help="inner width of the auxiliary head; none: a quarter of its input's")


def network_options(args):
    """Arguments of build_network but for `classes`, as config.json keeps them; what is not given is the head's own."""
    head = {"channels": args.channels, "dropout": args.dropout, "se_loss": args.se_loss or None, **dict(args.head_kwargs)}
    aux = {"channels": args.aux_channels, "dropout": args.dropout}
    return {
        "backbone": args.backbone, "head": args.model, "output_stride": args.output_stride, "head_kwargs": _given(head),
        "aux_kwargs": _given(aux) if args.aux else None,
        "backbone_kwargs": dict(args.backbone_kwargs) | _given({"in_chans": args.in_chans}),
    }  # fmt: skip


def _given(options):
    return {name: value for name, value in options.items() if value is not None}


def add_data_flags(parser):
    topic = parser.topic("data: built-in scenes of digits unless --data_path or --dataset is given")
    topic.add("--data_path", free=True, metavar="DIR", help="folder with images/train, images/val, masks/train and masks/val; "
              "or the folder of --data_set")  # fmt: skip
    topic.add("--data_set", free=True, choices=tuple(SEGMENTATION_SETS), help="what is in --data_path; brings the published "
              "epochs and rate; pets is downloaded there")  # fmt: skip
    topic.add("--train_split", choices=("train", "trainval"), help="images of --data_set to train on: those of the validation "
              "too with trainval; none: train")  # fmt: skip
    topic.add("--dataset", free=True, metavar="NAME_OR_DIR", help="read through the library datasets: a name on the Hub, or a "
              "folder of Parquet or Arrow files")  # fmt: skip
    topic.add("--image_column", help="column of --dataset with the images; none: found by type and name")
    topic.add("--mask_column", help="column of --dataset with the masks; none: found by type and name")
    topic.add("--val_split", type=number(above=0, maximum=0.9), help="share of the images that is held out for validation, "
              "chosen by --seed")  # fmt: skip
    topic.add("--mask_suffix", help="what a mask's name has behind that of its image, before the ending: _mask")
    topic.add("--mask_values", nargs="+", type=value_name, metavar="VALUE=NAME", help="which value in a mask is which class, "
              "such as 0=background 255=crack; several values of one name are one class; the name ignore is no "
              "class")  # fmt: skip
    topic.add("--mask_colors", metavar="FILE", help="masks are pictures in colours: name,red,green,blue on each line; the name "
              "ignore is no class")  # fmt: skip
    topic.switch("--reduce_zero_label", None, "0 in a mask is no class, and 1 is the first one")
    topic.add("--nb_classes", type=whole(2, 65_535),
              help="number of classes, to be compared with the data; none: as the data has")  # fmt: skip
    image_flags.add_image_flags(topic)
    flags.add_bad_sample_flags(topic)
    flags.add_stream_flags(topic)


Data = settings_of("Data", add_data_flags, image_flags.add_band_flags)


def add_augmentation_flags(parser):
    topic = parser.topic("augmentation")
    topic.add("--transforms", choices=TRANSFORMS, default="encoding", help="PyTorch-Encoding's, "
              "mmsegmentation's, EoMT's, or whole images as they are")  # fmt: skip
    topic.add("--crop_size", type=whole(16, 65_536), default=480,
              help="side of a training crop, and of a window in evaluation, in "
              "pixels")  # fmt: skip
    topic.add("--base_size", type=whole(16, 65_536), default=520,
              help="pixels of an image's long side (encoding, eomt) or short side "
              "(mmseg) at scale 1")  # fmt: skip
    topic.add("--ratio_range", type=number(0.01, 100), nargs=2, default=(0.5, 2.0),
              help="smallest and largest random scale of a "
              "training image")  # fmt: skip
    topic.add("--cat_max_ratio", type=number(above=0, maximum=1), default=0.75, help="a crop of mmseg is drawn again, up to "
              "ten times, where one class has more than this share of it")  # fmt: skip
    image_flags.add_colour_flags(topic)


Augmentation = settings_of("Augmentation", add_augmentation_flags, image_flags.add_band_flags)


def add_loss_flags(parser):
    topic = parser.topic("loss")
    topic.add("--loss", choices=tuple(SEGMENTATION_LOSSES), default="ce", help="ce: cross-entropy of the pixels; ce+dice: and "
              "Dice; focal: pixels that are right already count less; lovasz: mean IoU itself; these two and Dice are for "
              "small objects; masks: a class and a mask of each query, always of --model eomt and of no other")  # fmt: skip
    flags.add_balance_flags(topic)
    topic.add("--aux_weight", type=number(0, 1000), default=0.2, help="weight of the auxiliary head's loss, with --aux true")
    topic.switch("--se_loss", False, "encnet learns which classes are in the image, too")
    topic.add("--se_weight", type=number(0, 1000), default=0.2, help="weight of that loss, with --se_loss true")
    topic.add("--loss_mean", choices=("labelled", "all"), default="labelled", help="cross-entropy is the mean over the "
              "labelled pixels, or, as in mmsegmentation, over all, where ignored ones count as 0")  # fmt: skip
    topic.add("--ohem", type=number(0, 1e9), nargs=2, metavar=("THRESHOLD", "MIN_KEPT"),
              help="learn from hard pixels only: those "
              "whose class has a probability below THRESHOLD, but MIN_KEPT per image at least, such as 0.7 100000")  # fmt: skip


LossOptions = settings_of("LossOptions", add_loss_flags)


def add_view_flags(parser):
    topic = parser.topic("how evaluation looks at an image")
    topic.add("--eval_mode", choices=("whole", "slide", "crop"), default="whole", help="look at the whole image at once, at "
              "windows of --crop_size, or at the centre only")  # fmt: skip
    topic.add("--eval_scales", type=number(0.01, 100), nargs="+", default=(1.0,),
              help="scales of --base_size, whose scores are "
              "added up, such as 0.75 1.0 1.25")  # fmt: skip
    topic.switch("--eval_flip", False, "add the scores of the mirror image")


View = settings_of("View", add_view_flags)


def add_evaluation_flags(parser):
    metrics = {"miou": "mean IoU", "pixacc+miou": "the mean of it and pixel accuracy", "dice": "mean Dice"}
    topic = flags.add_evaluation_flags(parser, metrics)
    topic.add("--eval_batch_size", free=True, type=whole(1), default=1, help="images per process; those of several sizes are "
              "evaluated one by one")  # fmt: skip
    topic.add("--predict", metavar="DIR_OR_FILE", help="write masks and overlays of these images to --output_dir, by "
              "--finetune RUN/best, and stop")  # fmt: skip


def defaults_for(args):
    """{flag: default} of the data: those of the scenes where no data is given, or what --data_set was published with. And those
    of a head that has its own."""
    data = SEGMENTATION_SETS[args.data_set].defaults if args.data_set else {}
    data = data if args.data_path or args.dataset else SCENES
    if args.model == "linear":
        return {flag: value for flag, value in data.items() if flag != "channels"}  # it has none
    return {**EOMT, **data, **EOMT_ALWAYS} if args.model == "eomt" else data


def check(args, error):
    """error(message) for flags that contradict each other, or that would do nothing."""
    flags.check_common(args, error)
    if dict(args.backbone_kwargs).get("in_chans", args.in_chans) != args.in_chans:
        error(f"--backbone_kwargs in_chans={dict(args.backbone_kwargs)['in_chans']}: give --in_chans, which images follow, too")
    if args.in_chans and args.transforms in ("mmseg", "eomt"):
        found = f"--transforms {args.transforms} changes colours, and --in_chans {args.in_chans} reads bands"
        error(f"{found}; expected encoding or none")
    for name, other, needs in (("data_set", "data_path", args.data_path), ("train_split", "data_set", args.data_set),
                               ("mask_column", "dataset", args.dataset),
                               ("val_split", "data_path", args.data_path or args.dataset)):  # fmt: skip
        if getattr(args, name) is not None and not needs:
            error(f"--{name} needs --{other} too")
    ways = [name for name in ("mask_values", "mask_colors", "reduce_zero_label") if getattr(args, name)]
    own = (args.data_path and not args.data_set) or args.dataset
    if ways and (len(ways) > 1 or not own or (args.dataset and args.mask_colors)):
        found = " and ".join(f"--{name}" for name in ways) + f" with --data_set {args.data_set}" * bool(args.data_set)
        error(f"found {found}; expected one of them, beside masks of yours")
    if args.mask_suffix and (args.data_set or not args.data_path):
        error("--mask_suffix needs --data_path, with masks of yours")
    if args.eval and not (args.finetune or args.resume):
        error("--eval true needs a trained network: --finetune RUN/best or --resume STATE; --pretrained has a backbone only")
    if args.predict and not (args.output_dir and args.finetune):
        error("--predict needs --finetune RUN/best, and --output_dir, where masks and overlays go")
    flags.check_order(args, error, "ratio_range")
    if not args.finetune or args.eval or args.predict:  # else the weights may tell the network
        check_network(args, error)
    weights_decide = args.finetune and (args.eval or args.predict) and "transforms" not in args.given
    refuse_idle(
        args, error,
        ("ohem loss_mean", args.loss in ("ce", "ce+dice"), "with --loss ce or ce+dice"),
        ("group_by", args.val_split and args.data_path, "with --data_path and --val_split"),
        ("test_data_path", args.data_path and not args.data_set, "with --data_path, beside images and masks of yours"),
        ("backbone_warmup_steps", args.warmup_epochs or args.warmup_steps > 0, "with --warmup_steps or --warmup_epochs"),
        ("cat_max_ratio", args.transforms == "mmseg", "with --transforms mmseg"),
        ("ratio_range", args.transforms != "none", "with --transforms encoding, mmseg or eomt"),
        ("base_size", args.transforms != "none" or weights_decide, "with --transforms encoding, mmseg or eomt"),
        ("epochs minutes", args.max_updates is None, "without --max_updates, which wins"),
        ("eval_freq best_metric patience", not args.disable_eval, "without --disable_eval"),
    )  # fmt: skip


def check_network(args, error):
    """error(message) for flags that do not go with the network, or that would do nothing with it."""
    if (args.loss == "masks") != (args.model == "eomt"):
        error(f"--loss {args.loss} with --model {args.model}: masks is the loss of eomt, and of no other head; leave it out")
    if args.se_loss and args.model != "encnet":
        error(f"--se_loss is for --model encnet; found {args.model}")
    refuse_idle(
        args, error,
        ("aux_weight aux_channels", args.aux, "with --aux true"),
        ("se_weight", args.se_loss, "with --se_loss true"),
        ("class_weights", args.loss != "lovasz" or args.se_loss, "with --loss ce, ce+dice, focal or masks"),
    )  # fmt: skip
