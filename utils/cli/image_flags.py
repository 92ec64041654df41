"""The flags of images: what is taken of own data, how it is read, bands, and the colours by which images are normalised."""

import argparse

from utils.cli.arguments import number, whole


def add_image_flags(topic):
    """What is taken of own data, and how deep images are read."""
    topic.add("--classes", metavar="FILE", help="classes in this order, a name on each line, others are left out; "
              "vehicle = car, truck makes one class of two")  # fmt: skip
    topic.add("--max_train_images", type=whole(1), metavar="N", help="train on N images only, of each class in proportion, for "
              "a quick try")  # fmt: skip
    topic.add("--max_val_images", type=whole(1), metavar="N", help="validate on N images only")
    topic.add("--test_data_path", free=True, metavar="DIR", help="images that are scored once, after training, by the best "
              "weights; none: those in test/ beside train/ and val/, if it is there")  # fmt: skip
    topic.add("--folds", type=whole(2), help="cross-validation: the images are shared out into so many parts, and the part "
              "--fold is validated on instead of --val_split; a run for each, then python -m utils.report RUN …")  # fmt: skip
    topic.add("--fold", type=whole(1), help="number of that part, from 1")
    topic.add("--group_by", metavar="REGEX", help="--val_split keeps images on one side whose names, or first groups of it, "
              "match alike, such as '^[^_]+' for all up to the first _")  # fmt: skip
    topic.add("--value_range", nargs=2, type=number(maximum=1e12), metavar=("BLACK", "WHITE"),
              help="values that become black and white in "
              "greys of more than 8 bits, such as 0 4095 of 12 bits; none: as a sample of the data has them")  # fmt: skip
    topic.add("--background", type=colour, metavar="COLOUR", help="what shows through transparent parts of images, such as "
              "white or #ff8000; none: the colour that the files store there, often black")  # fmt: skip
    topic.add("--max_image_pixels", free=True, type=whole(1, 10**10), metavar="N", help="read images of up to N pixels; none: "
              "178,956,970, Pillow's limit against files that fill the memory")  # fmt: skip


def colour(text):
    """(R, G, B), each 0 to 255, of a name or #rrggbb."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a name such as white, or #rrggbb, found '{text}'") from None


def add_band_flags(parser):
    topic = parser.topic("bands: images that are no photographs, such as satellites' and microscopes' (docs/DATA.md)")
    topic.add("--in_chans", type=whole(1, 1024), metavar="N", help="images have N bands, from TIFF (any depth), .npy, or any "
              "image file; none: photographs, read as RGB")  # fmt: skip
    topic.add("--show_bands", free=True, type=whole(0, 1023), nargs="+", metavar="BAND", help="bands that pictures of "
              "--in_chans show as red, green and blue, such as 3 2 1, or one as grey; counted from 0; none: the first "
              "three")  # fmt: skip


def check_bands(args, error):
    """error(message) for what does not go with --in_chans, and the colours that follow from it: those of the data."""
    if args.show_bands and (not args.in_chans or len(args.show_bands) not in (1, 3)):
        found = "without --in_chans" if not args.in_chans else " ".join(map(str, args.show_bands))
        error(f"--show_bands {found}: expected one or three numbers of the bands of --in_chans")
    if not args.in_chans:
        return
    if args.show_bands and max(args.show_bands) >= args.in_chans:
        error(f"--show_bands {max(args.show_bands)}: expected 0 to {args.in_chans - 1}, as --in_chans {args.in_chans} has them")
    if args.data_set or not (args.data_path or args.dataset or args.predict):
        found = f"--data_set {args.data_set}" if args.data_set else "the built-in data"
        error(
            f"--in_chans {args.in_chans} with {found}, of photographs: it reads images of yours; give --data_path or --dataset"
        )
    if args.background:
        error("--background is of photographs with transparent parts; leave it out, or --in_chans")
    if not (args.eval or args.predict):
        args.mean = args.mean or "data"


COLOURS = ("imagenet", "inception", "clip", "model", "data")


def add_colour_flags(topic):
    """Images are normalised by these: (value / 255 - mean) / std."""
    words = {"nargs": "+", "type": _colours, "metavar": "NUMBERS_OR_WORD"}
    topic.add("--mean", **words, help="mean of red, green and blue in 0..1, three numbers, by which images are normalised; or "
              "imagenet, inception or clip; model: as the start weights were trained; data: of training images; none: as the "
              "start weights were trained, where they tell, else ImageNet's")  # fmt: skip
    topic.add("--std", **words, help="deviation of the same, and the same words; none: as --mean")


def _colours(text):
    return text if text in COLOURS else number(0, 1)(text)


def check_colours(args, error):
    """error(message) for a --mean or --std that is neither a word nor three numbers; a word stands alone from here on."""
    channels = args.in_chans or 3
    for name in ("mean", "std"):
        values = getattr(args, name)
        if not isinstance(values, list):
            continue
        if len(values) == 1 and isinstance(values[0], str):
            setattr(args, name, values[0])
        elif len(values) != channels or any(isinstance(v, str) for v in values) or (name == "std" and not all(values)):
            found, wanted = " ".join(map(str, values)), {3: "three numbers"}.get(channels, f"numbers of {channels} bands")
            error(f"--{name} {found}: expected {wanted}{' above 0' * (name == 'std')}, or one of {', '.join(COLOURS)}")
        if channels != 3 and getattr(args, name) in COLOURS[:3]:
            error(f"--{name} {getattr(args, name)} is of three colours, and --in_chans says {channels}; expected data")
    if args.streaming and "data" in (args.mean, args.std):
        error("--mean data reads some training images first, which --streaming cannot; give the numbers")
