"""torchvision's state dicts under timm's names: ConvNeXt, Swin, Swin V2, ViT, EfficientNet, EfficientNetV2, MobileNetV3.

The names of its ResNets and DenseNets are timm's own; those of its RegNets are translated by timm.
Source: torchvision/models (convnext.py, swin_transformer.py, vision_transformer.py, efficientnet.py, mobilenetv3.py).
"""

import re

import torch

from utils.cli.errors import InputError

_CONVNEXT = (
    (r"^features\.0\.", "stem."),
    (r"^features\.([246])\.(\d)\.", lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}."),
    (r"^features\.([1357])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"\.layer_scale$", ".gamma"),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)
_SWIN = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
    (r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
)
_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)
_MOBILE_BLOCK = re.compile(r"^features\.(\d+\.\d+|\d+)\.block\.(\d+)\.(.+)$")
_MOBILE_LAYER = re.compile(r"^(features\.\d+|classifier)\.(\d)\.(\w+)$")
_PARTS = {  # by the convolutions of a block: timm's names of convolution and norm, one after another
    "ConvBnAct": (("conv", "bn1"),),
    "EdgeResidual": (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    "DepthwiseSeparable": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def from_torchvision(tensors, wanted):
    """({timm name: tensor}, the layout in words, names left out), or None where the names are not torchvision's.

    tensors: {name: tensor}. wanted: timm's names in the model's order, from which MobileNetV3's stages are told.
    """
    left_out = [name for name in tensors if name.endswith((".relative_position_index", ".relative_coords_table"))]
    if "features.1.0.layer_scale" in tensors or "features.1.0.block.0.weight" in tensors:
        return _renamed(tensors, _CONVNEXT), "torchvision ConvNeXt", []
    if "features.1.0.attn.qkv.weight" in tensors:
        version = " V2" if "features.1.0.attn.logit_scale" in tensors else ""
        tensors = _renamed({n: t for n, t in tensors.items() if n not in left_out}, _SWIN)
        return _split_biases(tensors) if version else tensors, f"torchvision Swin{version}", left_out
    if "encoder.layers.encoder_layer_0.ln_1.weight" in tensors:
        return _renamed(tensors, _VIT), "torchvision ViT", []
    if "features.1.0.block.0.0.weight" in tensors:
        return _from_mobile(tensors, wanted, flat=False), "torchvision EfficientNet", []
    if "features.1.block.0.0.weight" in tensors:
        return _from_mobile(tensors, wanted, flat=True), "torchvision MobileNetV3", []
    return None


def check_mobile(tensors, modules, option):
    """InputError where torchvision's EfficientNet or MobileNetV3 means another network than the timm model with its names.

    tensors: {torchvision's name: tensor}. modules: of the model. option: the flag for timm's options.
    """
    mobile, efficient = ("features.1.block.0.0.weight" in tensors), ("features.1.0.block.0.0.weight" in tensors)
    if not mobile and not efficient:
        return
    modules = list(modules)
    if any(type(module).__name__ == "Conv2dSame" for module in modules):
        raise InputError("torchvision pads as PyTorch does, models named tf_… as TensorFlow: take the one without tf_")
    first = {name.split(".")[2] for name in tensors if name.startswith("features.1.")}
    fused = efficient and tensors["features.1.0.block.0.0.weight"].shape[1] != 1
    eps = 1e-3 if mobile or fused or len(first) > 2 else 1e-5  # B5 to B7, whose first stage has 3 blocks or 4, have 1e-3
    found = {module.eps for module in modules if isinstance(module, torch.nn.BatchNorm2d)}
    if found - {eps}:
        raise InputError(f"BatchNorm's eps was {eps}, the model's is {found.pop()}: give {option} bn_eps={eps}")


def _renamed(tensors, rules):
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _split_biases(tensors):
    """Swin V2 with timm's two biases for torchvision's one; that of the keys is 0 in both."""
    split = {}
    for name, tensor in tensors.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            split |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            split[name] = tensor
    return split


def _from_mobile(tensors, wanted, *, flat):
    """EfficientNet's or, if `flat`, MobileNetV3's tensors; a name that is not known stays."""
    blocks = {}  # number of a block: its tensors, {position of the layer: {name in the layer: (whole name, tensor)}}
    for name, tensor in tensors.items():
        if match := _MOBILE_BLOCK.match(name):
            blocks.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = (name, tensor)
    names = {}
    in_order = list(dict.fromkeys(match[1] for name in wanted if (match := re.match(r"(blocks\.\d+\.\d+)\.", name))))
    for place, layers in blocks.items():
        if flat:
            place = int(place) - 1
            ours = in_order[place] if place < len(in_order) else f"blocks.{place}"
        else:
            stage, block = place.split(".")
            ours = f"blocks.{int(stage) - 1}.{block}"
        convs = [layer for layer in layers.values() if "0.weight" in layer]
        if len(convs) == 2:
            kind = "DepthwiseSeparable" if convs[0]["0.weight"][1].shape[1] == 1 else "EdgeResidual"
        else:
            kind = "ConvBnAct" if len(convs) == 1 else "InvertedResidual"
        parts = iter(_PARTS[kind])
        for _, layer in sorted(layers.items()):
            conv, norm = next(parts, ("?", "?")) if "0.weight" in layer else ("", "")
            of_layer = {"0": conv, "1": norm, "fc1": "se.conv_reduce", "fc2": "se.conv_expand"}
            for inside, (name, _) in layer.items():
                module, _, leaf = inside.rpartition(".")
                names[name] = f"{ours}.{of_layer.get(module, module)}.{leaf}"
    last = max((int(name.split(".")[1]) for name in tensors if _MOBILE_LAYER.match(name) and name[0] == "f"), default=0)
    ends = {("features.0", "0"): "conv_stem", ("features.0", "1"): "bn1"}
    if flat:
        before = in_order[-1] if in_order else "blocks"
        ends |= {(f"features.{last}", "0"): f"{before}.conv", (f"features.{last}", "1"): f"{before}.bn1"}
        ends |= {("classifier", "0"): "conv_head", ("classifier", "3"): "classifier"}
    else:
        ends |= {(f"features.{last}", "0"): "conv_head", (f"features.{last}", "1"): "bn2", ("classifier", "1"): "classifier"}
    for name in tensors:
        if (match := _MOBILE_LAYER.match(name)) and (match[1], match[2]) in ends:
            names[name] = f"{ends[match[1], match[2]]}.{match[3]}"
    return {names.get(name, name): tensor for name, tensor in tensors.items()}
