"""Isotropic ConvNeXt (arXiv 2201.03545, section 3.3): as a ViT, patches of 16 x 16 pixels and blocks of one width.

Importing this file registers convnext_isotropic_small, _base and _large with timm, so that `timm.create_model`, --model and
--pretrained know them. Source: ConvNeXt, models/convnext_isotropic.py.
"""

import torch
from timm.layers import NormMlpClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXtBlock, checkpoint_filter_fn
from torch import nn

PATCH = 16  # pixels


class ConvNeXtIsotropic(nn.Module):
    """Images (B, in_chans, H, W) to logits (B, num_classes), or features (B, dim) where num_classes is 0.

    depth: blocks; dim: their width. drop_path_rate: of the last block, less in proportion in those before it. ls_init_value:
    layer scale at the start; 0 or None: there is none, as published for small and base. global_pool: of the head.
    """

    def __init__(
        self, in_chans=3, num_classes=1000, depth=18, dim=384, ls_init_value=None, drop_rate=0.0, drop_path_rate=0.0,
        global_pool="avg",
    ):  # fmt: skip
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dim, dim
        self.grad_checkpointing = False
        self.stem = nn.Conv2d(in_chans, dim, PATCH, PATCH)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(*[ConvNeXtBlock(dim, ls_init_value=ls_init_value or None, drop_path=p) for p in rates])
        self.head = NormMlpClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate)  # norm after the mean
        self.feature_info = [{"num_chs": dim, "reduction": PATCH, "module": "blocks"}]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x):
        x = self.stem(x)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)

    def forward_head(self, x, pre_logits=False):
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    # what timm asks of its models

    def group_matcher(self, coarse=False):
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable=True):
        self.grad_checkpointing = enable

    def get_classifier(self):
        return self.head.fc

    def reset_classifier(self, num_classes, global_pool=None):
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)


def _cfg(url):
    return {
        "url": url, "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (14, 14), "crop_pct": 0.875,
        "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "stem",
        "classifier": "head.fc", "license": "mit",
    }  # fmt: skip


_PUBLISHED = "https://dl.fbaipublicfiles.com/convnext/convnext_iso_{}_1k_224_ema.pth"
default_cfgs = generate_default_cfgs(
    {f"convnext_isotropic_{size}.fb_in1k": _cfg(_PUBLISHED.format(size)) for size in ("small", "base", "large")}
)


def _create(name, pretrained, options):
    return build_model_with_cfg(ConvNeXtIsotropic, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options)


@register_model
def convnext_isotropic_small(pretrained=False, **options):
    return _create("convnext_isotropic_small", pretrained, {"depth": 18, "dim": 384, **options})


@register_model
def convnext_isotropic_base(pretrained=False, **options):
    return _create("convnext_isotropic_base", pretrained, {"depth": 18, "dim": 768, **options})


@register_model
def convnext_isotropic_large(pretrained=False, **options):
    """With layer scale, 1e-6, as published."""
    return _create("convnext_isotropic_large", pretrained, {"depth": 36, "dim": 1024, "ls_init_value": 1e-6, **options})
