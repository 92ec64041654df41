"""Whole tensors out of sharded ones (FSDP2) and back, so that a saved state has one form on any hardware.

Ordinary tensors go through untouched; every process must call these together where the model is sharded.
"""

import torch


def gather(tree):
    """A tensor, or dicts and lists of them, with every sharded tensor whole and on the CPU."""
    if isinstance(tree, dict):
        return {key: gather(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather(value) for value in tree]
    return tree.detach().full_tensor().cpu() if is_sharded(tree) else tree


def shard_like(tensor, like):
    """This process's part of `tensor` (the same on all) if `like` is sharded; otherwise `tensor` itself."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes half a second, which most runs need not spend

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_sharded(value):
    return hasattr(value, "full_tensor")  # a DTensor


def load_model(model, weights):
    """`model.load_state_dict` of whole tensors."""
    current = model.state_dict()
    model.load_state_dict({name: shard_like(t, current[name]) if name in current else t for name, t in weights.items()})


def load_optimizer(optimizer, state):
    """`optimizer.load_state_dict` of whole tensors; its moments are sharded as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = {
        number: {
            key: shard_like(value, parameters[number]) if torch.is_tensor(value) else value for key, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shards})
