"""The flags of train_recognition.py, what suits the built-in digits, and which flags go together."""

import os

from utils.cli import flags, image_flags
from utils.cli.arguments import flags_text, key_value, number, refuse_idle, settings_of, whole
from utils.losses import LOSSES, MULTILABEL_LOSSES
from utils.sources import RECOGNITION_SETS

# What suits 1,438 digits of 8x8 pixels. Holds where neither --data_path nor --dataset is given; a flag on the line wins.
DIGITS = {
    "input_size": 64, "scale": (0.8, 1.0), "ratio": (0.9, 1.1), "crop_pct": 1.0, "hflip": 0.0, "aa": "none", "reprob": 0.0,
    "epochs": 10, "warmup_epochs": 1, "blr": 8e-3, "min_lr": 1e-5, "num_workers": 0,
}  # fmt: skip
SMALL = 32  # pixels; up to here images are padded and cropped instead of cropped and resized
LARGE = 384  # pixels; from here on ConvNeXt's evaluation warps the whole image


def add_flags(parser):
    add_model_flags(parser)
    flags.add_start_flags(parser)
    flags.add_plan_flags(parser)
    add_data_flags(parser)
    image_flags.add_band_flags(parser)
    add_augmentation_flags(parser)
    add_mixup_flags(parser)
    add_loss_flags(parser)
    flags.add_batch_flags(parser)
    flags.add_optimizer_flags(parser, layer_decay_types=("single", "group"))
    flags.add_schedule_flags(parser)
    flags.add_ema_flags(parser)
    metrics = {"acc1": "top-1 accuracy", "balanced_acc": "mean of the classes' recalls", "f1": "mean of their F1"}
    metrics |= {"loss": "the least cross-entropy", "map": "mean average precision, which --task multilabel takes by itself"}
    topic = flags.add_evaluation_flags(parser, metrics)
    topic.add("--label_sets", metavar="FILE", help="--eval true also scores by sets of labels, where an image may have "
              "several: JSON, a list for each image in the order of file names, as ImageNet's real.json, or {file name: "
              "labels}, or {path: labels}")  # fmt: skip
    topic.switch("--tta_flip", False, "average the logits of each image and its mirror image")
    topic.add("--predict", metavar="DIR_OR_FILE", help="classify these images with --finetune RUN/best into predictions.csv, "
              "and stop")  # fmt: skip
    topic.add("--unsure", type=number(0, 1), help="--predict adds a column `answer`: the class, or 'unsure' where its "
              "probability is less than this; none: no such column")  # fmt: skip
    topic.switch("--cam", False, "--predict also draws the first images, and which part of each spoke for its class")
    topic.add("--topk", type=whole(1), help="classes that --predict writes for each image, of one label; none: 5")
    flags.add_speed_flags(parser)
    flags.add_output_flags(parser, "train_recognition")
    flags.add_result_flags(parser)


def add_model_flags(parser):
    topic = parser.topic("model")
    topic.add("--model", default="convnextv2_atto", help="name of the model in timm, such as convnext_tiny or resnet50")
    topic.add("--model_kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="options of "
              "timm.create_model, such as patch_size=2")  # fmt: skip
    topic.add("--drop_path", type=number(0, 0.99), default=0.0, help="stochastic depth: probability that the last block is "
              "left out for an image; earlier blocks less, in proportion")  # fmt: skip
    topic.add("--head_init_scale", type=number(above=0, maximum=1000), default=1.0,
              help="multiplies the first weights of the classifier")  # fmt: skip
    topic.add("--layer_scale_init_value", type=number(0, 1000),
              help="ConvNeXt's layer scale at the start; 0: it has none; none: the model's own")  # fmt: skip
    topic.switch("--last_gamma", None, "start the last norm of each block of a ResNet or ResNeSt at 0; none: as the model does")
    topic.add("--drop_block", type=number(0, 0.99), default=0.0, help="DropBlock's rate in a ResNet or ResNeSt")


ModelOptions = settings_of("ModelOptions", add_model_flags, image_flags.add_band_flags)


def add_data_flags(parser):
    topic = parser.topic("data: the built-in digits unless --data_path or --dataset is given")
    topic.add("--data_path", free=True, metavar="DIR", help="folder with train/ and val/, in each a folder per class; or one "
              "such tree and --val_split; or the folder of --data_set")  # fmt: skip
    topic.add("--eval_data_path", free=True, metavar="DIR", help="validation tree, where it is not DATA_PATH/val")
    topic.add("--data_set", free=True, choices=("IMNET", "image_folder", *RECOGNITION_SETS), help="what is in --data_path: "
              "IMNET and image_folder, as published, class folders; the others are downloaded there")  # fmt: skip
    topic.add("--dataset", free=True, metavar="NAME_OR_DIR", help="read through the library datasets: a name on the Hub, or a "
              "folder of Parquet, Arrow, image or WebDataset files")  # fmt: skip
    topic.add("--labels", free=True, nargs="+", metavar="TABLE", help="images in one heap, and a table (.csv, .tsv, .parquet) "
              "that says what each shows; a second one: those to validate on; --data_path: where images lie, if not beside "
              "it")  # fmt: skip
    topic.add("--task", choices=("multilabel",), help="multilabel: an image has any number of labels, which --labels or "
              "--dataset list; none: one")  # fmt: skip
    topic.add("--image_column", help="column of --dataset or --labels with the images; none: found by type and name")
    topic.add("--label_column", help="column of --dataset or --labels with the labels; none: found by type and name")
    topic.add("--val_split", type=number(above=0, maximum=0.9), help="share of each class that is held out for validation, "
              "chosen by --seed")  # fmt: skip
    topic.add("--nb_classes", type=whole(1, 1_000_000),
              help="number of classes, to be compared with the data; none: as the data has")  # fmt: skip
    image_flags.add_image_flags(topic)
    flags.add_bad_sample_flags(topic)
    flags.add_stream_flags(topic)


Data = settings_of("Data", add_data_flags, image_flags.add_band_flags)


def add_augmentation_flags(parser):
    topic = parser.topic("augmentation")
    topic.add("--transforms", choices=("fast", "timm", "encoding"), default="fast", help="fast: ConvNeXt's, drawn as timm "
              "draws them; timm: the same by timm itself, to the bit; encoding: PyTorch-Encoding's")  # fmt: skip
    topic.add("--input_size", type=whole(8, 65_536), default=224,
              help=f"side of the model's input in pixels; up to {SMALL} a padded "
              f"random crop, from {LARGE} on evaluation warps the whole image; without it, as the start weights were trained, "
              "where they tell")  # fmt: skip
    topic.add("--scale", type=number(0.0001, 1), nargs=2, default=(0.08, 1.0), help="smallest and largest share of "
              "the image's area in a random crop")  # fmt: skip
    topic.add("--ratio", type=number(0.01, 100), nargs=2, default=(0.75, 4 / 3),
              help="smallest and largest width / height of a "
              "random crop")  # fmt: skip
    topic.add("--hflip", type=number(0, 1), default=0.5, help="probability that an image is mirrored left to right")
    topic.add("--vflip", type=number(0, 1), default=0.0, help="probability that an image is mirrored top to bottom")
    topic.add("--color_jitter", type=number(0, 10), help="strength of random brightness, contrast and saturation; with --aa it "
              "takes effect in the encoding transforms only")  # fmt: skip
    topic.add("--aa", default="rand-m9-mstd0.5-inc1", help="RandAugment, AutoAugment or AugMix in timm's words; rand-nN-mM "
              "with the encoding transforms; none: off")  # fmt: skip
    topic.add("--train_interpolation", choices=("bicubic", "bilinear", "random"), default="bicubic", help="how a random crop "
              "is resized")  # fmt: skip
    topic.add("--crop_pct", type=number(0.01, 1), help="share of the short side in evaluation's centre crop; none: "
              f"as the start weights were trained, where they tell, else 224 / 256, below {LARGE} pixels")  # fmt: skip
    topic.add("--crop_mode", choices=("center", "squash", "border"), help="evaluation looks at the centre, at the whole image "
              f"warped to a square, or at the whole image with a border; none: as --crop_pct, and squash up to {SMALL} and "
              f"from {LARGE} pixels")  # fmt: skip
    topic.add("--eval_interpolation", choices=("bicubic", "bilinear", "lanczos", "nearest"), help="how evaluation resizes; "
              "none: as the start weights were trained, where they tell, else bicubic")  # fmt: skip
    topic.add("--reprob", type=number(0, 1), default=0.25, help="probability that a part of an image is erased")
    topic.add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what erasing leaves: zeros, one random "
              "colour, or noise of each pixel")  # fmt: skip
    topic.add("--recount", type=whole(1, 100), default=1, help="most boxes that are erased in an image")
    topic.switch("--imagenet_default_mean_and_std", True, "as published: --mean imagenet; false: --mean inception")
    image_flags.add_colour_flags(topic)


Augmentation = settings_of("Augmentation", add_augmentation_flags, image_flags.add_band_flags)


def aa_is_off(aa):
    """Whether --aa asks for no policy of operations."""
    return aa.lower() in ("", "none")


def add_mixup_flags(parser):
    topic = parser.topic("mixup and CutMix, of whole batches")
    topic.add("--mixup", type=number(0, 1000), default=0.0, help="mixup's alpha, such as 0.8: images are blended; 0: off")
    topic.add("--cutmix", type=number(0, 1000), default=0.0, help="CutMix's alpha, such as 1.0: a box is pasted; 0: off")
    topic.add("--cutmix_minmax", type=number(0, 1), nargs=2, help="smallest and largest side of CutMix's box as a share of the "
              "image's, drawn uniformly; none: from alpha")  # fmt: skip
    topic.add("--mixup_prob", type=number(0, 1), default=1.0, help="probability that a batch is mixed")
    topic.add("--mixup_switch_prob", type=number(0, 1), default=0.5, help="probability of CutMix where mixup is on too")
    topic.add("--mixup_mode", choices=("batch", "pair", "elem"), default="batch", help="one lambda per batch, per pair of "
              "images, or per image")  # fmt: skip
    topic.add("--mixup_off_epoch", type=whole(0), default=0, help="no mixing from this epoch on; 0: to the end")


MixupOptions = settings_of("MixupOptions", add_mixup_flags)


def add_loss_flags(parser):
    topic = parser.topic("loss")
    topic.add("--smoothing", type=number(0, 0.99), default=0.1, help="label smoothing: this share of a target is spread over "
              "all classes")  # fmt: skip
    topic.add("--loss", choices=tuple(LOSSES | MULTILABEL_LOSSES), default="ce", help="ce: cross-entropy; bce: binary "
              "cross-entropy of each class, which --task multilabel takes by itself; asl: asymmetric loss, for that task; "
              "utils/losses/__init__.py adds others")  # fmt: skip
    topic.switch("--bce_loss", False, "as published: --loss bce")
    topic.add("--bce_target_thresh", type=number(0, 1), help="of bce: a target above this counts as 1, any other as 0, after "
              "mixing and smoothing")  # fmt: skip
    topic.add("--teacher", default="", metavar="DIR", help="a trained model of the same classes, such as RUN/best, whose "
              "answers are learned beside the labels (distillation)")  # fmt: skip
    topic.add("--teacher_share", type=number(0, 1), default=0.5, help="share of the teacher's answer in what is learned of an "
              "image; the rest is its label")  # fmt: skip
    flags.add_balance_flags(topic)
    topic.add("--sampling", choices=("uniform", "sqrt", "balanced"), default="uniform", help="how often the images of a class "
              "come: as many as there are, in proportion to the root of that, or each class as often; an epoch keeps its "
              "length")  # fmt: skip
    topic.add("--aug_repeats", type=whole(1), default=1, help="an image comes so many times in a row, each time augmented "
              "otherwise; an epoch keeps its length")  # fmt: skip


def defaults_for(args):
    """{flag: default} of the data: those of the digits where no data is given."""
    return {} if args.data_path or args.dataset or args.labels else DIGITS


def check_task(args, error):
    """error(message) for what does not go with --task, and what follows from it where the user left it open."""
    if not args.task:
        for name in ("loss", "best_metric"):
            if (found := getattr(args, name)) in ("asl", "map"):
                error(f"--{name} {found} is of several labels an image: give --task multilabel, or leave it out")
        return
    if not (args.labels or args.dataset):
        error("--task multilabel needs --labels TABLE or --dataset, which list the labels of each image; folders tell one")
    for name, usual in (("sampling", "uniform"), ("label_sets", None), ("streaming", False), ("test_data_path", None),
                        ("teacher", "")):  # fmt: skip
        if getattr(args, name) != usual:
            error(f"{flags_text({name: getattr(args, name)})} is of one label an image; leave it out, or --task multilabel")
    if args.smoothing and "smoothing" in args.typed:
        error("--smoothing is of one label an image, whose share it spreads over the others; leave it out")
    choices = {"loss": ("bce", "asl"), "best_metric": ("map", "f1", "loss")}
    for name, known in choices.items():
        if getattr(args, name) not in known:
            if name in args.typed:
                error(f"--{name} {getattr(args, name)} is of one label an image; expected {' or '.join(known)}")
            setattr(args, name, known[0])
    args.smoothing = 0.0


def check_colour_changes(args, error):
    """error(message) for what changes colours, which images of --in_chans do not have; by default nothing does."""
    if not args.in_chans:
        return
    instead = f"is of photographs in RGB, and --in_chans {args.in_chans} reads bands; leave out one of them"
    if "transforms" in args.given and args.transforms != "fast":
        error(f"--transforms {args.transforms} {instead}")
    if "aa" in args.given and not aa_is_off(args.aa):
        error(f"--aa {args.aa} {instead}")
    if args.color_jitter:
        error(f"--color_jitter {args.color_jitter} {instead}")
    if args.crop_mode == "border":
        error("--crop_mode border fills up with a colour, which bands do not have; expected center or squash")
    args.aa = "none"


def check(args, error):
    """error(message) for flags that contradict each other, or that would do nothing."""
    if args.labels:
        if args.dataset or args.data_set or args.eval_data_path:
            error("--labels goes with --data_path, and not with --dataset, --data_set or --eval_data_path")
        args.data_path = args.data_path or os.path.dirname(args.labels[0]) or "."
    flags.check_common(args, error)
    if args.predict and not args.finetune:
        error("--predict needs --finetune RUN/best")
    for name, needs in (("eval_data_path", args.data_path), ("data_set", args.data_path),
                        ("label_column", args.dataset or args.labels),
                        ("val_split", args.data_path or args.dataset)):  # fmt: skip
        if getattr(args, name) is not None and not needs:
            error(f"--{name} needs images of yours: give {'--dataset' if name == 'label_column' else '--data_path'} too")
    if args.bce_loss:
        if "loss" in args.given and args.loss != "bce":
            error(f"--bce_loss true and --loss {args.loss}: found both, expected one; leave the other out")
        args.loss = "bce"
    check_task(args, error)
    check_colour_changes(args, error)
    mixes = bool(args.mixup or args.cutmix or args.cutmix_minmax)
    small, centre_crop = args.input_size <= SMALL, SMALL < args.input_size < LARGE
    timms, no_aa = args.transforms != "encoding", aa_is_off(args.aa)
    colours_as_published = "imagenet_default_mean_and_std" in args.given
    flags.check_order(args, error, "scale ratio cutmix_minmax")
    refuse_idle(
        args, error,
        ("scale ratio", not (small and timms), f"above {SMALL} pixels of --input_size"),
        ("train_interpolation", not (small and timms and no_aa), f"above {SMALL} pixels of --input_size, or with --aa"),
        ("crop_pct", centre_crop or args.crop_mode or not timms, f"between {SMALL} and {LARGE} pixels of --input_size, or with "
         "--crop_mode"),
        ("mean std", not colours_as_published, "without --imagenet_default_mean_and_std, which wins"),
        ("color_jitter", no_aa or "3a" in args.aa or not timms or not args.color_jitter, "with --aa none or 3a"),
        ("remode recount", args.reprob > 0, "with --reprob above 0"),
        ("cutmix", not args.cutmix_minmax, "without --cutmix_minmax, which draws the box"),
        ("mixup_prob mixup_mode mixup_off_epoch", mixes, "with --mixup or --cutmix"),
        ("mixup_switch_prob", args.mixup and (args.cutmix or args.cutmix_minmax), "with both --mixup and --cutmix"),
        ("eval_freq best_metric patience", not args.disable_eval, "without --disable_eval"),
        ("bce_target_thresh", args.loss == "bce" or args.bce_loss, "with --loss bce"),
        ("sampling aug_repeats", not args.streaming, "without --streaming, whose images come as they are stored"),
        ("label_sets", args.eval, "with --eval true"),
        ("teacher", not (args.eval or args.predict), "in training"),
        ("teacher_share", args.teacher, "with --teacher"),
        ("topk unsure cam", args.predict, "with --predict"),
        ("task", not args.predict, "in training and evaluation; --predict takes that of the weights"),
        ("group_by", args.val_split and args.data_path, "with --data_path and --val_split"),
    )  # fmt: skip
