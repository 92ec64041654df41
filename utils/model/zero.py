"""DeepSpeed's ZeRO, stages 1 and 2: made ready so that it computes as our other runs do, and its moments whole and back.

Each process keeps and updates one part of every parameter group, which ZeRO has made flat: its parameters one after another,
filled up so that all parts are equally long. Weights stay whole in float32, and bf16 is autocast, as without DeepSpeed; so
averages, evaluation and exported weights need nothing of this file.
"""

import importlib.util

import accelerate
import torch
import torch.distributed

from utils.cli.arguments import InputError

# Optimizers whose update of a number depends on that number's own gradient and moments only.
ELEMENTWISE = set(
    "SGD SGDW Adam AdamW AdamWLegacy NAdam NAdamW NAdamLegacy RAdam Adamax Adagrad RMSprop RMSpropTF Lion Adan".split()
)


def check(accelerator, skip_nonfinite):
    """InputError for what DeepSpeed cannot do here."""
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage not in (1, 2):
        raise InputError(f"DeepSpeed with zero_stage {stage}: expected 1 or 2 (fsdp2.yaml shards weights too)")
    if accelerator.mixed_precision == "fp16":
        raise InputError("DeepSpeed with mixed_precision fp16: expected bf16 or no")
    if skip_nonfinite:
        raise InputError("--skip_nonfinite with DeepSpeed, which updates before we see the gradient: leave it out")


def check_packages():
    """InputError where Accelerate would fail to import what it needs for DeepSpeed."""
    missing = [name for name in ("deepspeed", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"DeepSpeed needs the package {' and '.join(missing)}: pip install {' '.join(missing)}")


def prepare(accelerator, model, optimizer, batch_size, clip_grad):
    """(engine, optimizer): as `accelerator.prepare`, with the clipping and the precision of the run, not DeepSpeed's own."""
    if (name := type(optimizer).__name__) not in ELEMENTWISE:
        raise InputError(
            f"{name} looks at whole tensors, and ZeRO gives it parts of several: choose another --opt, such as adamw, or "
            "launch with accelerate_configs/fsdp2.yaml"
        )
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config.update(train_micro_batch_size_per_gpu=batch_size, gradient_clipping=clip_grad or 0.0)
    model = autocast(accelerator, model)
    config["bf16"] = {"enabled": False}
    return accelerator.prepare(model, optimizer)


def autocast(accelerator, model):
    """The model, on the device, computing in the precision of the launcher, which Accelerate leaves to DeepSpeed."""
    if accelerator.mixed_precision == "bf16":
        in_bf16 = torch.autocast(accelerator.device.type, torch.bfloat16)
        model.forward = accelerate.utils.convert_outputs_to_fp32(in_bf16(model.forward))
    return model.to(accelerator.device)


def is_zero(optimizer):
    return hasattr(optimizer, "single_partition_of_fp32_groups")


def parameters(optimizer):
    """The parameters by their number in a state, as of torch's optimizers: groups one after another."""
    return [parameter for group in optimizer.bit16_groups for parameter in group]


def state_dict(optimizer):
    """What `state_dict` of the optimizer would be without ZeRO, with whole moments on the CPU; all processes call it."""
    flat, state, groups, first = optimizer.optimizer.state_dict(), {}, [], 0
    for place, group in enumerate(flat["param_groups"]):
        members = optimizer.bit16_groups[place]
        numbers = {id(parameter): first + i for i, parameter in enumerate(members)}
        groups.append({**group, "params": list(numbers.values())})
        first += len(members)
        for name, value in flat["state"].get(place, {}).items():
            whole = _whole(optimizer, place, value) if _is_part(optimizer, place, value) else None
            for parameter, start in _places(optimizer, place):
                own = value.clone().cpu() if torch.is_tensor(value) else value
                if whole is not None:
                    own = whole[start : start + parameter.numel()].view(parameter.shape).clone()
                state.setdefault(numbers[id(parameter)], {})[name] = own
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def load_state_dict(optimizer, state):
    """Put a state of `state_dict`, or of an optimizer without ZeRO, into place, after the weights."""
    optimizer.refresh_fp32_params()
    flat, groups, first = {}, [], 0
    for place, group in enumerate(state["param_groups"]):
        members = optimizer.bit16_groups[place]
        numbers = {id(parameter): first + i for i, parameter in enumerate(members)}
        groups.append({**group, "params": [place]})
        first += len(members)
        part = optimizer.single_partition_of_fp32_groups[place]
        begin = part.numel() * torch.distributed.get_rank(optimizer.real_dp_process_group[place])
        for name, value in state["state"].get(numbers[id(members[0])], {}).items():
            if not torch.is_tensor(value) or value.shape != members[0].shape:
                flat.setdefault(place, {})[name] = value  # the same for all, such as the number of the step
                continue
            own = flat.setdefault(place, {})[name] = torch.zeros_like(part)
            for parameter, start in _places(optimizer, place):
                moments = state["state"][numbers[id(parameter)]][name].to(part).flatten()
                low, high = max(start, begin), min(start + parameter.numel(), begin + part.numel())
                if low < high:
                    own[low - begin : high - begin] = moments[low - start : high - start]
    optimizer.optimizer.load_state_dict({**state, "state": flat, "param_groups": groups})


def _places(optimizer, place):
    """[(parameter, where it begins in the flat group)]"""
    found, start = [], 0
    for parameter in optimizer.round_robin_bit16_groups[place]:
        found.append((parameter, start))
        start += parameter.numel()
    return found


def _is_part(optimizer, place, value):
    return torch.is_tensor(value) and value.ndim and value.shape == optimizer.single_partition_of_fp32_groups[place].shape


def _whole(optimizer, place, part):
    """The flat group of all processes' parts, on the CPU."""
    group = optimizer.real_dp_process_group[place]
    part = part.to(optimizer.device)
    whole = part.new_empty(part.numel() * torch.distributed.get_world_size(group))
    torch.distributed.all_gather_into_tensor(whole, part, group=group)
    return whole.cpu()
