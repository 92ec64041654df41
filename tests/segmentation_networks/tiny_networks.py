"""Segmentation networks that are built and run in a blink."""

import pytest
import torch

from segmentation_networks.network import build_network

BACKBONES = {  # timm's name -> options that make it small; one of each kind
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "resnest14d": {"channels": (8, 16, 24, 32), "stem_width": 8},
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1)},
    "mobilenetv3_small_050": {},
}
HEADS = {"encnet": {"channels": 16}, "upernet": {"channels": 16}, "fpn": {"channels": 8, "fusion_channels": 16}}


def tiny(backbone, head, classes=5, *, backbone_kwargs=None, head_kwargs=(), **options):
    """build_network of a tiny backbone; the other arguments are those of build_network."""
    body = BACKBONES[backbone] if backbone_kwargs is None else backbone_kwargs
    return build_network(
        backbone, head, classes, backbone_kwargs=body, head_kwargs=HEADS.get(head, {}) | dict(head_kwargs), **options
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
