"""The optimizer of a run: layer decay by the model's own layers, the heads' own rate, torch's fused kernels."""

import argparse
import inspect
import warnings

from optim_factory import convnext_depths, create_optimizer, group_table, layer_decay_assigner
from utils.cli.errors import input_errors


def build_optimizer(model, args, *, head_lr_scale=None, fused=True, say=print):
    """(optimizer, rows of its parameter groups as of `group_table`).

    args: has what create_optimizer reads (opt, lr, weight_decay, momentum, …), weight_decay_end, layer_decay,
    layer_decay_type, layer_decay_min_scale and, in segmentation, backbone_warmup_steps. stage_wise, which segmentation has
    unless it is told otherwise, becomes single where the backbone is no ConvNeXt, and a note says so. head_lr_scale: None for a
    recognition model; of a segmentation network, whatever is not the backbone learns so many times as fast, in groups of its
    own. fused: use torch's fused kernels; they neither tell whether a loss scaler left out their step, nor take sharded tensors
    in every optimizer. say: takes a line about what is doubtful. Raises InputError where no rule of layer decay fits the model,
    and for options that the optimizer does not take.
    """
    with input_errors(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        probes = getattr(getattr(model, "decode_head", None), "reads_backbone", False)
        if probes and any(parameter.requires_grad for parameter in model.backbone.parameters()):
            warnings.warn("--model linear: the backbone learns too; --freeze backbone makes it a linear probe", stacklevel=2)
        if args.layer_decay == 1:  # the ids are those of backbone and heads then
            warnings.filterwarnings("ignore", "layer decay does nothing")
        kind = args.layer_decay_type
        if kind == "stage_wise" and args.layer_decay < 1 and not convnext_depths(name for name, _ in model.named_parameters()):
            warnings.warn("layer_decay_type stage_wise is for ConvNeXt: an id per block (single) instead", stacklevel=2)
            kind = "single"
        assigner = layer_decay_assigner(model, args.layer_decay, kind, args.layer_decay_min_scale)
        get_layer_id, get_scale = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        by_layer = (get_layer_id, get_scale)
        if head_lr_scale is not None:
            get_layer_id = get_layer_id or (lambda name: 0)
            by_layer = _with_heads(get_layer_id, get_scale or (lambda layer_id: 1.0), head_lr_scale)
        # A weight decay that starts at 0 still has to tell the groups that will decay from those that never do.
        decay = args.weight_decay or args.weight_decay_end or 0.0
        wanted = argparse.Namespace(**{**vars(args), "weight_decay": decay, "fused": fused})
        try:
            optimizer = create_optimizer(wanted, model, *by_layer)
        except IndexError:
            optimizer = None  # of betas that are too few
        _check_betas(args, optimizer)
        if steps := getattr(args, "backbone_warmup_steps", None):
            heads = {parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")}
            for group in optimizer.param_groups:
                group["late_warmup"] = 0 if heads.intersection(group["params"]) else steps
    for note in notes:
        say(f"note: {note.message}")
    return optimizer, group_table(model, optimizer.param_groups, get_layer_id)


def _check_betas(args, optimizer):
    """ValueError for another number of --opt_betas than the optimizer, None where it could not be made, has itself."""
    kind = type(getattr(optimizer, "_base_optimizer", optimizer))
    usual = inspect.signature(kind).parameters.get("betas") if optimizer is not None else None
    if args.opt_betas and (optimizer is None or (usual and len(args.opt_betas) != len(usual.default))):
        how_many = f"{len(usual.default)}, such as {' '.join(map(str, usual.default))}" if usual else "another number of them"
        raise ValueError(f"--opt_betas {' '.join(map(str, args.opt_betas))}: --opt {args.opt} takes {how_many}")


def can_fuse(accelerator):
    """Whether fused kernels do for these processes: not under a loss scaler (fp16), nor on sharded weights (FSDP)."""
    return accelerator.scaler is None and accelerator.distributed_type != "FSDP"


def _with_heads(get_layer_id, get_scale, head_lr_scale):
    """The two functions where the layers of the heads have negative ids, in the order of the backbone's, and their own rate."""

    def layer_or_head(name):
        return get_layer_id(name) if name.startswith("backbone.") else -1 - get_layer_id(name)

    def scale(layer_id):
        return get_scale(layer_id) if layer_id >= 0 else head_lr_scale * get_scale(-1 - layer_id)

    return layer_or_head, scale
