"""DINOv3's ViTs with the classifier of its linear probe, which sees the class token beside the mean of the patch tokens.

timm's models of these names pool to one of the two. `--freeze backbone` lets the classifier alone learn.
Source: DINOv3 (arXiv 2508.10104); dinov3, eval/linear.py.
"""

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models.eva import Eva, checkpoint_filter_fn
from torch import nn


class DINOv3Probe(Eva):
    """timm's Eva whose classifier sees [class token, mean of the patch tokens], each after the last norm."""

    def pool(self, x, pool_type=None):
        """(B, tokens, width) to (B, 2 * width)."""
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], 1)

    def reset_classifier(self, num_classes, global_pool=None):
        """A new classifier, its weights normal with deviation 0.01 and its biases 0, as published; 0 classes: none."""
        self.num_classes, self.head_hidden_size = num_classes, 2 * self.embed_dim
        self.head = nn.Linear(2 * self.embed_dim, num_classes, device=self.norm.weight.device) if num_classes else nn.Identity()
        if num_classes:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)


NAMES = tuple(f"vit_{size}_patch16_dinov3" for size in ("small", "small_plus", "base", "large", "huge_plus", "7b"))  # timm's
default_cfgs = generate_default_cfgs({f"{name}_probe.lvd1689m": get_pretrained_cfg(f"{name}.lvd1689m") for name in NAMES})


def _register(name):
    """Register a probe of timm's model `name`, under its name and _probe. It takes the same options."""

    def make(**options):
        model = timm.create_model(name, **options)  # which alone knows width, depth and the rest
        model.__class__ = DINOv3Probe
        model.reset_classifier(model.num_classes)
        return model

    def entry(pretrained=False, **kwargs):
        return build_model_with_cfg(make, entry.__name__, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)

    entry.__name__ = f"{name}_probe"
    register_model(entry)


for name in NAMES:
    _register(name)
