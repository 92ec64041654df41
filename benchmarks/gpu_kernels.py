"""The part of benchmarks/gpu.py that measures the operators of ConvNeXt, and the clocks that all parts use."""

import copy
import statistics
import time

import torch
from timm.models.convnext import ConvNeXtBlock
from torch.utils.flop_counter import FlopCounterMode

from utils.model.processes import use_all_cores

STAGES = ((96, 56, 3), (192, 28, 3), (384, 14, 9), (768, 7, 3))  # channels, pixels, blocks of convnext_tiny at 224 pixels


def kernels(args, device, add):
    """Milliseconds, forward and backward, of a block's operators in bf16 and channels_last, against the least they need.

    That is the larger of two times: of the bytes, each operand read once and each result written once, at the speed of a
    copy, and of the operations at the speed of a large matrix product. Both speeds are measured here. A block is more than
    its operators: the residual, the layer scale, and what autocast converts.
    """
    size, batch = (256, 2) if args.small else (8192, 256)
    large = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    # What the device can do at best: another program may slow one look down.
    product, copied = (min(milliseconds(work, device) for _ in range(3)) for work in (lambda: large @ large, large.clone))
    operations, bandwidth = 2 * size**3 / product * 1e3, 2 * large.nbytes / copied * 1e3
    add(operator="matrix product", stage=f"{size} x {size}", ms=product, operations=operations)
    add(operator="copy", stage=f"{size} x {size}", ms=copied, bandwidth=bandwidth)
    for number, (channels, pixels, blocks) in enumerate(((8, 8, 1), (16, 4, 1)) if args.small else STAGES, start=1):
        shape = (batch, channels, pixels, pixels)
        for name, module, inner in operators(channels):
            module = module.to(device, memory_format=torch.channels_last)
            row = _operator_row(module, _input(shape, inner, device, name), device, channels, operations, bandwidth)
            add(operator=name, stage=f"{number}: {blocks} x {channels} x {pixels} x {pixels}", blocks=blocks, **row)


def operators(channels):
    """(name, module, whether it works on the four times wider inside of a block) in the order of a block."""
    block = ConvNeXtBlock(channels, use_grn=True, ls_init_value=None)
    yield "depthwise 7 x 7", block.conv_dw, False
    yield "layer norm", block.norm, False
    yield "layer norm in bf16", _in_bf16(block.norm), False
    yield "pointwise, wider", block.mlp.fc1, False
    yield "GELU", block.mlp.act, True
    yield "GRN (V2)", block.mlp.grn, True
    yield "pointwise, back", block.mlp.fc2, True
    yield "block of V1", ConvNeXtBlock(channels), False
    yield "block of V2", block, False


def _in_bf16(norm):
    """timm's layer norm as `--fast-norm` of its train.py has it, which autocast does not widen to float32."""
    norm = copy.deepcopy(norm)
    norm._fast_norm = True
    return norm


def _input(shape, inner, device, name):
    """Random images as the operator sees them: NCHW in channels_last for convolutions and blocks, else NHWC."""
    batch, channels, height, width = shape
    images = torch.randn(batch, height, width, 4 * channels if inner else channels, device=device, dtype=torch.bfloat16)
    outside = name.startswith(("depthwise", "block"))
    return (images.permute(0, 3, 1, 2) if outside else images).requires_grad_()


def _operator_row(module, images, device, channels, operations, bandwidth):
    wanted = [images, *module.parameters()]
    with torch.autocast(device.type, torch.bfloat16):
        output = module(images)
        gradient = torch.randn_like(output)

        def both():
            torch.autograd.grad(module(images), wanted, gradient)

        forward, whole = milliseconds(lambda: module(images), device), milliseconds(both, device)
    # Forward: input, output. Backward: gradient of the output, input, gradient of the input.
    moved = 3 * images.nbytes + 2 * output.nbytes + 3 * sum(parameter.nbytes for parameter in module.parameters())
    computed = training_flops(module, images)
    by_bytes, by_operations = moved / bandwidth * 1e3, computed / operations * 1e3
    return {
        "forward ms": forward, "ms": whole, "GB": moved / 1e9, "GFLOP": computed / 1e9, "bandwidth": moved / whole * 1e3,
        "operations": computed / whole * 1e3, "least ms": max(by_bytes, by_operations),
        "bound": "memory" if by_bytes > by_operations else "arithmetic",
    }  # fmt: skip


def training_flops(module, images):
    """Floating point operations of a forward and backward pass: three times the forward's.

    Not what torch counts of both: of a depthwise convolution's weights it counts the gradient once for each pair of channels.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images.float())
    return 3 * counter.get_total_flops()


# --- the device and its clocks --------------------------------------------------------------------------------------


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function, device):
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def milliseconds(function, device, times=12):
    """Median, of the device's own clock where it is a GPU."""
    for _ in range(3):
        function()
    if device.type != "cuda":
        return 1e3 * statistics.median(seconds_of(function, device) for _ in range(3))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in events)


def prepare_device():
    """The GPU, or the CPU with all of its cores."""
    use_all_cores()
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
