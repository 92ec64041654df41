"""The timm model of a run, and the config.json with which timm opens its weights again."""

import contextlib
import math
import os

import safetensors
import timm
import torch

import recognition_networks.convnext_isotropic  # these two register with timm
import recognition_networks.dinov3_probe
from utils.cli.arguments import check_model_kwargs
from utils.cli.errors import InputError, choose_one, first_line
from utils.model.as_trained import as_trained
from utils.model.sizes import channels_of, check_size


def build_model(options, classes, *, input_size, pretrained=False):
    """timm model `options.model` for the `classes` (list of names).

    options: recognition_flags.ModelOptions. input_size: pixels, for models that are made for one size of images.
    pretrained: with timm's pretrained weights. The classifier's weights are multiplied by `head_init_scale`.
    Raises InputError for an unknown name (with the nearest), for options and a size that the model does not take, and for
    pretrained weights that cannot be had.
    """
    name = options.model
    by_name = ":" not in name  # no hf-hub: or local-dir: before it
    if by_name:
        choose_one(name.partition(".")[0], timm.list_models(), "model")
    kwargs = dict(options.model_kwargs)
    check_model_kwargs(kwargs, "--model_kwargs")
    in_chans = options.in_chans or 3
    if kwargs.setdefault("in_chans", in_chans) != in_chans:
        raise InputError(
            f"--model_kwargs in_chans={kwargs['in_chans']}: give --in_chans, which images are read by, in its place"
        )
    if in_chans == 3:
        del kwargs["in_chans"]  # which is any model's own
    if "num_classes" in kwargs or not kwargs.get("global_pool", "avg"):
        key = "num_classes" if "num_classes" in kwargs else "global_pool"
        raise InputError(f"--model_kwargs {key}={kwargs[key]}: every class has one logit for an image; leave it out")
    if options.layer_scale_init_value:
        kwargs["ls_init_value"] = options.layer_scale_init_value
    if options.last_gamma is not None:
        kwargs["zero_init_last"] = options.last_gamma
    if options.drop_block:
        kwargs["drop_block_rate"] = options.drop_block

    def build(size, pretrained=False):
        known = timm.models.get_pretrained_cfg(name) if by_name else None
        sized = {"img_size": size} if known is not None and known.fixed_input_size else {}
        model = timm.create_model(
            name, pretrained=pretrained, num_classes=len(classes), drop_path_rate=options.drop_path or None, **sized | kwargs
        )
        model.in_chans = in_chans
        return model

    try:
        model = build(input_size, pretrained)
    except TypeError as error:
        raise InputError(f"--model {name} does not take one of the flags given for it: {first_line(error)}") from None
    except Exception as error:  # timm's models stumble over odd options and folders in many ways
        raise InputError(f"--model {name} cannot be made: {first_line(error)}") from None
    if options.layer_scale_init_value == 0 and any(n.endswith(".gamma") for n, _ in model.named_parameters()):
        raise InputError(f"--layer_scale_init_value 0: as published it means no layer scale, and {name} always has one; leave "
                         "it out for the model's own, or take a small value such as 1e-6")  # fmt: skip
    check_size(model, input_size, name, build)
    if options.head_init_scale != 1.0:
        head = model.get_classifier()
        if not isinstance(head, torch.nn.Module):
            raise InputError(f"--head_init_scale: {name} has no single classifier to scale")
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(options.head_init_scale)
    return model


def open_model(folder):
    """The timm model that config.json in `folder` describes, with its model.safetensors, in evaluation mode on the CPU.

    Raises InputError where it describes none, and for weights of another model: before a larger one is built.
    """
    start, path = as_trained(folder), os.path.join(folder, "config.json")
    if start is None or start.network is not None:
        raise InputError(f"{path}: describes no model as timm does; expected a folder such as RUN/best")
    try:
        with safetensors.safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
            held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118, it is no dict
        needed, options = 0, dict(start.evaluation["model_kwargs"])
        # Some models cannot be made without memory; their options are limited all the same.
        with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            sized = timm.create_model(start.evaluation["model"], num_classes=start.number, **options)
            needed = sum(tensor.numel() for tensor in sized.state_dict().values())
        if needed > 2 * held:  # some are resized to the model
            raise InputError(f"{path}: its model has {needed:,} weights, model.safetensors {held:,}; expected those of one run")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        model.in_chans = options.get("in_chans", 3)
        return model
    except InputError:
        raise
    except Exception as error:  # what timm and safetensors raise for files of another making
        raise InputError(f"{folder}: timm cannot open the weights ({type(error).__name__}: {first_line(error)})") from None


def lasting_kwargs(options):
    """{option of timm.create_model: value} with which a model of these ModelOptions has the same weights again."""
    scale = {"ls_init_value": options.layer_scale_init_value} if options.layer_scale_init_value else {}
    bands = {} if options.in_chans in (None, 3) else {"in_chans": options.in_chans}
    return dict(options.model_kwargs) | scale | bands


def _norms_of(model):
    """{"bn_eps": that of the batch norms} of timm's EfficientNets and MobileNets, some of which, as fbnetc_100, timm makes with
    another one where they are to have pretrained weights: as it does when it opens a folder."""
    epsilons = {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    family = type(model).__module__.rpartition(".")[2] in ("efficientnet", "mobilenetv3")
    return {"bn_eps": epsilons.pop()} if family and len(epsilons) == 1 else {}


def timm_config(
    model, name, classes, *, input_size, mean, std, crop_pct, crop_mode, interpolation="bicubic", model_kwargs=(), license=None,
    **beside,
):  # fmt: skip
    """config.json of a timm model `name`, a dict, which timm's `local-dir:` and Hub loaders read beside model.safetensors.

    classes: names. input_size: pixels. mean, std, crop_pct, crop_mode, interpolation: of the transform for evaluation.
    license: of the weights, where it is known. beside: what else is kept, such as tta_flip, which timm passes over.
    """
    cfg = model.pretrained_cfg
    kwargs = _norms_of(model) | dict(model_kwargs)
    module = type(model).__module__
    if cfg.get("fixed_input_size"):
        kwargs.setdefault("img_size", input_size)
    return {
        "architecture": cfg.get("architecture") or name,
        "num_classes": len(classes),
        "num_features": model.num_features,
        "model_args": kwargs,
        "label_names": classes,
        "pretrained_cfg": {
            "input_size": [channels_of(model), input_size, input_size],
            "fixed_input_size": bool(cfg.get("fixed_input_size")),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(classes),
            # of which timm makes another number of channels, from three: not where the file has them already
            "first_conv": cfg.get("first_conv") if channels_of(model) == 3 else None,
            "classifier": cfg.get("classifier"),
            **({"license": license} if license else {}),
        },
        **({"module": module} if module.startswith(recognition_networks.__name__) else {}),  # what timm does not have
        **beside,
    }
