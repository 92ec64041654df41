"""PSPNet (arXiv 1612.01105) as in PyTorch-Encoding, encoding/models/sseg/psp.py and encoding/nn/customize.py."""

import torch
import torch.nn.functional as F
from torch import nn

from segmentation_networks.blocks import conv_norm_relu, last, pooled
from segmentation_networks.options import check_probability, check_switch, check_whole


class PSPHead(nn.Module):
    """Pyramid pooling, a 3x3 convolution, the classifier; `channels` (default: a quarter of the input's) in both."""

    stages = (3,)
    classifiers = ("conv5.5",)

    def __init__(self, in_channels, classes, *, channels=None, dropout=0.1, align_corners=True):
        super().__init__()
        check_whole(channels=channels)
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners)
        width = last(in_channels)
        channels = channels or width // 4
        self.align_corners = align_corners
        pyramid = PyramidPooling(width, channels, align_corners=align_corners)
        block = conv_norm_relu(pyramid.out_channels, channels, 3)
        self.conv5 = nn.Sequential(pyramid, *block, nn.Dropout(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, features):
        return self.conv5(last(features))  # (B, classes, H, W)


class PyramidPooling(nn.Module):
    """The map beside its averages over a grid of each of `pool_scales`, these in `channels` (default: a quarter) each.

    (B, in, H, W) to (B, in + len(pool_scales) * channels, H, W). The branches are conv1, conv2, …, as published.
    Raises InputError in training on a single image, for which BatchNorm has no variance.
    """

    def __init__(self, in_channels, channels=None, pool_scales=(1, 2, 3, 6), align_corners=True):
        super().__init__()
        channels = channels or in_channels // 4
        self.pool_scales, self.align_corners = tuple(pool_scales), align_corners
        self.out_channels = in_channels + len(self.pool_scales) * channels
        for number in range(len(self.pool_scales)):
            self.add_module(f"conv{number + 1}", conv_norm_relu(in_channels, channels, 1))

    def forward(self, x):
        maps = [x]
        for scale, branch in zip(self.pool_scales, self.children(), strict=True):
            y = pooled(branch, grid_means(x, scale))
            maps.append(F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=self.align_corners))
        return torch.cat(maps, 1)


def grid_means(x, scale):
    """The means over a grid of scale x scale cells, (B, C, H, W) to (B, C, scale, scale): adaptive average pooling.

    The gradient of torch's adds in no fixed order on GPUs. Where --deterministic asks for one, each cell is a mean of its own.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x, scale)
    rows, columns = ([slice(i * size // scale, -(-(i + 1) * size // scale)) for i in range(scale)] for size in x.shape[-2:])
    means = [x[..., row, column].mean((-2, -1)) for row in rows for column in columns]
    return torch.stack(means, -1).unflatten(-1, (scale, scale))
