"""From images to logits per pixel: a timm backbone, a head, and what lies between them."""

import timm
import torch.nn.functional as F
from timm.layers import Format, LayerNorm2d
from torch import nn

from segmentation_networks.deeplab import DeepLabV3Head
from segmentation_networks.encnet import EncHead
from segmentation_networks.fcn import FCNHead, pooled
from segmentation_networks.fpn import FPNHead
from segmentation_networks.psp import PSPHead
from segmentation_networks.upernet import UPerNetHead
from utils.cli.arguments import check_model_kwargs
from utils.cli.errors import InputError, choose_one, first_line

HEADS = {
    "fcn": FCNHead,
    "psp": PSPHead,
    "deeplab": DeepLabV3Head,
    "encnet": EncHead,
    "upernet": UPerNetHead,
    "fpn": FPNHead,
}
STRIDES = (4, 8, 16, 32)  # of the stages 1..4
_AUX_STAGE = 2  # the third
_MOST = {"classes": 65_536, "channels": 16_384, "aux_channels": 16_384, "codewords": 4096, "input_size": 65_536}
_OF_HEAD = {
    "with_global": "fcn",
    "atrous_rates": "deeplab",
    "codewords": "encnet",
    "se_loss": "encnet",
    "lateral": "encnet",
}


class SegmentationNetwork(nn.Module):
    """backbone, decode_head and, where there are such, feature_pyramid, feature_norms and auxiliary_head.

    Images (B, 3, H, W) give a dict: "logits" (B, C, H, W); "aux", the same of the auxiliary head; "se" (B, C).
    only_logits: leave the other two out, which only training needs.
    size_multiple: what height and width must be a multiple of for the backbone; images are padded to it with zeros on
    the right and below, and the logits cut back.
    """

    def __init__(self, backbone, decode_head, auxiliary_head=None, feature_norms=None, feature_pyramid=None, size_multiple=1):
        super().__init__()
        self.size_multiple = size_multiple
        self.backbone = backbone
        self.feature_pyramid = feature_pyramid
        self.feature_norms = feature_norms
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, images, only_logits=False):
        height, width = images.shape[-2:]
        right, below = -width % self.size_multiple, -height % self.size_multiple
        features = self.features(F.pad(images, (0, right, 0, below)) if right or below else images)

        def enlarge(logits):
            size, align_corners = (height + below, width + right), self.decode_head.align_corners
            return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)[..., :height, :width]

        logits = self.decode_head(features)
        logits, se = logits if isinstance(logits, tuple) else (logits, None)
        outputs = {"logits": enlarge(logits)}
        if self.auxiliary_head is not None and not only_logits:
            outputs["aux"] = enlarge(self.auxiliary_head(features[_AUX_STAGE]))
        if se is not None and not only_logits:
            outputs["se"] = se
        return outputs

    def features(self, images):
        """The maps of stages 1..4, (B, C_i, H_i, W_i), of images whose size is a multiple of `size_multiple`.

        Of a plain backbone only those that a head reads, None for the others.
        """
        maps = pooled(self.backbone, images)  # ResNeSt's attention pools to 1x1
        if getattr(self.backbone, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if self.feature_pyramid is not None:
            maps = self.feature_pyramid(maps[-1])
        if self.feature_norms is not None:
            maps = [norm(x) for norm, x in zip(self.feature_norms, maps, strict=True)]
        return maps

    def set_grad_checkpointing(self, enable=True):
        """Compute the backbone's activations anew in the backward pass instead of keeping them."""
        body = self.backbone if hasattr(self.backbone, "set_grad_checkpointing") else getattr(self.backbone, "model", None)
        try:
            body.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError):
            raise InputError("timm has no gradient checkpointing for this backbone: leave it off") from None

    def no_weight_decay(self):
        """Names of position embeddings, tokens and such in the backbone, for optim_factory."""
        plain = getattr(self.backbone, "model", None)
        names = plain.no_weight_decay() if hasattr(plain, "no_weight_decay") else ()
        return {f"backbone.model.{name}" for name in names}


class SimplePyramid(nn.Module):
    """Four maps out of one: strides 4, 8, 16 and 32 where the one has 16; the finer ones are narrower.

    Transposed convolutions for the finer two, the map itself, max pooling. `stages`: those that are read; the others
    are None, for parameters without a gradient stop distributed training.
    Source: ViTDet, arXiv 2203.16527, section 3; widths as in its code (detectron2, modeling/backbone/vit.py).
    """

    def __init__(self, width, stages):
        super().__init__()
        quarter, half, *_ = self.widths(width)
        up4 = (nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2))
        scales = (nn.Sequential(*up4), nn.ConvTranspose2d(width, half, 2, 2), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True))
        self.scales = nn.ModuleList(scale if stage in stages else None for stage, scale in enumerate(scales))

    @staticmethod
    def widths(width):
        return [width // 4, width // 2, width, width]

    def forward(self, x):
        return [None if scale is None else scale(x) for scale in self.scales]


def build_network(
    backbone,
    head,
    classes,
    *,
    output_stride=None,
    aux=False,
    aux_channels=None,
    channels=None,
    dropout=0.1,
    pretrained=False,
    drop_path=0.0,
    se_loss=False,
    lateral=False,
    codewords=None,
    with_global=False,
    atrous_rates=None,
    align_corners=None,
    input_size=None,
    backbone_kwargs=(),
    head_kwargs=(),
):
    """SegmentationNetwork of timm's `backbone` and one of HEADS for `classes` (a number).

    Hierarchical backbones give their stages of stride 4, 8, 16 and 32, dilated down to `output_stride` (8, 16 or 32)
    where they can be; ViT-type ones, whose maps all have one stride, go through a SimplePyramid. ConvNeXt and
    ConvNeXt V2 get a LayerNorm on each stage that is read.
    aux: an FCN head on stage 3, of `aux_channels` (default: a quarter of its width; UPerNet-ConvNeXt has 256).
    None stands for the head's own default: channels, codewords, align_corners, and atrous_rates, which are 12, 24, 36
    at output stride 8, half at 16 (DeepLabV3, section 4) and a quarter at 32. head_kwargs: its other options, as
    pyramid_channels of upernet. input_size: pixels, for backbones that are built for one size of images.
    Norms are BatchNorm2d; turn them into SyncBN with nn.SyncBatchNorm.convert_sync_batchnorm.
    Raises InputError for an unknown name (with near ones), for an option that head or backbone do not have, and for
    pretrained weights that cannot be had.
    Source: PyTorch-Encoding, encoding/models/sseg; ConvNeXt, semantic_segmentation.
    """
    check_settings(
        backbone, head, classes, output_stride=output_stride, channels=channels, aux_channels=aux_channels, codewords=codewords,
        input_size=input_size, aux=aux, se_loss=se_loss, lateral=lateral, with_global=with_global, align_corners=align_corners,
        dropout=dropout, drop_path=drop_path, atrous_rates=atrous_rates, backbone_kwargs=backbone_kwargs,
        head_kwargs=head_kwargs,
    )  # fmt: skip
    options = {"with_global": with_global, "atrous_rates": atrous_rates, "codewords": codewords}
    options |= {"se_loss": se_loss, "lateral": lateral}
    options = {name: value for name, value in options.items() if value not in (None, False)}
    for name in options:
        if _OF_HEAD[name] != head:
            raise InputError(f"head {head} has no {name}, which belongs to {_OF_HEAD[name]}: leave it out, or take that head")
    if head == "deeplab" and atrous_rates is None:  # of the published output stride 8, in pixels of the image
        options["atrous_rates"] = [rate * 8 // (output_stride or 32) for rate in (12, 24, 36)]
    if align_corners is not None:
        options["align_corners"] = align_corners

    body = _create_backbone(backbone, output_stride, pretrained, drop_path, input_size, dict(backbone_kwargs))
    widths = body.feature_info.channels()
    plain = len(set(body.feature_info.reduction())) == 1
    if plain:
        widths = SimplePyramid.widths(widths[-1])
    try:
        decode_head = HEADS[head](widths, classes, channels=channels, dropout=dropout, **options, **dict(head_kwargs))
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"head {head} does not take one of the options given for it: {first_line(error)}") from None
    auxiliary_head = None
    if aux:
        auxiliary_head = FCNHead(widths[_AUX_STAGE], classes, channels=aux_channels, dropout=dropout)
    elif aux_channels:
        raise InputError(f"aux_channels {aux_channels} without an auxiliary head: ask for one, or leave it out")

    stages = {*decode_head.stages, *([_AUX_STAGE] if aux else [])}
    pyramid = SimplePyramid(widths[-1], stages) if plain else None
    norms = None
    if _architecture(body).startswith("convnext"):
        norms = nn.ModuleList(LayerNorm2d(width) if i in stages else nn.Identity() for i, width in enumerate(widths))
    multiple = body.feature_info.reduction()[0] if body.pretrained_cfg.get("fixed_input_size") else 1
    return SegmentationNetwork(body, decode_head, auxiliary_head, norms, pyramid, multiple)


def check_settings(backbone, head, classes, **options):
    """InputError for what build_network cannot take: words for numbers, sizes that no network has.

    Names and combinations it finds by itself.
    """
    if not isinstance(backbone, str):
        raise InputError(f"backbone {backbone}: expected a name that timm knows")
    if not isinstance(head, str):
        raise InputError(f"head {head}: expected one of {', '.join(HEADS)}")
    choose_one(head, HEADS, "head")
    for name, value in {"classes": classes, **options}.items():
        if name == "output_stride":
            fits, wanted = value in (None, 8, 16, 32) and not isinstance(value, float), "8, 16 or 32"
        elif name in _MOST:
            fits, wanted = _is_whole(value, 1, _MOST[name]), f"a whole number, 1 to {_MOST[name]:,}"
            fits = fits or (value is None and name != "classes")
        elif name in ("dropout", "drop_path"):
            fits, wanted = isinstance(value, int | float) and 0 <= value < 1, "a share below 1"
        elif name == "atrous_rates":
            fits = value is None or (isinstance(value, list | tuple) and all(_is_whole(rate, 1, 1024) for rate in value))
            wanted = "whole numbers, 1 to 1,024"
        elif name in ("backbone_kwargs", "head_kwargs"):
            try:
                check_model_kwargs(dict(value), name)
            except (TypeError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{name} {value}: expected names and values") from None
            continue
        else:
            fits, wanted = value is None or isinstance(value, bool), "true or false"
        if not fits:
            raise InputError(f"{name.replace('_', ' ')} {value}: expected {wanted}")


def _is_whole(value, least, most):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def classifier_prefixes(network):
    """Beginnings of the parameter names that depend on the number of classes, such as "decode_head.conv5.4."."""
    heads = {"decode_head": network.decode_head, "auxiliary_head": network.auxiliary_head}
    return tuple(f"{name}.{module}." for name, head in heads.items() if head is not None for module in head.classifiers)


# --- backbones --------------------------------------------------------------------------------------------------------


def _strides(output_stride):
    return [min(stride, output_stride or 32) for stride in STRIDES]


def _architecture(backbone):
    return (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or ""


def _create_backbone(name, output_stride, pretrained, drop_path, input_size, kwargs):
    """timm's feature extractor `name`: its last four maps."""
    by_name = ":" not in name  # no hf-hub: or local-dir: before it
    if by_name:
        choose_one(name.partition(".")[0], timm.list_models(), "backbone")
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    if output_stride not in (None, 32):
        kwargs["output_stride"] = output_stride
    try:
        known = timm.models.get_pretrained_cfg(name) if by_name else None
    except RuntimeError as error:
        raise InputError(f"backbone {name} cannot be made: {first_line(error)}") from None
    sizes = [{}]
    if known is None or known.fixed_input_size:  # ask for any size of images, in whatever way it can be asked
        sizes = [{"strict_img_size": False}, {"dynamic_img_size": True}]
        sizes += [{"img_size": input_size}] * (input_size is not None) + [{}]
    for size in sizes:
        try:
            backbone = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **size | kwargs
            )
            break
        except TypeError as error:
            if any(option in str(error) for option in size):
                continue
            if "output_stride" in str(error):
                raise _no_output_stride(name, output_stride) from None
            raise InputError(f"backbone {name} does not take one of the options given for it: {first_line(error)}") from None
        except AssertionError as error:
            if "output_stride" in kwargs and not str(error):
                raise _no_output_stride(name, output_stride) from None
            raise InputError(f"backbone {name} gives no four feature maps: {first_line(error)}") from None
        except Exception as error:  # timm's models stumble over odd options and folders in many ways
            raise InputError(f"backbone {name} cannot be made: {first_line(error)}") from None

    strides = backbone.feature_info.reduction()
    if "output_stride" in kwargs and strides == _strides(32):
        raise _no_output_stride(name, output_stride)
    if strides != _strides(output_stride) and len(set(strides)) > 1:
        raise InputError(
            f"backbone {name} has feature maps of strides {strides}; expected 4, 8, 16 and 32, or one stride for all: "
            "take another backbone"
        )
    if _architecture(backbone).startswith("resnest") and "output_stride" in kwargs:
        _dilate_resnest(backbone, strides)
    return backbone


def _no_output_stride(name, output_stride):
    return InputError(
        f"backbone {name} has no output stride {output_stride}: leave it out (32), or take one that can be dilated, such "
        "as a ResNet, ResNeSt or ConvNeXt"
    )


def _dilate_resnest(backbone, strides):
    """Dilate as PyTorch-Encoding, encoding/models/backbone/resnet.py, does and its published weights were trained.

    Where a stage keeps its size, its first block still averages over 3x3, and its shortcut does not average; timm has
    it the other way round. None of these layers has parameters.
    """
    averaged = backbone["layer2"][0]  # strided in any case: shows whether the block averages before or after its conv2
    for i in (2, 3):
        if strides[i] == strides[i - 1]:
            block = backbone[f"layer{i + 1}"][0]
            for name in ("avd_first", "avd_last"):
                if getattr(averaged, name) is not None:
                    setattr(block, name, nn.AvgPool2d(3, stride=1, padding=1))
            block.downsample[0] = nn.Identity()
