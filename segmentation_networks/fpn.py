"""Feature pyramid network for segmentation: FCFPN of PyTorch-Encoding, encoding/models/sseg/fcfpn.py."""

import torch
import torch.nn.functional as F
from torch import nn

from segmentation_networks.blocks import conv_norm_relu
from segmentation_networks.options import check_probability, check_switch, check_whole


class FPNHead(nn.Module):
    """All four stages in `channels` (default 256), added from the coarsest down, joined at the finest, classified.

    fusion_channels: width of the 3x3 convolution that joins them (default 512).
    """

    stages = (0, 1, 2, 3)
    classifiers = ("conv5.4",)

    def __init__(self, in_channels, classes, *, channels=None, dropout=0.1, align_corners=True, fusion_channels=None):
        super().__init__()
        check_whole(channels=channels, fusion_channels=fusion_channels)
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners)
        channels, fusion_channels = channels or 256, fusion_channels or 512
        *finer, coarsest = in_channels
        self.align_corners = align_corners
        self.fpn_lateral = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in finer)
        self.fpn_out = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in finer)
        self.c4conv = conv_norm_relu(coarsest, channels, 3)
        fusion = conv_norm_relu(len(in_channels) * channels, fusion_channels, 3)
        self.conv5 = nn.Sequential(*fusion, nn.Dropout(dropout), nn.Conv2d(fusion_channels, classes, 1))

    def forward(self, features):
        *finer, coarsest = features
        x = self.c4conv(coarsest)
        maps = [x]  # from the coarsest to the finest: the order of the channels that conv5 reads
        for lateral, out, feature in list(zip(self.fpn_lateral, self.fpn_out, finer, strict=True))[::-1]:
            y = lateral(feature)
            x = self.resize(x, y) + y
            maps.append(out(x))
        return self.conv5(torch.cat([self.resize(x, features[0]) for x in maps], 1))  # (B, classes, H, W)

    def resize(self, x, other):
        return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=self.align_corners)
