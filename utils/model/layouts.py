"""Published state dicts under timm's names: wrappers, ConvNeXt's own names, FCMAE, MAE, torchvision's, timm's conversions."""

import contextlib
import inspect
import io
import math
import re
import sys

import torch
from timm.models import adapt_input_conv

from utils.cli.errors import InputError, first_line
from utils.model.torchvision_names import check_mobile, from_torchvision

_TO_TIMM = (  # original ConvNeXt name -> timm's, in this order
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
_BESIDE = re.compile(  # what stands beside the wrapped model: torch's AveragedModel, a Lightning module's losses and scores
    r"^(?:n_averaged$|criterion\.|loss\w*\.|metrics?\.|(?:train|val|valid|test)_\w+\.|(?:model_)?ema(?:_model)?\.)"
)
_FCMAE = re.compile(r"^(?:mask_token$|proj\.|pred\.|decoder\.)")  # what FCMAE has beside the encoder
_MAE = re.compile(r"^(?:mask_token$|decoder_)")  # what MAE has
_CONVERTED = "names converted by timm"
_MUCH = 1 << 26  # numbers that a file may hold above eight times the model's, for timm to convert them


def to_timm(tensors, model=None, *, built=None, option="--model_kwargs"):
    """({timm name: tensor}, the layout in words, names left out) of a published state dict {name: tensor}.

    model: the timm model that the tensors are for. With it, an input convolution of another number of channels, positions
    of another size and the names of a model's own publication are converted as timm converts them.
    built: what is in the model's place where it only has its names, such as a backbone. option: the flag for timm's
    options, for messages. Raises InputError for torchvision's weights that would fit by name
    and shape, but count otherwise than the model does.
    """
    wanted = {} if model is None else model.state_dict()
    tensors, left_out = _unwrap(tensors, wanted)
    layout = []
    pretraining = [name for name in tensors if _FCMAE.match(name)]
    if pretraining and any(name.startswith("encoder.") for name in tensors):
        left_out += pretraining
        tensors = {name.removeprefix("encoder."): t for name, t in tensors.items() if name not in pretraining}
        layout.append("FCMAE checkpoint")
    elif any(name.startswith("decoder_") for name in tensors) and "mask_token" in tensors:
        left_out += [name for name in tensors if _MAE.match(name)]
        tensors = {name: tensor for name, tensor in tensors.items() if not _MAE.match(name)}
        layout.append("MAE checkpoint")
    if any(name.endswith(".kernel") for name in tensors):
        tensors = dict(_to_dense(name, tensor) for name, tensor in tensors.items())
        layout.append("sparse layout")
    family = "ConvNeXt V2" if any(".grn." in name for name in tensors) else "ConvNeXt"
    isotropic = any(re.match(r"blocks\.\d+\.dwconv\.", name) for name in tensors)
    if isotropic or any(name.startswith("downsample_layers.") for name in tensors):
        tensors = {to_timm_name(name): tensor for name, tensor in tensors.items()}
        fcmae = layout[:1] == ["FCMAE checkpoint"]
        layout = [f"{family} {layout[0]}" if fcmae else f"{family} checkpoint", *layout[fcmae:]]
        layout += [] if "sparse layout" in layout else ["original names"]
    elif any(".conv_dw." in name and name.startswith("stages.") for name in tensors):
        layout.append(f"{family} checkpoint, timm names")
    elif any(name.startswith("layer1.") for name in tensors):
        nest = any(re.match(r"layer1\.0\.conv2\.(fc1|conv)\.", name) for name in tensors)
        layout.append("ResNeSt checkpoint" if nest else "ResNet checkpoint")
    elif model is not None and (found := from_torchvision(tensors, wanted)):
        theirs, (tensors, what, more) = tensors, found
        if _faults(tensors, wanted) <= 4:  # a classifier of another size: two tensors on each side
            check_mobile(theirs, (built or model).modules(), option)
        layout, left_out = [what], left_out + more
    else:
        layout += [] if layout else ["timm names"]
    if model is not None:
        tensors, what, more = _as_timm_converts(tensors, model, wanted)
        layout, left_out = [name for name in layout if name != "timm names" or what[:1] != [_CONVERTED]] + what, left_out + more
    return tensors, ", ".join(layout), left_out


def is_pretraining(name):
    """Whether a tensor is of what FCMAE and MAE throw away after pretraining."""
    return bool(_FCMAE.match(name) or _MAE.match(name))


def to_timm_name(name):
    """timm's name of an original ConvNeXt or ConvNeXt V2 parameter."""
    for pattern, replacement in _TO_TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def _unwrap(tensors, wanted):
    """(tensors without what wrappers put before every name, names left out because they stand beside the model)."""
    left_out, found = [], True
    while found:
        inside = [name for name in tensors if not _BESIDE.match(name)]
        found = next((w for w in _WRAPPERS if inside and all(name.startswith(w) for name in inside)), None)
        if found and not any(name.startswith(found) for name in wanted):
            left_out += [name for name in tensors if _BESIDE.match(name)]
            tensors = {name.removeprefix(found): tensors[name] for name in inside}
        else:
            found = None
    return tensors, left_out


def _to_dense(name, tensor):
    """(name, tensor) in the dense layout, of one that FCMAE's encoder holds as MinkowskiEngine does.

    A kernel is (positions, C) if depthwise, (positions, C_in, C_out) otherwise, its positions column by column; biases
    and GRN are (1, C). Nothing is copied, for the shapes are not checked yet. Source: ConvNeXt-V2, utils.py,
    remap_checkpoint_keys.
    """
    if name.endswith(".kernel"):
        side = math.isqrt(tensor.shape[0])
        axes = (1, 0) if tensor.ndim == 2 else (2, 1, 0)
        kernel = tensor.permute(axes).unflatten(-1, (side, side)).transpose(-1, -2)  # (C_out, [C_in,] rows, columns)
        return name.removesuffix("kernel") + "weight", kernel.unsqueeze(1) if tensor.ndim == 2 else kernel
    name = re.sub(r"\.(?:ln|linear)\.", ".", name)
    return name, tensor.squeeze(0) if name.endswith(".bias") or ".grn." in name else tensor


# --- timm's own conversions ---------------------------------------------------------------------------------------------


def _as_timm_converts(tensors, model, wanted):
    """(tensors, what was done in words, names left out): timm's conversions, where the tensors fit better after them."""
    faults = _faults(tensors, wanted)
    held = sum(tensor.numel() for tensor in tensors.values())
    if not faults or held > 8 * sum(tensor.numel() for tensor in wanted.values()) + _MUCH:
        return tensors, [], []
    adapted, done = _with_channels(tensors, model, wanted)
    convert = _converter(model)
    converted = {}
    if convert is not None and _faults(adapted, wanted):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            converted = convert(dict(adapted), model)  # changes the dict that it is given
    names = isinstance(converted, dict) and all(isinstance(tensor, torch.Tensor) for tensor in converted.values())
    if not converted or not names or _faults(converted, wanted) >= _faults(adapted, wanted):
        return adapted, done, []
    resized = [n for n, t in converted.items() if n in adapted and t.shape != adapted[n].shape]
    kept = {tensor.data_ptr() for tensor in converted.values()}
    lost = [name for name, tensor in adapted.items() if name not in converted and tensor.data_ptr() not in kept]
    done = [_CONVERTED, *done] if set(converted) - set(adapted) else done
    done += [f"resized {', '.join(resized[:2])}{', …' if resized[2:] else ''}"] if resized else []
    return converted, done, lost


def _faults(tensors, wanted):
    """How many tensors are too many, too few, or of another shape."""
    fit = sum(name in wanted and shape_but_for_ones(t) == shape_but_for_ones(wanted[name]) for name, t in tensors.items())
    return len(tensors) + sum(not name.endswith("num_batches_tracked") for name in wanted if name not in tensors) - fit


def shape_but_for_ones(tensor):
    """The sizes of a tensor that are not 1: 1x1 convolutions and linear layers hold the same numbers."""
    return [size for size in tensor.shape if size != 1]


def _converter(model):
    """timm's function (tensors, model) -> tensors for the files from which the model was published, or None."""
    module = sys.modules.get(type(model).__module__)
    function = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if function is None or len(inspect.signature(function).parameters) > 1:
        return function
    return lambda tensors, _: function(tensors)


def _with_channels(tensors, model, wanted):
    """(tensors, what was done in words), with the first convolution for the model's number of channels, as timm makes it."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    done = []
    for name in (names,) if isinstance(names, str) else names:
        name = f"{name}.weight"
        if name not in tensors or name not in wanted or tensors[name].ndim != 4 or wanted[name].ndim != 4:
            continue
        theirs, ours = tensors[name].shape, wanted[name].shape
        if theirs[1] == ours[1] or theirs[1] != 3 or theirs[0] != ours[0]:
            continue
        try:
            tensors = tensors | {name: adapt_input_conv(ours[1], tensors[name])}
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise InputError(f"{name}: {first_line(error)}") from None
        done.append(f"{name} for {ours[1]} channels instead of 3")
    return tensors, done
