"""Semantic segmentation networks: a timm backbone and a head. A head is one file, and one line in HEADS.

A head is a torch module that is made as `Head(in_channels, classes, *, channels=None, dropout=0.1, …)` and has

    in_channels     channels of the feature maps of the backbone's stages 1 to 4
    classes         number of classes
    its options     every argument after the `*`; --head_kwargs KEY=VALUE sets one, and options.py checks it. Only
                    `output_stride` is no option: a head that has this argument is given the backbone's, in pixels
    forward         a list of four feature maps (B, in_channels[i], H_i, W_i) -> logits (B, classes, H, W) of the size of one
                    of them, or a pair: these and the logits (B, classes) of which classes are in the image
    stages          which maps forward reads, numbered from 0; the others may be None
    classifiers     names of its modules that depend on the number of classes
    align_corners   how its logits are enlarged to the size of the image
    reads_backbone  may be left out; True: the four maps are the backbone's own, without a pyramid or norms between them, and
                    a plain backbone's after its last norm

A head that works inside the backbone has `network`, the kind of SegmentationNetwork that puts the two together; see eomt.py.

network.py puts a network together; backbones.py knows timm's peculiarities. docs/ADDING.md adds a head.
"""

HEADS = {
    "deeplab": "segmentation_networks.deeplab:DeepLabV3Head",
    "encnet": "segmentation_networks.encnet:EncHead",
    "eomt": "segmentation_networks.eomt:EoMTHead",
    "fcn": "segmentation_networks.fcn:FCNHead",
    "fpn": "segmentation_networks.fpn:FPNHead",
    "linear": "segmentation_networks.linear:LinearHead",
    "psp": "segmentation_networks.psp:PSPHead",
    "upernet": "segmentation_networks.upernet:UPerNetHead",
}
