"""Four feature maps out of one, for plain backbones such as ViTs."""

from timm.layers import LayerNorm2d
from torch import nn


class SimplePyramid(nn.Module):
    """(B, width, H, W) of stride 16 to maps of stride 4, 8, 16 and 32; the finer ones are narrower.

    Transposed convolutions make the finer two, max pooling the last; the third is the map itself. stages: which are
    read, numbered from 0; the others are None, for parameters without a gradient stop distributed training.
    Source: ViTDet, arXiv 2203.16527, section 3; channels as in its code (detectron2, modeling/backbone/vit.py).
    """

    def __init__(self, width, stages):
        super().__init__()
        quarter, half, *_ = self.widths(width)
        up4 = (nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2))
        scales = (nn.Sequential(*up4), nn.ConvTranspose2d(width, half, 2, 2), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True))
        self.scales = nn.ModuleList(scale if stage in stages else None for stage, scale in enumerate(scales))

    @staticmethod
    def widths(width):
        """Channels of the four maps."""
        return [width // 4, width // 2, width, width]

    def forward(self, x):
        return [None if scale is None else scale(x) for scale in self.scales]
