"""Models that FSDP2 shards: made ready, and their tensors made whole and sharded again, so that a saved state has one form.

Ordinary tensors go through untouched. Where the model is sharded, all processes must call these functions together.
"""

import torch


def prepare(accelerator, model, optimizer):
    """(network, optimizer) of `accelerator.prepare`, with what FSDP2 has to know of the model. Both may be other objects."""
    if accelerator.distributed_type == "FSDP":
        plugin = accelerator.state.fsdp_plugin
        # Each process has the whole model; Accelerate's default, to send it from the first, fails for buffers and for ViTs.
        plugin.cpu_ram_efficient_loading = False
        model._no_split_modules = blocks(model)  # where Accelerate looks for what TRANSFORMER_BASED_WRAP gathers at once
        if accelerator.mixed_precision == "bf16":
            plugin.mixed_precision_policy = bf16_policy(model)
    return accelerator.prepare(model, optimizer)


def bf16_policy(model):
    """MixedPrecisionPolicy of a run in bf16. Gradients are summed in float32, as on whole models.

    Weights are gathered in bf16, in which autocast computes anyway. Batch norm mixes them with averages in float32 and
    cannot: a model with batch norm gathers them in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy  # takes half a second, which most runs need not spend

    with_batch_norm = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return MixedPrecisionPolicy(param_dtype=None if with_batch_norm else torch.bfloat16, reduce_dtype=torch.float32)


def blocks(model):
    """Names of the classes, sorted, of modules that follow one another: a network's stages, and the blocks within them."""
    lists, found = (torch.nn.Sequential, torch.nn.ModuleList), set()
    for module in model.modules():
        children = list(module) if isinstance(module, lists) else []
        kinds = [type(child) for child in children]
        found.update(
            type(child).__name__ for child in children
            if kinds.count(type(child)) > 1 and any(child.children()) and not isinstance(child, (*lists, torch.nn.ModuleDict))
        )  # fmt: skip
    return sorted(found)


def prepare_to_evaluate(accelerator, model):
    """The model on the device, whole on each process, in the precision of the launcher."""
    return accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)


def gather(tree):
    """A tensor, or dicts and lists of them, with every sharded tensor whole and on the CPU."""
    if isinstance(tree, dict):
        return {key: gather(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather(value) for value in tree]
    return whole(tree.detach()).cpu() if is_sharded(tree) else tree


def whole(value):
    """A sharded tensor whole, on its device; any other value as it is."""
    return value.full_tensor() if is_sharded(value) else value


def local(value):
    """This process's part of a sharded tensor, in the same memory; any other value as it is."""
    return value.to_local() if is_sharded(value) else value


def shard_like(tensor, like):
    """This process's part of `tensor` (the same on all) if `like` is sharded; otherwise `tensor` itself."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes half a second, which most runs need not spend

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def reshard(model):
    """Drop the whole weights that FSDP2 keeps for the next pass; it gathers them anew from the shards."""
    for module in model.modules():
        if hasattr(module, "reshard"):  # an FSDPModule
            module.reshard()


def is_sharded(value):
    return hasattr(value, "full_tensor")  # a DTensor


def load_model(model, weights):
    """`model.load_state_dict` of whole tensors {name: tensor}."""
    current = model.state_dict()
    model.load_state_dict({name: shard_like(t, current[name]) if name in current else t for name, t in weights.items()})


def parameters(optimizer):
    """The parameters by their number in `optimizer_state`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(optimizer):
    """`optimizer.state_dict()` of whole tensors."""
    return gather(optimizer.state_dict())


def load_optimizer(optimizer, state):
    """Put `optimizer_state` into place, after `load_model`: its moments are sharded and laid out as their parameters are.

    The groups keep the options that this run gives them, and take from `state` only how many steps they have counted.
    """
    members, groups = parameters(optimizer), optimizer.state_dict()["param_groups"]
    shards = {
        number: {key: _moment(value, members[number]) if torch.is_tensor(value) else value for key, value in moments.items()}
        for number, moments in state["state"].items()
    }
    for group, saved in zip(groups, state["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key.endswith("step")})  # step, lookahead_step
    optimizer.load_state_dict({**state, "state": shards, "param_groups": groups})


def _moment(value, parameter):
    """A tensor of an optimizer's state, sharded or laid out as the parameter is, for fused kernels walk memory as it lies."""
    if is_sharded(parameter) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return shard_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
