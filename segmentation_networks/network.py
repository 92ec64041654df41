"""From images to logits per pixel: a timm backbone, a head, and what lies between them."""

import inspect

import torch.nn.functional as F
from torch import nn

from segmentation_networks import HEADS, backbones
from segmentation_networks.blocks import SimplePyramid
from segmentation_networks.fcn import FCNHead
from segmentation_networks.options import check_probability, check_whole, head_options, keywords
from utils.cli.errors import InputError, choose_one, input_errors
from utils.cli.registry import load

AUX_STAGE = 2  # the third


class SegmentationNetwork(nn.Module):
    """backbone, decode_head and, where there are such, feature_pyramid, feature_norms and auxiliary_head.

    Images (B, 3, H, W) give a dict: "logits" (B, classes, H, W); "aux", the same of the auxiliary head; "se" (B, classes).
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

        def enlarge(logits, head):
            size = (height + below, width + right)
            return F.interpolate(logits, size, mode="bilinear", align_corners=head.align_corners)[..., :height, :width]

        logits = self.decode_head(features)
        logits, se = logits if isinstance(logits, tuple) else (logits, None)
        outputs = {"logits": enlarge(logits, self.decode_head)}
        if self.auxiliary_head is not None and not only_logits:
            outputs["aux"] = enlarge(self.auxiliary_head(features[AUX_STAGE]), self.auxiliary_head)
        if se is not None and not only_logits:
            outputs["se"] = se
        return outputs

    def features(self, images):
        """The maps of stages 1 to 4, (B, C_i, H_i, W_i), of images whose size is a multiple of `size_multiple`.

        Of a plain backbone only those that a head reads, None for the others.
        """
        maps = backbones.maps_of(self.backbone, images)
        if self.feature_pyramid is not None:
            maps = self.feature_pyramid(maps[-1])
        if self.feature_norms is not None:
            maps = [norm(x) for norm, x in zip(self.feature_norms, maps, strict=True)]
        return maps

    def set_grad_checkpointing(self, enable=True):
        """Compute the backbone's activations again in the backward pass instead of keeping them."""
        backbones.set_grad_checkpointing(self.backbone, enable)

    def follow(self, schedule, updates):
        """The `schedule`, a function of the number of an update, of `updates`; a network may learn from it how far a run is."""
        return schedule

    def no_weight_decay(self):
        """Names of position embeddings, tokens and such in the backbone, for optim_factory."""
        return {f"backbone.{name}" for name in backbones.no_weight_decay(self.backbone)}


def build_network(
    backbone,
    head,
    classes,
    *,
    head_kwargs=(),
    aux_kwargs=None,
    backbone_kwargs=(),
    output_stride=None,
    drop_path=0.0,
    input_size=None,
    pretrained=False,
):
    """SegmentationNetwork of timm's model `backbone` and the `head`, one of HEADS, for a number of `classes`.

    Hierarchical backbones give their stages of stride 4, 8, 16 and 32; ViT-type ones, whose maps all have one stride, go
    through a SimplePyramid. ConvNeXt and ConvNeXt V2 get a LayerNorm on each stage that is read. A head with `reads_backbone`
    gets the backbone's maps without either, and one with a `network` of its own works inside a plain ViT. Norms of the heads
    are BatchNorm2d.

    head_kwargs: options of the head, as a dict or as pairs of name and value.
    aux_kwargs: such options of FCNHead, for an auxiliary head on stage 3; None: no auxiliary head.
    backbone_kwargs: such options of timm.create_model.
    output_stride: pixels of the image per pixel of the last map, 8, 16 or 32 (the default): later stages are dilated.
    drop_path: probability that the backbone's last block is left out for an image, from 0 up to 1.
    input_size: pixels, for backbones that are made for one size of images.
    pretrained: the backbone has timm's pretrained weights.

    Raises InputError for an unknown name (with the nearest), for an option that head or backbone do not have, for a
    value out of its range, and for pretrained weights that cannot be had.
    Source: PyTorch-Encoding, encoding/models/sseg; ConvNeXt, semantic_segmentation.
    """
    _check(backbone, head, classes, output_stride, drop_path, input_size)
    head_class = load(HEADS[head])
    head_kwargs = head_options(head_class, head_kwargs, "head_kwargs", f"head {head}")
    if "output_stride" in inspect.signature(head_class).parameters:
        head_kwargs["output_stride"] = output_stride or 32
    if aux_kwargs is not None:
        aux_kwargs = head_options(FCNHead, aux_kwargs, "aux_kwargs", "the auxiliary head")
    backbone_kwargs = keywords(backbone_kwargs, "backbone_kwargs")
    if hasattr(head_class, "network"):
        if aux_kwargs is not None or output_stride is not None:
            raise InputError(f"head {head} works inside the backbone: leave out --aux and --output_stride")
        body = backbones.create_vit(backbone, backbone_kwargs, head=head, drop_path=drop_path, pretrained=pretrained)
        with input_errors(f"head {head}: "):
            decode_head = head_class(body.embed_dim, classes, max(body.patch_embed.patch_size), **head_kwargs)
            network = head_class.network(body, decode_head)
        network.in_chans = backbone_kwargs.get("in_chans", 3)
        return network
    direct = getattr(head_class, "reads_backbone", False)
    body = backbones.create_backbone(
        backbone, backbone_kwargs, output_stride=output_stride, drop_path=drop_path, input_size=input_size,
        pretrained=pretrained, normed=direct,
    )  # fmt: skip

    channels, plain = body.feature_info.channels(), backbones.is_plain(body) and not direct
    if plain:
        channels = SimplePyramid.widths(channels[-1])
    auxiliary_head = None
    with input_errors(f"head {head}: "):
        decode_head = head_class(channels, classes, **head_kwargs)
        stages = {*decode_head.stages}
        if aux_kwargs is not None:
            beside = {"align_corners": decode_head.align_corners, **getattr(decode_head, "auxiliary", {})}
            auxiliary_head = FCNHead(channels[AUX_STAGE], classes, **beside | aux_kwargs)
            stages.add(AUX_STAGE)
    pyramid = SimplePyramid(channels[-1], stages) if plain else None
    norms = None if direct else backbones.stage_norms(body, channels, stages)
    network = SegmentationNetwork(body, decode_head, auxiliary_head, norms, pyramid, backbones.size_multiple(body))
    network.in_chans = backbone_kwargs.get("in_chans", 3)
    return network


def _check(backbone, head, classes, output_stride, drop_path, input_size):
    for name, value in (("backbone", backbone), ("head", head)):
        if not isinstance(value, str):
            raise InputError(f"{name} {value}: expected a name")
    choose_one(head, HEADS, "head")
    if classes is None:
        raise InputError("classes: found none; expected their number")
    check_whole(65_536, classes=classes, input_size=input_size)
    check_probability(drop_path=drop_path)
    if output_stride is not None and (isinstance(output_stride, float) or output_stride not in (8, 16, 32)):
        raise InputError(f"output stride {output_stride}: expected 8, 16 or 32")


def classifier_prefixes(network):
    """Beginnings of the parameter names that depend on the number of classes, such as "decode_head.conv5.4."."""
    heads = {"decode_head": network.decode_head, "auxiliary_head": network.auxiliary_head}
    return tuple(f"{name}.{module}." for name, head in heads.items() if head is not None for module in head.classifiers)
