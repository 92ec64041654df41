"""UPerNet-ConvNeXt from mmsegmentation's documentation of its heads, under its names."""

import torch
import torch.nn.functional as F
from published_convnext import ChannelsFirst, Original
from torch import nn


class ConvModule(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    def __init__(self, widths, channels, classes, scales=(1, 2, 3, 6)):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(widths[-1], channels, 1)) for scale in scales
        )
        self.bottleneck = ConvModule(widths[-1] + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in widths[:-1])
        self.fpn_bottleneck = ConvModule(len(widths) * channels, channels, 3)

    def forward(self, maps):
        top = maps[-1]
        pyramid = [top] + [resize(branch(top), top.shape[-2:]) for branch in self.psp_modules]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self.bottleneck(torch.cat(pyramid, 1)))
        for i in (3, 2, 1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[-2:])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)] + laterals[3:]
        joined = torch.cat([resize(x, outs[0].shape[-2:]) for x in outs], 1)  # from the finest to the coarsest
        return self.conv_seg(self.fpn_bottleneck(joined))


class FCNHeadMM(nn.Module):
    def __init__(self, width, channels, classes):
        super().__init__()
        self.conv_seg, self.convs = nn.Conv2d(channels, classes, 1), nn.Sequential(ConvModule(width, channels, 3))

    def forward(self, x):
        return self.conv_seg(self.convs(x))


class ConvNeXtMM(Original):
    def __init__(self, depths, dims):
        super().__init__(depths, dims, v2=False)
        del self.norm, self.head
        for stage, dim in enumerate(dims):
            self.add_module(f"norm{stage}", ChannelsFirst(dim, eps=1e-6))

    def forward(self, x):
        maps = []
        for stage, (downsample, blocks) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = blocks(downsample(x))
            maps.append(self.get_submodule(f"norm{stage}")(x))
        return maps


class EncoderDecoder(nn.Module):
    def __init__(self, depths, dims, classes, channels=512, aux_channels=256):
        super().__init__()
        self.backbone = ConvNeXtMM(depths, dims)
        self.decode_head = UPerHead(dims, channels, classes)
        self.auxiliary_head = FCNHeadMM(dims[2], aux_channels, classes)

    def forward(self, images):
        maps = self.backbone(images)
        outputs = {"logits": self.decode_head(maps), "aux": self.auxiliary_head(maps[2])}
        return {name: resize(x, images.shape[-2:]) for name, x in outputs.items()}
