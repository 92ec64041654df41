"""UPerNet (arXiv 1807.10221), in one class for UPerNet-ConvNeXt and for PyTorch-Encoding."""

from torch import nn

from segmentation_networks.blocks import initialise_as_mmsegmentation
from segmentation_networks.fpn import FPNHead
from segmentation_networks.options import check_list, check_switch, check_whole
from segmentation_networks.psp import PyramidPooling


class UPerNetHead(FPNHead):
    """A feature pyramid network whose coarsest map went through pyramid pooling first.

    The defaults are UPerNet-ConvNeXt's (ConvNeXt, semantic_segmentation/configs/_base_/models/upernet_convnext.py):
    `channels` 512 in the pyramid network, in each branch of the pooling (pyramid_channels) and in the last 3x3
    convolution (fusion_channels); pool_scales 1, 2, 3, 6. PyTorch-Encoding's (encoding/models/sseg/upernet.py): channels
    256, pyramid_channels a quarter of the last stage's width, fusion_channels 512, align_corners True.

    mmsegmentation: the first weights are drawn as there, and those of an auxiliary head, whose dropout is as there too. Not
    the default: with few updates and a high rate they learn far more slowly than torch's.
    """

    def __init__(
        self,
        in_channels,
        classes,
        *,
        channels=None,
        dropout=0.1,
        align_corners=False,
        pyramid_channels=None,
        fusion_channels=None,
        pool_scales=None,
        mmsegmentation=False,
    ):
        check_whole(channels=channels, pyramid_channels=pyramid_channels)
        check_list(pool_scales=pool_scales)
        check_switch(align_corners=align_corners, mmsegmentation=mmsegmentation)
        channels = channels or 512
        *finer, coarsest = in_channels
        pyramid = PyramidPooling(coarsest, pyramid_channels or channels, pool_scales or (1, 2, 3, 6), align_corners)
        super().__init__(
            [*finer, pyramid.out_channels],
            classes,
            channels=channels,
            dropout=dropout,
            align_corners=align_corners,
            fusion_channels=fusion_channels or channels,
        )
        self.conv5[3] = nn.Dropout2d(dropout)  # whole channels, as in mmsegmentation
        self.extramodule = pyramid
        self.auxiliary = {"mmsegmentation": mmsegmentation}  # options of an auxiliary head beside it
        if mmsegmentation:
            initialise_as_mmsegmentation(self)

    def forward(self, features):
        *finer, coarsest = features
        return super().forward([*finer, self.extramodule(coarsest)])
