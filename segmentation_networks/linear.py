"""A linear probe: each place of the backbone's own map is classified by itself, as DINOv3 measures what features know.

Source: DINOv3 (arXiv 2508.10104); dinov3, eval/segmentation/models/heads/linear_head.py.
"""

import torch
import torch.nn.functional as F
from torch import nn

from segmentation_networks.options import check_probability, check_switch, check_whole


class LinearHead(nn.Module):
    """Dropout of whole channels, batch norm and a 1x1 convolution, on the last map of the backbone as it comes.

    Of a plain backbone, such as a ViT, the map is that of its last block, after the backbone's last norm. `--freeze backbone`
    makes it the published probe. maps: how many of the last maps are read, side by side in the channels, at the size of
    the finest: those of the last blocks of a plain backbone, of the last stages of any other.
    """

    reads_backbone = True

    def __init__(self, in_channels, classes, *, dropout=0.1, align_corners=False, maps=1):
        super().__init__()
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners)
        check_whole(4, maps=maps)
        self.align_corners, self.stages, self.classifiers = align_corners, tuple(range(4 - (maps or 1), 4)), ("classifier",)
        width = sum(in_channels[stage] for stage in self.stages)
        self.dropout, self.norm = nn.Dropout2d(dropout), nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features):
        finest, *coarser = [features[stage] for stage in self.stages]
        coarser = [F.interpolate(x, finest.shape[-2:], mode="bilinear", align_corners=False) for x in coarser]
        return self.classifier(self.norm(self.dropout(torch.cat([finest, *coarser], 1))))  # (B, classes, H, W)
