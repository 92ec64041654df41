"""Semantic segmentation networks: any timm backbone with features, and one head per file."""

from segmentation_networks.network import HEADS, SegmentationNetwork, build_network, classifier_prefixes

__all__ = ["HEADS", "SegmentationNetwork", "build_network", "classifier_prefixes"]
