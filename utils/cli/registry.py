"""Registries: what people add to. Each is a dict in the __init__ of its folder, which imports nothing, so that the command
line can list the names before torch is imported.

    segmentation_networks.HEADS    utils.sources.RECOGNITION_SETS, SEGMENTATION_SETS    utils.losses.LOSSES
"""

import importlib


def load(place):
    """What "package.module:name" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
