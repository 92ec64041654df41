"""timm's models as backbones: four feature maps, whatever way timm makes them."""

import functools
import inspect
import re

import timm
import torch
from timm.layers import Format, LayerNorm2d
from timm.models import Eva, VisionTransformer
from torch import nn

from segmentation_networks.blocks import pooled
from utils.cli.errors import InputError, choose_one, first_line

JOINING = ("hrnet", "dla")  # models that join maps of all strides, which fit where 32 divides the image's sides only
STRIDES = (4, 8, 16, 32)  # pixels of the image per pixel of the maps of stages 1 to 4


def create_backbone(name, kwargs, *, output_stride=None, drop_path=0.0, input_size=None, pretrained=False, normed=False):
    """timm's feature extractor `name`, (B, 3, H, W) to its last four feature maps.

    kwargs: {option of timm.create_model: value}. normed: the maps of a plain backbone go through its last norm, which timm
    leaves out otherwise. The other arguments are build_network's. The maps have strides 4, 8, 16 and 32, none of them above
    `output_stride`, or one stride (`is_plain`).
    Raises InputError for an unknown name (with the nearest), for an option or an output stride that the model does not
    have, for maps of other strides, and for pretrained weights that cannot be had.
    """
    by_name = ":" not in name  # no hf-hub: or local-dir: before it
    if by_name:
        choose_one(name.partition(".")[0], timm.list_models(), "backbone")
    if "output_stride" in kwargs:
        raise InputError("backbone_kwargs output_stride: found it there; expected --output_stride, which the head follows too")
    kwargs = dict(kwargs)
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    extractor = _normed_extractor(name, kwargs, input_size) if normed else {}
    if output_stride not in (None, 32):
        kwargs["output_stride"] = output_stride
    try:
        known = timm.models.get_pretrained_cfg(name) if by_name else None
    except RuntimeError as error:
        raise InputError(f"backbone {name} cannot be made: {first_line(error)}") from None
    for size in _sizes(known, input_size):
        try:
            backbone = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **extractor, **size | kwargs
            )
            break
        except Exception as error:  # timm's models stumble over odd options and folders in many ways
            if isinstance(error, TypeError) and any(option in str(error) for option in size):
                continue
            raise _refusal(name, error, output_stride) from None
    _check_strides(backbone, name, output_stride)
    if _architecture(backbone).startswith("resnest") and "output_stride" in kwargs:
        _dilate_resnest(backbone)
    return backbone


def _normed_extractor(name, kwargs, input_size):
    """The option of timm by which the extractor of a plain backbone puts its maps through the backbone's last norm."""
    with torch.device("meta"):  # a glance, which tells timm's class of extractor
        glance = create_backbone(name, kwargs, input_size=input_size)
    takes = "norm" in inspect.signature(type(glance)).parameters
    return {"feature_cls": functools.partial(type(glance), norm=True)} if takes and is_plain(glance) else {}


def create_vit(name, kwargs, *, head, drop_path=0.0, pretrained=False):
    """timm's VisionTransformer or Eva (DINOv3, EVA-02) `name` whole, but without classifier, for images of any size.

    head: for the message. The other arguments and errors are those of `create_backbone`.
    """
    if ":" not in name:
        choose_one(name.partition(".")[0], timm.list_models(), "backbone")
    kwargs = {"dynamic_img_size": True, **({"drop_path_rate": drop_path} if drop_path else {}), **kwargs}
    try:
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **kwargs)
    except Exception as error:  # timm's models stumble over odd options and folders in many ways
        if isinstance(error, TypeError) and re.search("dynamic_img_size|global_pool", str(error)):
            raise _no_vit(name, head) from None
        raise _refusal(name, error, None) from None
    if not isinstance(backbone, VisionTransformer | Eva):
        raise _no_vit(name, head)
    return backbone


def _no_vit(name, head):
    return InputError(f"head {head} reads plain ViTs, such as vit_small_patch16_dinov3; found backbone {name}")


def _sizes(known, input_size):
    """The options of timm, one after another, that make a model take images of any size, or else of `input_size`."""
    if known is not None and not known.fixed_input_size:
        return [{}]
    fixed = [] if input_size is None else [{"img_size": input_size}]
    return [{"strict_img_size": False}, {"dynamic_img_size": True}, *fixed, {}]


def _refusal(name, error, output_stride):
    """InputError for the `error` that timm raised."""
    if isinstance(error, TypeError):
        if "output_stride" in str(error):
            return _no_output_stride(name, output_stride)
        return InputError(f"backbone {name} does not take one of the options given for it: {first_line(error)}")
    if isinstance(error, AssertionError):
        if output_stride not in (None, 32) and not str(error):
            return _no_output_stride(name, output_stride)
        return InputError(f"backbone {name} gives no four feature maps: {first_line(error)}")
    if isinstance(error, IndexError):  # the model has fewer maps than are asked for
        return InputError(f"backbone {name} gives no four feature maps; take another backbone")
    return InputError(f"backbone {name} cannot be made: {first_line(error)}")


def _no_output_stride(name, output_stride):
    return InputError(
        f"backbone {name} has no output stride {output_stride}: leave it out (32), or take one that can be dilated, such "
        "as a ResNet, ResNeSt or ConvNeXt"
    )


def _check_strides(backbone, name, output_stride):
    strides = backbone.feature_info.reduction()
    if output_stride not in (None, 32) and strides == list(STRIDES):
        raise _no_output_stride(name, output_stride)
    if strides != [min(stride, output_stride or 32) for stride in STRIDES] and not is_plain(backbone):
        raise InputError(
            f"backbone {name} has feature maps of strides {strides}; expected 4, 8, 16 and 32, or one stride for all: "
            "take another backbone"
        )


def _dilate_resnest(backbone):
    """Dilate as PyTorch-Encoding, encoding/models/backbone/resnet.py, does and its published weights were trained.

    Where a stage keeps its size, its first block still averages over 3x3, and its shortcut does not average; timm has
    it the other way round. None of these layers has parameters.
    """
    strides = backbone.feature_info.reduction()
    averaged = backbone["layer2"][0]  # strided in any case: shows whether the block averages before or after its conv2
    for i in (2, 3):
        if strides[i] == strides[i - 1]:
            block = backbone[f"layer{i + 1}"][0]
            for name in ("avd_first", "avd_last"):
                if getattr(averaged, name) is not None:
                    setattr(block, name, nn.AvgPool2d(3, stride=1, padding=1))
            block.downsample[0] = nn.Identity()


def is_plain(backbone):
    """Whether all maps have one stride, as a ViT's."""
    return len(set(backbone.feature_info.reduction())) == 1


def size_multiple(backbone):
    """What height and width of the images must be a multiple of."""
    if _architecture(backbone).startswith(JOINING):
        return STRIDES[-1]
    return backbone.feature_info.reduction()[0] if backbone.pretrained_cfg.get("fixed_input_size") else 1


def stage_norms(backbone, channels, stages):
    """A LayerNorm for each map that is read, of ConvNeXt and ConvNeXt V2; None for other backbones.

    channels: of the four maps. stages: which are read, numbered from 0.
    Source: ConvNeXt, semantic_segmentation/backbone/convnext.py.
    """
    if not _architecture(backbone).startswith("convnext"):
        return None
    return nn.ModuleList(LayerNorm2d(width) if i in stages else nn.Identity() for i, width in enumerate(channels))


def maps_of(backbone, images):
    """The four feature maps (B, C_i, H_i, W_i)."""
    maps = pooled(backbone, images)  # ResNeSt's attention pools to 1x1
    channels_last = getattr(backbone, "output_fmt", Format.NCHW) == Format.NHWC
    return [x.permute(0, 3, 1, 2) for x in maps] if channels_last else maps


def set_grad_checkpointing(backbone, enable):
    """As of timm's models, which a feature extractor may hold as `model`. AttributeError or AssertionError without it."""
    body = backbone if hasattr(backbone, "set_grad_checkpointing") else backbone.model
    body.set_grad_checkpointing(enable)


def no_weight_decay(backbone):
    """Names of position embeddings, tokens and such."""
    plain, prefix = (backbone.model, "model.") if hasattr(backbone, "model") else (backbone, "")
    names = plain.no_weight_decay() if hasattr(plain, "no_weight_decay") else ()
    return {f"{prefix}{name}" for name in names}


def _architecture(backbone):
    return (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or ""
