"""EncNet (arXiv 1803.08904) as in PyTorch-Encoding, encoding/models/sseg/encnet.py and encoding/nn/encoding.py."""

import torch
import torch.nn.functional as F
from torch import nn

from segmentation_networks.blocks import conv_norm_relu, last
from segmentation_networks.options import check_probability, check_switch, check_whole


class EncHead(nn.Module):
    """A 3x3 convolution of `channels` (default 512), the context encoding of it, the classifier.

    codewords: of the encoding layer (default 32).
    se_loss: also predict which classes are in the image; forward then gives (logits, se logits (B, classes)).
    lateral: stages 2 and 3 join before the encoding, at the last stage's size, which is theirs at output stride 8.
    """

    classifiers = ("conv6.1",)

    def __init__(
        self,
        in_channels,
        classes,
        *,
        channels=None,
        dropout=0.1,
        align_corners=True,
        codewords=None,
        se_loss=False,
        lateral=False,
    ):
        super().__init__()
        check_whole(channels=channels)
        check_whole(4096, codewords=codewords)
        check_probability(dropout=dropout)
        check_switch(align_corners=align_corners, se_loss=se_loss, lateral=lateral)
        channels = channels or 512
        self.align_corners, self.lateral = align_corners, lateral
        self.stages = (1, 2, 3) if lateral else (3,)
        self.conv5 = conv_norm_relu(last(in_channels), channels, 3)
        if lateral:
            self.connect = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in in_channels[1:3])
            self.fusion = conv_norm_relu(3 * channels, channels, 3)
        self.encmodule = EncModule(channels, classes, codewords=codewords or 32, se_loss=se_loss)
        self.conv6 = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(channels, classes, 1))
        if se_loss:
            self.classifiers += ("encmodule.selayer",)

    def forward(self, features):
        x = self.conv5(last(features))
        if self.lateral:
            finer = [connect(feature) for connect, feature in zip(self.connect, features[1:3], strict=True)]
            finer = [F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=self.align_corners) for y in finer]
            x = self.fusion(torch.cat([x, *finer], 1))
        x, se = self.encmodule(x)
        logits = self.conv6(x)  # (B, classes, H, W)
        return logits if se is None else (logits, se)


class EncModule(nn.Module):
    """Channels weighted by the context that the encoding layer sums up: (B, C, H, W) to the same, and se logits or None."""

    def __init__(self, in_channels, classes, *, codewords=32, se_loss=False):
        super().__init__()
        self.encoding = nn.Sequential(
            *conv_norm_relu(in_channels, in_channels, 1),
            Encoding(in_channels, codewords),
            nn.BatchNorm1d(codewords),  # of (B, codewords, C)
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Sequential(nn.Linear(in_channels, in_channels), nn.Sigmoid())
        self.selayer = nn.Linear(in_channels, classes) if se_loss else None

    def forward(self, x):
        context = self.encoding(x).mean(1)  # (B, C)
        weights = self.fc(context)[:, :, None, None]
        return F.relu(x + x * weights), None if self.selayer is None else self.selayer(context)


class Encoding(nn.Module):
    """Encoding layer: residuals of all pixels to each codeword, softly assigned and summed; (B, C, H, W) to (B, K, C).

    E_k = sum_i a_ik (x_i - c_k), a_ik = softmax over k of s_k ||x_i - c_k||^2, with s_k learned from within (-1, 0).
    Neither the distances nor the sum need the (B, pixels, K, C) residuals: ||x||^2 - 2 x.c + ||c||^2, and
    sum_i a_ik x_i - (sum_i a_ik) c_k, are matrix products. Source: section 3.1 of the paper; arXiv 1612.02844.
    """

    def __init__(self, in_channels, codewords):
        super().__init__()
        bound = (codewords * in_channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, in_channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, x):
        # never in half precision: the softmax is of small differences between large squares
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            x = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))  # (B, C, N)
            codewords, scale = self.codewords.to(x.dtype), self.scale.to(x.dtype)[:, None]  # (K, C), (K, 1)
            distances = x.square().sum(1, keepdim=True) - 2 * codewords @ x + codewords.square().sum(1, keepdim=True)
            weights = (scale * distances).softmax(1)  # (B, K, N)
            return weights @ x.transpose(1, 2) - weights.sum(2, keepdim=True) * codewords
