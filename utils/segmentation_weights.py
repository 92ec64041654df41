"""Reading weights into a segmentation network, with an exact account of the keys; no code is unpickled.

Read: this project's own; PyTorch-Encoding's; UPerNet-ConvNeXt's as mmsegmentation saves them; and every recognition
model that utils/weights.py reads, for the backbone alone.
"""

import json
import pathlib
import re

from segmentation_networks.network import build_network, classifier_prefixes
from utils.arguments import InputError, first_line
from utils.download import fetch
from utils.weights import check_fit, read_tensors, same_but_for_ones, some_names, to_timm, to_timm_name

_FROM_ENCODING = (  # PyTorch-Encoding's name -> ours; its heads' names are ours
    (r"^pretrained\.", "backbone."),
    (r"^head\.", "decode_head."),
    (r"^auxlayer\.", "auxiliary_head."),
)
_FROM_MM = (  # mmsegmentation's name of UPerHead and FCNHead -> ours, in this order
    (r"^decode_head\.psp_modules\.(\d+)\.1\.", lambda match: f"decode_head.extramodule.conv{int(match[1]) + 1}."),
    (r"^decode_head\.bottleneck\.", "decode_head.c4conv."),
    (r"^decode_head\.lateral_convs\.", "decode_head.fpn_lateral."),
    (r"^decode_head\.fpn_convs\.", "decode_head.fpn_out."),
    (r"^decode_head\.fpn_bottleneck\.", "decode_head.conv5."),
    (r"^auxiliary_head\.convs\.0\.", "auxiliary_head.conv5."),
    (r"^(decode_head|auxiliary_head)\.conv_seg\.", r"\1.conv5.4."),
    (r"^((?:decode|auxiliary)_head\..+)\.conv\.", r"\1.0."),
    (r"^((?:decode|auxiliary)_head\..+)\.bn\.", r"\1.1."),
    (r"^backbone\.norm(\d)\.", r"feature_norms.\1."),
)
_AFTER_BACKBONE = re.compile(  # what timm's recognition models have after their last feature map
    r"^(?:head|head_dist|fc|fc_norm|classifier|last_linear|pre_logits|attn_pool|norm|norm_pre|norm_head|"
    r"conv_head|bn2|final_conv|final_layer|downsamp_modules)\."
)
_TRAINING_ONLY = ("auxiliary_head.", "decode_head.encmodule.selayer.")


def read_config(folder):
    """config.json of a folder that this project's training wrote (network, classes, palette, sizes), or None."""
    path = pathlib.Path(folder, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"{path}: {first_line(error)}; expected JSON as training writes it") from None
    return config if isinstance(config, dict) and "network" in config else None


def open_network(folder):
    """(SegmentationNetwork with its weights, in evaluation mode; its config) of a folder such as RUN/best.

    Raises InputError where there is no network, and for weights that do not fit it.
    """
    config = read_config(folder)
    if config is None:
        raise InputError(f"{folder}: found no config.json of a segmentation network; expected a folder such as RUN/best")
    network = build_network(**config["network"], input_size=config["crop_size"])
    load_segmentation_weights(network, folder)
    return network.eval(), config


def load_segmentation_weights(network, source, *, model_key="model|module", model_prefix=""):
    """Load `source` (see `fetch`) into `network` (SegmentationNetwork); returns lines that say what was done.

    Classifiers of another number of classes start anew, and so does all but the backbone where `source` is a
    recognition model, whose classifier and final norm are left out. An auxiliary head or se layer that only one of the
    two has is left out, or starts anew. Any other missing, unexpected or misshapen tensor is an InputError that names
    them, and the network stays untouched.
    """
    tensors = {model_prefix + name: tensor for name, tensor in read_tensors(fetch(source), model_key).items()}
    wanted = network.state_dict()
    try:
        tensors, layout, left_out = to_timm(tensors)  # of a segmentation network it only takes wrappers' prefixes away
        convert, what = _layout(tensors)
        tensors, left_out = convert(tensors, wanted, left_out)
    except (RuntimeError, IndexError) as error:  # kernels of no square side, say
        raise InputError(f"weights {source}: the tensors do not have the expected shapes ({first_line(error)})") from None
    layout = what or f"{layout}, for the backbone"

    new = {name for name in wanted if name.endswith("num_batches_tracked") and name not in tensors}  # older torch had none
    parts = classifier_prefixes(network)
    if not what:
        parts = sorted({f"{name.partition('.')[0]}." for name in wanted} - {"backbone."})
    elif not any(name.startswith("auxiliary_head.") for name in tensors):
        parts = [part for part in parts if not part.startswith("auxiliary_head.")] + ["auxiliary_head."]
    anew = []
    for part in parts:
        names = {name for name in wanted if name.startswith(part)}
        if any(name not in tensors or not same_but_for_ones(tensors[name], wanted[name]) for name in names - new):
            anew.append(part.rstrip("."))
            new |= names
            tensors, left_out = _leave_out(tensors, left_out, part)
    for part in _TRAINING_ONLY:
        if not any(name.startswith(part) for name in wanted):
            tensors, left_out = _leave_out(tensors, left_out, part)

    missing = [name for name in wanted if name not in tensors and name not in new]
    unexpected = [name for name in tensors if name not in wanted]
    # 1x1 convolutions and linear layers, and both forms of GRN, hold the same numbers in other shapes
    misshapen = [name for name in tensors if name in wanted and not same_but_for_ones(tensors[name], wanted[name])]
    check_fit(f"weights {source} ({layout}) do not fit the network", missing, unexpected, misshapen)
    if not next(iter(wanted.values())).is_meta:  # of a dry run, which only compares
        fitting = {name: tensor.reshape(wanted[name].shape) for name, tensor in tensors.items()}
        network.load_state_dict(fitting, strict=False)
    return [
        str(source),
        layout + (f"; new: {', '.join(anew)}" if anew else ""),
        f"{len(tensors)} tensors loaded; left out {some_names(left_out)}; new {some_names(sorted(new))}",
    ]


# --- layouts: each converter gives (tensors under our names, names left out) ------------------------------------------


def _layout(tensors):
    """(converter, what the layout is, or None for a recognition model)."""
    if any(name.startswith("pretrained.") for name in tensors):
        return _from_encoding, "PyTorch-Encoding segmentation checkpoint"
    if any(name.startswith("decode_head.conv_seg.") for name in tensors):
        return _from_mm, "mmsegmentation UPerNet checkpoint"
    if any(name.startswith("decode_head.") for name in tensors):
        return lambda tensors, wanted, left_out: (tensors, left_out), "segmentation checkpoint of this project"
    return _from_recognition, None


def _from_encoding(tensors, wanted, left_out):
    tensors, left_out = _leave_out(tensors, left_out, "pretrained.fc.")
    return {_rename(name, _FROM_ENCODING): tensor for name, tensor in tensors.items()}, left_out


def _from_mm(tensors, wanted, left_out):
    converted = {}
    for name, tensor in tensors.items():
        if name == "decode_head.fpn_bottleneck.conv.weight":  # its input joins the maps from fine to coarse, ours the reverse
            tensor = tensor.unflatten(1, (4, -1)).flip(1).flatten(1, 2)
        converted[mm_name(name, wanted)] = tensor
    return converted, left_out


def mm_name(name, wanted):
    """Our name, among `wanted`, of the parameter `name` of an UPerNet-ConvNeXt as mmsegmentation saves it."""
    name = _rename(name, _FROM_MM)
    return _in_backbone(to_timm_name(name.removeprefix("backbone.")), wanted) if name.startswith("backbone.") else name


def _from_recognition(tensors, wanted, left_out):
    renamed = {_in_backbone(name, wanted): (name, tensor) for name, tensor in tensors.items()}
    after = [n for name, (n, _) in renamed.items() if name not in wanted and _AFTER_BACKBONE.match(n)]
    return {name: tensor for name, (n, tensor) in renamed.items() if n not in after}, left_out + after


def _leave_out(tensors, left_out, part):
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}
    return kept, left_out + [name for name in tensors if name not in kept]


def _rename(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _in_backbone(name, wanted):
    """Our name of timm's parameter `name`: feature extractors join two levels by `_`, or hold the model as `model`."""
    names = (f"backbone.{name}", f"backbone.{name.replace('.', '_', 1)}", f"backbone.model.{name}")
    return next((candidate for candidate in names if candidate in wanted), names[0])
