"""DeepLabV3 (arXiv 1706.05587) as in PyTorch-Encoding, encoding/models/sseg/deeplab.py."""

import torch
from torch import nn

from segmentation_networks.fcn import GlobalPooling, conv_norm_relu, last


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling, a 3x3 convolution, the classifier; `channels` (default: an eighth) throughout.

    atrous_rates: dilations of the 3x3 branches, in pixels of the map; the published ones are for output stride 8.
    """

    stages = (3,)
    classifiers = ("block.4",)

    def __init__(
        self,
        in_channels,
        classes,
        *,
        channels=None,
        dropout=0.1,
        norm=nn.BatchNorm2d,
        align_corners=True,
        atrous_rates=(12, 24, 36),
    ):
        super().__init__()
        width = last(in_channels)
        channels = channels or width // 8
        self.align_corners = align_corners
        self.aspp = ASPP(width, channels, atrous_rates, norm)
        block = conv_norm_relu(channels, channels, 3, norm)
        self.block = nn.Sequential(*block, nn.Dropout(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, features):
        return self.block(self.aspp(last(features)))  # (B, classes, H, W)


class ASPP(nn.Module):
    """A 1x1 branch, one dilated 3x3 branch per rate and the global mean, joined: (B, in, H, W) to (B, out, H, W).

    The branches are b0, b1, … in this order. Raises InputError in training on a single image (the global mean).
    """

    def __init__(self, in_channels, out_channels, atrous_rates, norm=nn.BatchNorm2d):
        super().__init__()
        branches = [conv_norm_relu(in_channels, out_channels, 1, norm)]
        branches += [conv_norm_relu(in_channels, out_channels, 3, norm, dilation=rate) for rate in atrous_rates]
        branches += [GlobalPooling(in_channels, out_channels, norm)]
        self.branches = [f"b{number}" for number in range(len(branches))]
        for name, branch in zip(self.branches, branches, strict=True):
            self.add_module(name, branch)
        joined = conv_norm_relu(len(branches) * out_channels, out_channels, 1, norm)
        self.project = nn.Sequential(*joined, nn.Dropout2d(0.5))  # as published; `dropout` is the classifier's

    def forward(self, x):
        return self.project(torch.cat([getattr(self, name)(x) for name in self.branches], 1))
