"""Reading weights into a segmentation network, with an exact account of the keys; no code is unpickled.

Read: this project's own; PyTorch-Encoding's; UPerNet-ConvNeXt's as mmsegmentation saves them; and every recognition
model that utils/model/weights.py reads, for the backbone alone.
"""

import inspect
import json
import os
import re

import timm
import torch

from segmentation_networks.network import build_network, classifier_prefixes
from utils.cli.errors import InputError, first_line
from utils.model.download import fetch
from utils.model.layouts import to_timm, to_timm_name
from utils.model.weights import put_in, read_weights, same_but_for_ones, why

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

# What a config says of a network; build_network's other arguments are for those who train one.
_NETWORK = set(inspect.signature(build_network).parameters) - {"pretrained", "drop_path", "input_size"}
_OF_HEADS = ("channels", "dropout", "codewords", "se_loss", "lateral", "with_global", "atrous_rates")  # in older configs
_CONFIG_BYTES = 1 << 24


def network_config(network, classes, palette, settings, view, *, mean, std, **beside):
    """What config.json beside a network's weights holds, from which `open_network` opens them.

    network: arguments of build_network by name; classes: their names; palette: (classes, 3) uint8; settings: has crop_size,
    base_size and transforms (segmentation_flags.Augmentation); view: segmentation_flags.View; mean, std: three floats each.
    beside: what else is kept, such as the license.
    """
    return {
        "network": network, "classes": classes, "palette": palette.tolist(), "crop_size": settings.crop_size,
        "base_size": settings.base_size, "transforms": settings.transforms, "mean": mean, "std": std,
        **view._asdict(), **beside,
    }  # fmt: skip


def read_config(folder):
    """config.json of a folder that training wrote, or None where there is none of a segmentation network.

    "network": arguments of build_network by name, which checks their values. "classes": names. "palette": a colour
    [red, green, blue] for each, 0 to 255. "crop_size" and "base_size": pixels. "transforms": encoding, mmseg or none.
    "image_size": [width, height] of a usual validation image, where it is known. "mask_values" and the like: see `mask_config`
    of utils/mask_folders/options.py.
    Raises InputError for what training does not write, and for a backbone that timm would look for on the network or on the
    disk.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return None
    try:
        if os.path.getsize(path) > _CONFIG_BYTES:
            raise ValueError(f"{os.path.getsize(path):,} bytes")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {first_line(error)}; expected JSON as training writes it") from None
    if not isinstance(config, dict) or "network" not in config:
        return None
    try:
        return _checked(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _checked(config):
    if isinstance(config["network"], dict):
        config = config | {"network": _without_older_form(config["network"])}
    network = config["network"]
    if not isinstance(network, dict) or not {"backbone", "head", "classes"} <= set(network) <= _NETWORK:
        found = ", ".join(network) if isinstance(network, dict) else network
        raise InputError(f"network: found {found}; expected backbone, head, classes and other arguments of build_network")
    if not isinstance(network["backbone"], str) or not re.fullmatch(r"[\w.-]+", network["backbone"]):
        raise InputError(f"backbone {network['backbone']}: expected a model's plain name; nothing was looked for")
    classes, palette = config.get("classes"), config.get("palette")
    named = isinstance(classes, list) and _all(classes, str) and all(map(str.isprintable, classes))
    if not named or len(classes) != network["classes"]:
        raise InputError(f"classes: expected {network['classes']} names, as many as the network has")
    colours = isinstance(palette, list) and len(palette) >= len(classes) and _all(palette, list)
    if not colours or any(len(c) != 3 or not _all(c, int) or not 0 <= min(c) <= max(c) <= 255 for c in palette):
        raise InputError("palette: expected a colour for each class, three numbers of 0 to 255")
    for name in ("crop_size", "base_size"):
        if not isinstance(config.get(name), int) or not 1 <= config[name] <= 65_536:
            raise InputError(f"{name} {config.get(name)}: expected a number of pixels")
    size = config.get("image_size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and _all(size, int) and min(size) >= 1):
        raise InputError(f"image_size {size}: expected width and height of the training's images in pixels")
    if config.get("transforms") not in ("encoding", "mmseg", "eomt", "none"):
        raise InputError(f"transforms {config.get('transforms')}: expected encoding, mmseg, eomt or none")
    return config


def _without_older_form(network):
    """Arguments of build_network, of a config in which the options of the heads stand beside them."""
    if "head_kwargs" in network or not {"aux", *_OF_HEADS} & set(network):
        return network
    options = {name: network[name] for name in _OF_HEADS if name in network}
    options = {name: value for name, value in options.items() if value is not None and value is not False}
    aux = {"channels": network.get("aux_channels"), "dropout": network.get("dropout", 0.1)}
    rest = {name: value for name, value in network.items() if name not in ("aux", "aux_channels", *_OF_HEADS)}
    return rest | {"head_kwargs": options, "aux_kwargs": aux if network.get("aux") else None}


def _all(values, kind):
    return all(isinstance(value, kind) for value in values)


def open_network(folder):
    """(SegmentationNetwork with its weights, in evaluation mode; its config) of a folder such as RUN/best.

    Raises InputError where there is no network, and for weights that do not fit it.
    """
    config = read_config(folder)
    if config is None:
        raise InputError(f"{folder}: found no config.json of a segmentation network; expected a folder such as RUN/best")
    settings = config["network"] | {"input_size": config["crop_size"]}
    with torch.device("meta"):  # takes no memory: only a network that the file has weights for is built
        try:
            network = build_network(**settings)
        except InputError as error:
            raise InputError(f"{os.path.join(folder, 'config.json')}: {error}") from None
        _, layout, _ = load_segmentation_weights(network, folder)
    if "; new: " in layout:
        raise InputError(f"{folder}: its weights are not those of the network in config.json ({layout})")
    network = build_network(**settings)
    load_segmentation_weights(network, folder)
    return network.eval(), config


def load_segmentation_weights(network, source, *, model_key="model|module", model_prefix=""):
    """Load `source` (see `fetch`) into a SegmentationNetwork; returns three lines: the source, its layout, what was done.

    model_key: see `read_weights`. model_prefix: is put before every name in the file.
    Classifiers of another number of classes start anew, and so does all but the backbone where `source` is a
    recognition model, whose classifier and final norm are left out. An auxiliary head or se layer that only one of the
    two has is left out, or starts anew. Any other missing, unexpected or misshapen tensor is an InputError that names
    them, and the network stays untouched.
    """
    tensors, note = read_weights(fetch(source), model_key)
    tensors = {model_prefix + name: tensor for name, tensor in tensors.items()}
    wanted = network.state_dict()
    try:
        whole, layout, left_out = to_timm(tensors)  # of a segmentation network it only takes wrappers' prefixes away
        convert, what = _layout(whole)
        if what is None:
            body = network.backbone
            whole, layout, left_out = to_timm(tensors, _recognition(body), built=body, option="--backbone_kwargs")
        tensors, left_out = convert(whole, wanted, left_out)
    except (RuntimeError, IndexError, ValueError) as error:  # kernels of no square side, say
        raise InputError(f"weights {source}: {why(error)}") from None
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
    loaded = put_in(network, tensors, source, layout, left_out, new, "network")
    return [str(source), layout + (f"; {note}" if note else "") + (f"; new: {', '.join(anew)}" if anew else ""), loaded]


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
        ours = mm_name(name, wanted)
        if name == "decode_head.fpn_bottleneck.conv.weight":  # its input joins the maps from fine to coarse, ours the reverse
            maps = tensor.unflatten(1, (4, -1))
            if ours in wanted and tensor.shape == wanted[ours].shape:  # others are refused, and may be of any size
                tensor = maps.flip(1).flatten(1, 2)
        converted[ours] = tensor
    return converted, left_out


def mm_name(name, wanted):
    """Our name, among `wanted`, of the parameter `name` of an UPerNet-ConvNeXt as mmsegmentation saves it."""
    name = _rename(name, _FROM_MM)
    return _in_backbone(to_timm_name(name.removeprefix("backbone.")), wanted) if name.startswith("backbone.") else name


def _recognition(backbone):
    """The recognition model whose names and sizes the weights for a feature extractor of timm's have; None if there is none."""
    if hasattr(backbone, "model"):  # the model itself, without what comes after its last map
        return backbone.model
    name = (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or ""
    if not timm.is_model(name):
        return None
    with torch.device("meta"):  # takes no memory
        return timm.create_model(name)


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
