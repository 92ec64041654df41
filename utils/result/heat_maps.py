"""Heat maps: which part of an image a classifier took for its class.

LayerCAM (Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization"): at each place of a
feature map, the sum over channels of the activation times its gradient, where that is positive.
"""

import math

import torch

from utils.result.export import OnlyLogits, open_result

FEWEST_CELLS = 7  # of a side: a coarser map says hardly more than "somewhere in the middle"
AT_ONCE = 8  # images of a forward and backward pass


def heat_maps(folder, pictures, classes, device="cpu"):
    """(N, S, S) float32, 0 to 1 at the hottest place of a picture; or None for models whose stages have no places.

    folder: with the weights of a classifier, such as RUN/best. pictures: list of (S, S, C) uint8, of one side in
    pixels; classes: for each the number of the class that is asked about.
    """
    model, facts = open_result(folder)
    if isinstance(model, OnlyLogits) or len(facts["mean"]) != pictures[0].shape[-1]:
        return None
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    images = torch.stack([(torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std for picture in pictures])
    images = _resized(images, facts["input_size"])  # some models take one size only
    model, maps = model.to(device), []
    for batch, asked in zip(images.split(AT_ONCE), torch.tensor(classes).split(AT_ONCE), strict=True):
        found = layer_cam(model, batch.to(device), asked.to(device))
        if found is None:
            return None
        maps.append(found.cpu())
    return _resized(torch.cat(maps)[:, None], pictures[0].shape[0])[:, 0].numpy()


def _resized(images, side):
    if images.shape[-1] == side:
        return images
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def layer_cam(model, images, classes):
    """(N, H, W) float32 in 0..1 of a timm model in evaluation mode, images (N, C, H, W) and classes (N,) int64; or None."""
    with torch.enable_grad():
        logits, output, view, finer = _run(model, images.requires_grad_())
        if output is None:
            return None
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), output)
    heat = (view(gradient).relu() * view(output)).sum(-1).relu().detach().float()[:, None]  # (N, 1, h, w)
    # Layers that take every second place make the gradient a grid of dots; two means over its period make it even.
    heat = torch.nn.functional.pad(heat, 4 * [finer - 1], mode="reflect")
    for _ in range(2):
        heat = torch.nn.functional.avg_pool2d(heat, finer, stride=1)
    heat = _resized(heat, images.shape[-1])[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _run(model, images):
    """(logits, output of a stage, function of it or of its gradient to (N, h, w, C), how many times finer it is than the last).

    The stage is the last one of at least FEWEST_CELLS x FEWEST_CELLS places, else the first. The last block of a transformer is
    left out: a class token takes nothing from the other tokens after it.
    """
    taken, modules = [], dict(model.named_modules())
    stages = [info for info in getattr(model, "feature_info", None) or [] if info.get("module") in modules]
    hooks = [
        modules[info["module"]].register_forward_hook(
            lambda _module, _inputs, output, channels=info["num_chs"]: taken.append((output, channels))
        )
        for info in stages
    ]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    taken = [(output, channels) for output, channels in taken if isinstance(output, torch.Tensor)]
    if taken and taken[-1][0].ndim == 3:
        taken.pop()
    stages = [(output, view) for output, channels in taken if (view := _places(model, output, channels))]
    fine = [(output, view) for output, view in stages if min(view(output).shape[1:3]) >= FEWEST_CELLS]
    if not stages:
        return logits, None, None, 1
    output, view = fine[-1] if fine else stages[0]
    (last, last_view) = stages[-1]
    return logits, output, view, max(1, round(view(output).shape[1] / last_view(last).shape[1]))


def _places(model, output, channels):
    """A function of the output of a stage of so many channels to (N, h, w, C); None where its places are not known."""
    if output.ndim == 4 and output.shape[1] == channels:
        return lambda tensor: tensor.permute(0, 2, 3, 1)
    if output.ndim == 4 and output.shape[3] == channels:
        return lambda tensor: tensor
    if output.ndim != 3 or output.shape[2] != channels or hasattr(model, "unroll"):  # Hiera's tokens lie in another order
        return None
    for first in (getattr(model, "num_prefix_tokens", 0), 0):  # some models add their class token after the last stage
        side = math.isqrt(output.shape[1] - first)
        if side * side == output.shape[1] - first:
            return lambda tensor, first=first, side=side: tensor[:, first:].unflatten(1, (side, side))
    return None
