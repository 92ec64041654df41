"""What the tests of results share: the folder of a tiny model's weights, as training leaves it."""

import torch

from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model, timm_config
from utils.run.checkpoint import export_weights

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}  # of a ConvNeXt
NORM = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def write_result(
    folder, classes, *, name="convnextv2_atto", model_kwargs=TINY, input_size=32, crop_pct=1.0, crop_mode="center"
):
    """Write config.json and model.safetensors of a timm model whose every number is shaken; returns the folder."""
    options = ModelOptions(model=name, model_kwargs=tuple(model_kwargs.items()))
    model = build_model(options, classes, input_size=input_size)
    view = {"input_size": input_size, "crop_pct": crop_pct, "crop_mode": crop_mode, **NORM}
    config = timm_config(model, name, classes, **view, model_kwargs=options.model_kwargs)
    export_weights(folder, shaken(model).state_dict(), config)
    return folder


def shaken(model):
    """`model` with every parameter and statistic away from 0 and 1, so that none of them can get lost unseen."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
    return model
