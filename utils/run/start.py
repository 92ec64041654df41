"""What a run takes from the weights that it starts from: how they were trained to see images, and in an evaluation all that
decides a score. A flag that stands on the line wins.
"""

import contextlib
import os
import pathlib
import re

from utils.cli.arguments import Fold, split_flag
from utils.cli.errors import InputError
from utils.model.as_trained import OF_MASKS, as_trained
from utils.model.download import check_reachable
from utils.model.weights import rows_of_classes, sort_rows
from utils.report.run_files import is_count, read_json

OF_NETWORK = {  # flag of train_segmentation.py -> argument of build_network
    "model": "head", "backbone": "backbone", "output_stride": "output_stride", "backbone_kwargs": "backbone_kwargs",
    "head_kwargs": "head_kwargs", "channels": "head_kwargs", "dropout": "head_kwargs", "se_loss": "head_kwargs",
    "aux": "aux_kwargs", "aux_channels": "aux_kwargs",
}  # fmt: skip
OF_DATA = ("data_path", "labels", "dataset", "eval_data_path")  # flags that say where the data is
SMALL = 32  # pixels; see utils/cli/recognition_flags.py


def take_start(args, name, data_defaults):
    """(`AsTrained` of the start weights or None, lines that say it). Sets those flags in `args` that the user left open.

    name: timm's, of the model or the backbone. data_defaults: names of the flags that the data sets: they stay in training. In
    an evaluation and a prediction only the flags that stand on the line itself stay.
    """
    if args.pretrained and not args.dry_run:
        check_reachable(name)
    looks_only = args.eval or args.predict
    source = args.finetune or (_folder_of(args.resume) if args.eval else "")
    start = as_trained(source, name if args.pretrained else None) if source or args.pretrained else None
    if start is None:
        if "model" in (args.mean, args.std):
            raise InputError("--mean model: the weights do not tell how they were trained; give the numbers, or imagenet")
        file = args.finetune or (args.resume if args.eval else "")
        file = file if not args.pretrained else ""
        return None, [f"{file} does not say how it was trained: {_defaults(args)}, licence unknown"] if file else []
    if args.predict:
        _refuse_other_model(args, start)
    stays = set(args.typed) if looks_only else args.given | (set(data_defaults) - {*OF_NETWORK})
    if "imagenet_default_mean_and_std" in stays:
        stays |= {"mean", "std"}
    elif isinstance(args.mean, str) and "mean" in stays:
        stays |= {"std"}  # which follows the word
    wanted = start.images | (start.evaluation if looks_only else _model_of(start, args, stays))
    own, asked = start.evaluation.get("in_chans"), args.in_chans
    if asked != own and not (looks_only and "in_chans" not in stays):
        if own or looks_only:
            what, how = (f"{own} bands", f"--in_chans {own}") if own else ("photographs in RGB", "none of --in_chans")
            raise InputError(f"--finetune {source}: trained on images of {what}; expected {how}, found {asked}")
        stays |= {"mean", "std"}  # those of three colours say nothing of the bands
    if start.network is not None and hasattr(args, "input_size"):
        raise InputError(f"--finetune {source}: this is a segmentation network; expected an image recognition model")
    if not hasattr(args, "input_size"):
        if looks_only and start.network is None and start.number:
            raise InputError(f"--finetune {source}: this is an image recognition model; expected a segmentation network")
        if looks_only:
            wanted = {flag: value for flag, value in wanted.items() if flag not in ("model", "model_kwargs")}
    elif args.input_size <= SMALL and "input_size" in stays and wanted["input_size"] != args.input_size:
        stays |= {"crop_pct", "crop_mode"}  # such images are not cropped
    for flag in ("model", "backbone"):
        if flag in stays and not _same_model(flag, getattr(args, flag), wanted.get(flag)):
            stays |= {f"{flag}_kwargs"}
    if stays & {"mask_values", "mask_colors", "reduce_zero_label"} or getattr(args, "data_set", None):
        stays |= {*OF_MASKS} - {"mask_suffix"}  # one way to read masks takes the place of another
    notes = []
    for flag, value in wanted.items():
        found = getattr(args, flag, None)
        if not hasattr(args, flag):
            continue
        if flag not in stays or found == "model":
            setattr(args, flag, value)
            if flag in ("model", "backbone") and found != value and not looks_only:
                notes.append(f"--{flag} {value}, of which they are")
        elif flag in args.given and found is not None and not _same_model(flag, found, value):
            notes.append(f"--{flag} {_text(found)} wins over {_text(value)}, as the weights were trained")
    if args.std == "model":  # beside another --mean
        args.std = start.images.get("std")
    read = [f"--{flag}" for flag in OF_MASKS if flag in wanted and flag not in stays and hasattr(args, flag)]
    if args.eval and read:
        notes.append(f"masks are read as in training: {' '.join(read)}")
    return start, [str(start), *notes]


def _model_of(start, args, stays):
    """{flag: value} of the model that the weights of --finetune are of, for a training. stays: flags that stay.

    Weights of recognition are those of the backbone of train_segmentation.py. A network of segmentation is taken as a whole, or
    not at all where the line names another one; EoMT, which brings flags of its own, is named on the line.
    """
    if not args.finetune:
        return {}
    segments = hasattr(args, "backbone")
    if start.network is None:
        flag = "backbone" if segments else "model"
        return {flag: start.evaluation["model"], f"{flag}_kwargs": start.evaluation["model_kwargs"]}
    own = {"model": start.network["head"], "backbone": start.network["backbone"]}
    others = [flag for flag in own if flag in stays and not _same_model(flag, getattr(args, flag, None), own[flag])]
    if not segments or others or (own["model"] == "eomt" and "model" not in stays):
        return {}
    network = start.network
    head, aux = dict(network.get("head_kwargs") or {}), network.get("aux_kwargs")
    backbone = [(name, value) for name, value in (network.get("backbone_kwargs") or {}).items() if name != "in_chans"]
    return {
        "model": network["head"], "backbone": network["backbone"], "output_stride": network.get("output_stride"),
        "backbone_kwargs": backbone, "channels": head.pop("channels", None), "se_loss": bool(head.pop("se_loss", False)),
        **({"dropout": head.pop("dropout")} if "dropout" in head else {}), "head_kwargs": [*head.items()],
        "aux": aux is not None, "aux_channels": (aux or {}).get("channels"),
    }  # fmt: skip


def open_held_out(args, open_data, say):
    """The source that an evaluation scores. open_data: () -> (training source, that one).

    Where the run of the weights held out a part of the same data, that part is scored: --val_split or --folds, --seed and
    --group_by that the line does not name are the run's, set in `args`, which is said. So is that a run was trained on what is
    scored.
    """
    known = _args_of_run(args)
    split = _split_of(known)
    if split and args.dataset and args.val_split is None:  # a data set with a split train alone opens with it only
        args.val_split = split["val_split"]
    if split and args.val_split is not None:
        say(_take_split(args, split))
    _, source = open_data()
    if known and getattr(source, "whole", False):
        if split is None:
            say("warning: the whole tree is scored, images that these weights were trained on too")
            return source
        args.val_split = split["val_split"]
        say(_take_split(args, split))
        _, source = open_data()
    return source


def _args_of_run(args):
    """The flags in args.json of the run whose weights or state are evaluated, {} where it is not of the same data."""
    if not (args.resume or args.finetune):
        return {}
    inside = pathlib.Path(os.path.dirname(args.resume) if args.resume else args.finetune).absolute()  # checkpoints/, or best/
    record = read_json(inside.parent / "args.json", dict)
    known, cwd = record.get("args"), str(record.get("cwd", ""))
    its = [_places(known.get(flag), cwd) for flag in OF_DATA] if isinstance(known, dict) else []
    return known if any(its) and its == [_places(getattr(args, flag, None), "") for flag in OF_DATA] else {}


def _places(values, cwd):
    """Where the paths lead, one or several, that a command names in the folder `cwd`; names of the Hub stay as they are."""
    several = values if isinstance(values, list | tuple) else [values] if values else []
    paths = [os.path.join(cwd, str(value)) for value in several]
    return [os.path.realpath(path) if os.path.exists(path) else value for path, value in zip(paths, several, strict=True)]


def _split_of(known):
    """{flag: value} of how the run with these flags held out a part of its data; None where it did not."""
    share, folds, fold, seed, group = (known.get(name) for name in ("val_split", "folds", "fold", "seed", "group_by"))
    if is_count(folds) and is_count(fold) and 1 <= fold <= folds >= 2:
        share = Fold(fold, folds)
    if not isinstance(share, float) or not 0 < share < 1 or not is_count(seed) or not isinstance(group, str | None):
        return None
    return {"val_split": share, "seed": seed, "group_by": group}


def _take_split(args, split):
    """Set what the line leaves open of how a run held out a part of its data; the line that says it, or what differs."""
    for flag in ("seed", "group_by"):
        if flag not in args.typed:
            setattr(args, flag, split[flag])
    said, own = _in_flags(**{flag: getattr(args, flag) for flag in split}), _in_flags(**split)
    if said != own:
        return f"warning: the run held out {own}: with {said} images are scored that were trained on, too"
    return f"data: the images that the run held out are scored: {own}"


def _in_flags(val_split, seed, group_by):
    fold = f" --fold {val_split.fold}" if isinstance(val_split, Fold) else ""
    return f"{split_flag(val_split)}{fold} --seed {seed}" + (f" --group_by {group_by}" if group_by else "")


def _refuse_other_model(args, start):
    """Raise InputError for a flag on the line that names another model than the weights have: a prediction takes theirs."""
    own = start.network or start.evaluation
    for flag in OF_NETWORK if start.network else ("model", "model_kwargs"):
        if flag in args.typed:
            named = own.get(OF_NETWORK[flag] if start.network else flag)
            named = named.get(flag) if isinstance(named, dict) and flag not in ("head_kwargs", "backbone_kwargs") else named
            found = getattr(args, flag)
            found = dict(found) if isinstance(named, dict) else found
            if flag == "model_kwargs":  # the weights name more of them
                named = [pair for pair in named if pair[0] in dict(found)]
            if not _same_model(flag, found, named):
                raise InputError(f"--{flag} {_text(getattr(args, flag))}: the weights have {_text(named)}, which --predict "
                                 "takes; leave it out")  # fmt: skip


def network_of(start, args, options):
    """Arguments of build_network: the network of the start weights, with the flags on the line in its place.

    options: of the flags alone. They stand where the weights name no network, and in training.
    """
    if start is None or start.network is None or not (args.eval or args.predict):
        return options
    network = {**start.network, "classes": len(start.classes)}
    for flag, argument in OF_NETWORK.items():
        if flag in args.typed:
            both = isinstance(network.get(argument), dict) and isinstance(options[argument], dict)
            network[argument] = {**network[argument], **options[argument]} if both else options[argument]
    return network


def license_of(start, stated):
    """{"license": …, "start_license": …} for config.json: `stated` by the user, or of the start weights; {} from scratch."""
    inherited = start.license if start else None
    found = {"license": stated or inherited, "start_license": inherited}
    return {name: value for name, value in found.items() if value}


def load_start(accelerator, model, args, load, start=None, classes=()):
    """Put the weights of --finetune into `model`; returns lines that say what the run starts from.

    load: `load_weights` of the model's kind. start: `AsTrained` or None, and classes: names, of a training: where the weights
    tell theirs, the rows of the classifier are those of the same names, and others start anew. A dry run loads only what lies
    on the disk. Raises InputError where they do not fit, and in an evaluation where they leave the classifier as it was made.
    """
    if not args.finetune or (args.dry_run and not os.path.exists(args.finetune)):
        return [args.resume or args.finetune or ("timm's pretrained weights" if args.pretrained else "from scratch")]
    classes, own = list(map(str, classes)), start.classes if start and classes else None
    before = {name: rows.clone() for name, rows in rows_of_classes(model, len(classes)).items()}
    with accelerator.local_main_process_first(), _named(start, args):  # one of a machine downloads, for all of it
        lines = load(model, args.finetune, model_key=args.model_key, model_prefix=args.model_prefix)
    if args.eval:
        refuse_new_head(args.finetune, lines)
    if own and own != classes and len(own) == len(classes) and not _has_new_head(lines):
        names = ", ".join(own[:5]) + ", …" * (len(own) > 5)
        if not before:
            return [*lines, f"warning: trained on other classes ({names}), and their classifier is kept: it starts with those"]
        kept = sort_rows(model, before, own, classes)
        lines.append(f"classifier: {kept} of {len(classes)} classes by name, {len(classes) - kept} new; trained on {names}")
    return lines


@contextlib.contextmanager
def _named(start, args):
    """Within this, an InputError for weights of another model ends with the flags that name theirs."""
    try:
        yield
    except InputError as error:
        hint = "; is it another --model"
        if start is None or hint not in str(error):
            raise
        own = {"backbone" if hasattr(args, "backbone") else "model": start.evaluation.get("model")}
        if start.network:
            own = {"model": start.network["head"], "backbone": start.network["backbone"]}
        if all(_same_model(flag, getattr(args, flag), name) for flag, name in own.items()):
            raise
        own = " ".join(f"--{flag} {name}" for flag, name in own.items())
        raise InputError(f"{str(error).partition(hint)[0]}; they are of {own}") from None


def _has_new_head(origin):
    return re.search(r"\bhead new\b|\bnew: [^;]*decode_head", origin[1])


def refuse_new_head(source, origin):
    """Raise InputError if loading, of which `origin` tells, left a classifier as it was made: noise would be scored."""
    if _has_new_head(origin):
        raise InputError(
            f"--eval with {source}: its classifier is missing, or of another number of classes than the data ({origin[1]}); a "
            "new one would be scored: train it first, or give the data the classes of the weights"
        )


def _folder_of(state):
    """The state RUN/checkpoints/NAME itself, RUN/best or RUN/last: the first with a config.json; "" where none has one."""
    run = os.path.dirname(os.path.dirname(os.path.abspath(state))) if state else ""
    folders = [state, *(os.path.join(run, name) for name in ("best", "last"))] if run else []
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "config.json"))), "")


def _defaults(args):
    size = f"{args.input_size} pixels, " if hasattr(args, "input_size") else ""
    return f"{size}mean {_text(args.mean or 'of ImageNet')}"


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _same_model(flag, found, value):
    """Whether two values of a flag mean the same: convnext_tiny.fb_in22k is a convnext_tiny, whose weights are others."""
    if flag in ("model", "backbone") and isinstance(found, str) and isinstance(value, str):
        found, value = (name.partition(".")[0] for name in (found, value))
    return _plain(found) == _plain(value)


def _text(value):
    return " ".join(map(_text, value)) if isinstance(value, list | tuple) else f"{value}"
