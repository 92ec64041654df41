"""Semantic segmentation networks: a timm backbone and a head. A head is one file and one line here.

network.py puts them together; backbones.py knows timm's peculiarities. See docs/ADDING.md.
"""

HEADS = {
    "deeplab": "segmentation_networks.deeplab:DeepLabV3Head",
    "encnet": "segmentation_networks.encnet:EncHead",
    "fcn": "segmentation_networks.fcn:FCNHead",
    "fpn": "segmentation_networks.fpn:FPNHead",
    "psp": "segmentation_networks.psp:PSPHead",
    "upernet": "segmentation_networks.upernet:UPerNetHead",
}
