"""DeepLabV3 (arXiv 1706.05587) as in PyTorch-Encoding, encoding/models/sseg/deeplab.py."""

import torch
from torch import nn

from segmentation_networks.blocks import GlobalPooling, conv_norm_relu, last
from segmentation_networks.options import check_list, check_probability, check_switch, check_whole


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling, a 3x3 convolution, the classifier; `channels` (default: an eighth) throughout.

    atrous_rates: dilations of the 3x3 branches, in pixels of the feature map. The default is 12, 24, 36 at output stride 8,
    half of that at 16 (section 4 of the paper), and a quarter at 32: the same distance in the image.
    """

    stages = (3,)
    classifiers = ("block.4",)

    def __init__(
        self, in_channels, classes, *, channels=None, dropout=0.1, align_corners=True, atrous_rates=None, output_stride=8
    ):
        super().__init__()
        check_whole(channels=channels)
        check_list(atrous_rates=atrous_rates)
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners)
        if atrous_rates is None:
            atrous_rates = [rate * 8 // output_stride for rate in (12, 24, 36)]
        width = last(in_channels)
        channels = channels or width // 8
        self.align_corners = align_corners
        self.aspp = ASPP(width, channels, atrous_rates)
        self.block = nn.Sequential(*conv_norm_relu(channels, channels, 3), nn.Dropout(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, features):
        return self.block(self.aspp(last(features)))  # (B, classes, H, W)


class ASPP(nn.Module):
    """A 1x1 branch, one dilated 3x3 branch per rate and the global mean, joined: (B, in, H, W) to (B, out, H, W).

    The branches are b0, b1, … in this order. Raises InputError in training on a single image (the global mean).
    """

    def __init__(self, in_channels, out_channels, atrous_rates):
        super().__init__()
        branches = [conv_norm_relu(in_channels, out_channels, 1)]
        branches += [conv_norm_relu(in_channels, out_channels, 3, dilation=rate) for rate in atrous_rates]
        branches += [GlobalPooling(in_channels, out_channels)]
        self.branches = [f"b{number}" for number in range(len(branches))]
        for name, branch in zip(self.branches, branches, strict=True):
            self.add_module(name, branch)
        joined = conv_norm_relu(len(branches) * out_channels, out_channels, 1)
        self.project = nn.Sequential(*joined, nn.Dropout2d(0.5))  # as published; `dropout` is the classifier's

    def forward(self, x):
        return self.project(torch.cat([getattr(self, name)(x) for name in self.branches], 1))
