"""Isotropic ConvNeXts: a stem of patches as a ViT's, then blocks of one width at one resolution.

Source: "A ConvNet for the 2020s" (arXiv 2201.03545), section 3.3 and table 2; ConvNeXt, models/convnext_isotropic.py.
The blocks are timm's ConvNeXt blocks, so that parameters have the names that they have in timm's other ConvNeXts.
"""

import re

import torch
from timm.layers import LayerNorm, NormMlpClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXtBlock
from torch import nn

PATCH = 16  # pixels of the image per pixel of the feature map


class ConvNeXtIsotropic(nn.Module):
    """Images (B, in_chans, H, W) to logits (B, num_classes). H and W need not be multiples of 16: the rest is left out.

    depth, dim: number of blocks and their width. ls_init_value: layer scale at the start; None or 0: there is none.
    drop_path_rate: of the last block; it grows in equal steps from 0 of the first. drop_rate: dropout before the classifier.
    """

    def __init__(
        self, in_chans=3, num_classes=1000, global_pool="avg", *, depth=18, dim=384, ls_init_value=None, drop_rate=0.0,
        drop_path_rate=0.0,
    ):  # fmt: skip
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dim, dim
        self.grad_checkpointing = False
        self.stem = nn.Conv2d(in_chans, dim, PATCH, PATCH)
        self.blocks = nn.Sequential(
            *[
                ConvNeXtBlock(dim, ls_init_value=ls_init_value or None, drop_path=rate, norm_layer=LayerNorm)
                for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            ]
        )
        self.head = NormMlpClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.feature_info = [{"num_chs": dim, "reduction": PATCH, "module": f"blocks.{depth - 1}"}]
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse=False):
        """timm's table of layer ids: the stem, and an id per block."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable=True):
        """Whether activations within the blocks are computed again in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self):
        """The linear layer to the classes."""
        return self.head.fc

    def reset_classifier(self, num_classes, global_pool=None):
        """A new classifier; 0 classes: none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, images):
        """(B, dim, H / 16, W / 16)."""
        features = self.stem(images)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, features)
        return self.blocks(features)

    def forward_head(self, features, pre_logits=False):
        """Mean over the places, norm, and the classifier unless `pre_logits`."""
        return self.head(features, pre_logits=pre_logits)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def checkpoint_filter_fn(tensors, model):
    """{timm's name: tensor} of the published weights {name: tensor}, which timm calls for weights that it fetches, too."""
    renamed = {}
    for name, tensor in tensors.get("model", tensors).items():
        name = re.sub(r"\.dwconv\.", ".conv_dw.", name)
        name = re.sub(r"\.pwconv([12])\.", r".mlp.fc\1.", name)
        name = re.sub(r"^norm\.", "head.norm.", name)
        renamed[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)] = tensor
    return renamed


def _published(size):
    """timm's facts of the weights that the authors published for a size."""
    return {
        "url": f"https://dl.fbaipublicfiles.com/convnext/convnext_iso_{size}_1k_224_ema.pth", "num_classes": 1000,
        "input_size": (3, 224, 224), "pool_size": (14, 14), "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "stem", "classifier": "head.fc",
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {f"convnext_isotropic_{size}.fb_in1k": _published(size) for size in ("small", "base", "large")}
)


def _build(name, pretrained, **kwargs):
    return build_model_with_cfg(ConvNeXtIsotropic, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def convnext_isotropic_small(pretrained=False, **kwargs):
    """18 blocks of width 384, as ViT-S."""
    return _build("convnext_isotropic_small", pretrained, **{"depth": 18, "dim": 384, **kwargs})


@register_model
def convnext_isotropic_base(pretrained=False, **kwargs):
    """18 blocks of width 768, as ViT-B."""
    return _build("convnext_isotropic_base", pretrained, **{"depth": 18, "dim": 768, **kwargs})


@register_model
def convnext_isotropic_large(pretrained=False, **kwargs):
    """36 blocks of width 1024, as ViT-L; trained with layer scale, which the other two do without."""
    return _build("convnext_isotropic_large", pretrained, **{"depth": 36, "dim": 1024, "ls_init_value": 1e-6, **kwargs})
