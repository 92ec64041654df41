"""The blocks that several heads share. PyTorch-Encoding, encoding/nn and encoding/models/sseg."""

from timm.layers import LayerNorm2d
from torch import nn

from utils.cli.errors import InputError


class GlobalPooling(nn.Module):
    """The mean over the map, through a 1x1 convolution, at every position: (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, out_channels, 1))

    def forward(self, x):
        return pooled(self.gap, x).expand(-1, -1, *x.shape[-2:])


def conv_norm_relu(in_channels, out_channels, kernel_size, dilation=1):
    """Convolution that keeps the map's size, BatchNorm2d and ReLU, as 0, 1 and 2 of a Sequential."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def initialise_as_mmsegmentation(head):
    """First weights of a head whose modules named in `classifiers` are classifiers: their weights normal with standard
    deviation 0.01 and their biases 0, the other convolutions He normal by their outputs, without biases.

    Source: mmsegmentation 0.x, models/decode_heads/decode_head.py; mmcv, cnn/bricks/conv_module.py.
    """
    classifiers = {head.get_submodule(name) for name in head.classifiers}
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module not in classifiers:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for classifier in classifiers:
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)


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
    """The last of a list of channels or feature maps; a single one as it is."""
    return values[-1] if isinstance(values, (list, tuple)) else values


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
