"""FCN (arXiv 1411.4038) as in PyTorch-Encoding, encoding/models/sseg/fcn.py."""

import torch
from torch import nn

from segmentation_networks.blocks import GlobalPooling, conv_norm_relu, initialise_as_mmsegmentation, last
from segmentation_networks.options import check_probability, check_switch, check_whole


class FCNHead(nn.Module):
    """A 3x3 convolution of `channels` (default: a quarter of the input's), then the classifier. Also the auxiliary head.

    with_global: beside the 3x3 convolution's output, its mean over the map goes to the classifier too.
    mmsegmentation: dropout leaves out whole channels, and the first weights are drawn, as there.
    """

    stages = (3,)

    def __init__(
        self,
        in_channels,
        classes,
        *,
        channels=None,
        dropout=0.1,
        align_corners=True,
        with_global=False,
        mmsegmentation=False,
    ):
        super().__init__()
        check_whole(channels=channels)
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners, with_global=with_global, mmsegmentation=mmsegmentation)
        width = last(in_channels)
        channels = channels or width // 4
        self.align_corners = align_corners
        self.conv5 = conv_norm_relu(width, channels, 3)
        if with_global:
            self.conv5.append(Concat([nn.Identity(), GlobalPooling(channels, channels)]))
            channels *= 2
        self.conv5.append((nn.Dropout2d if mmsegmentation else nn.Dropout)(dropout)).append(nn.Conv2d(channels, classes, 1))
        self.classifiers = (f"conv5.{len(self.conv5) - 1}",)
        if mmsegmentation:
            initialise_as_mmsegmentation(self)

    def forward(self, features):
        return self.conv5(last(features))  # (B, classes, H, W)


class Concat(nn.ModuleList):
    """The outputs of all its modules for the same input, side by side in the channels."""

    def forward(self, x):
        return torch.cat([module(x) for module in self], 1)
