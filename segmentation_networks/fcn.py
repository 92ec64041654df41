"""FCN (arXiv 1411.4038) as in PyTorch-Encoding, encoding/models/sseg/fcn.py, and the blocks that several heads share.

Every head is `Head(in_channels, classes, ...)` with the widths of the backbone's stages 1..4 (or, where the head reads
only the last, one number). Its forward takes the list of feature maps and gives logits at their resolution. It says
which maps it reads (`stages`), which of its modules depend on the number of classes (`classifiers`), and how its logits
are to be enlarged (`align_corners`).
"""

import torch
from torch import nn

from utils.cli.errors import InputError


class FCNHead(nn.Module):
    """A 3x3 convolution of `channels` (default: a quarter of the input's), then the classifier.

    with_global: beside the 3x3 convolution's output, its mean over the map goes to the classifier too.
    """

    stages = (3,)

    def __init__(
        self, in_channels, classes, *, channels=None, dropout=0.1, norm=nn.BatchNorm2d, align_corners=True, with_global=False
    ):
        super().__init__()
        width = last(in_channels)
        channels = channels or width // 4
        self.align_corners = align_corners
        self.conv5 = conv_norm_relu(width, channels, 3, norm)
        if with_global:
            self.conv5.append(Concat([nn.Identity(), GlobalPooling(channels, channels, norm)]))
            channels *= 2
        self.conv5.append(nn.Dropout(dropout)).append(nn.Conv2d(channels, classes, 1))
        self.classifiers = (f"conv5.{len(self.conv5) - 1}",)

    def forward(self, features):
        return self.conv5(last(features))  # (B, classes, H, W)


class GlobalPooling(nn.Module):
    """The mean over the map through a 1x1 convolution, at every position again: (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, norm=nn.BatchNorm2d):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, out_channels, 1, norm))

    def forward(self, x):
        return pooled(self.gap, x).expand(-1, -1, *x.shape[-2:])


class Concat(nn.ModuleList):
    """The outputs of all its modules for the same input, side by side in the channels."""

    def forward(self, x):
        return torch.cat([module(x) for module in self], 1)


def conv_norm_relu(in_channels, out_channels, kernel_size, norm=nn.BatchNorm2d, dilation=1):
    """Convolution that keeps the map's size, norm and ReLU, as 0, 1 and 2 of a Sequential."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, norm(out_channels), nn.ReLU(inplace=True))


def pooled(block, x):
    """block(x), where `block` norms maps that were pooled to 1x1; InputError where that leaves BatchNorm one value."""
    try:
        return block(x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "pooling to 1x1 leaves BatchNorm one value per channel to learn from: train with at least two images per "
            "process (--batch_size 2), or with SyncBN over several processes"
        ) from None


def last(values):
    """The last of a list of widths or feature maps; a single one as it is."""
    return values[-1] if isinstance(values, (list, tuple)) else values
