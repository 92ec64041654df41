"""How many pixels get another class than by mmsegmentation's rule: random UPerNets, images of five sizes.

    python benchmarks/published_views.py

The rule is worked out here, in numpy, with the network's logits: an image of whole grey levels, resized edge to edge to as
large as fits into 4 x --side and --side, rounded to whole levels; logits of all of it or of windows; resized to the image.
Columns: the rule of PyTorch-Encoding for resizing and padding, which was in its place before; edges and no padding only;
what --transforms mmseg does.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from segmentation_networks.network import build_network
from utils.cli.segmentation_flags import Augmentation, View
from utils.metrics.published_views import view_options
from utils.metrics.windows import predict

CLASSES, SIZES = 20, ((256, 341), (300, 400), (213, 341), (512, 683), (480, 333))  # height, width
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
NORM = {"mean": tuple(MEAN), "std": tuple(STD)}


def random_network(seed):
    """UPerNet-ConvNeXt whose norms and classifier are random too, so that many classes are found."""
    torch.manual_seed(seed)
    network = build_network("convnext_atto", "upernet", CLASSES, head_kwargs={"channels": 32}).eval()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(network.decode_head.conv5[4].weight, 0, 0.5)
    return lambda images: network(images, only_logits=True)["logits"]


def random_image(height, width, seed):
    """(H, W, 3) uint8, with shapes of 64, 16 and 4 pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = 0
    for number, pixels in enumerate((64, 16, 4), 1):
        coarse = torch.rand(1, 3, height // pixels, width // pixels, generator=generator)
        image = image + F.interpolate(coarse, (height, width), mode="bicubic") / number
    image = (image - image.min()) / (image.max() - image.min())
    return (image[0] * 255).byte().permute(1, 2, 0).numpy()


def normalised(image):
    """(H, W, 3) to (1, 3, H, W) float32"""
    return torch.from_numpy(((image / 255 - MEAN) / STD).transpose(2, 0, 1)).float()[None]


def bilinear(old, new):
    """(new, old) weights of a row of pixels, edge to edge."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        low = int(np.floor(place))
        weights[i, max(low, 0)] += 1 - (place - low)
        weights[i, min(low + 1, old - 1)] += place - low
    return weights


@torch.no_grad()
def published(logits_of, image, mode, side):
    """(H, W) int64: the class of each pixel."""
    shape = image.shape[:2]
    factor = min(4 * side / max(shape), side / min(shape))
    height, width = size = tuple(int(length * factor + 0.5) for length in shape)
    resized = np.einsum("ph,qw,hwc->pqc", *map(bilinear, shape, size), image.astype(float), optimize=True)
    images = normalised(np.floor(resized + 0.5))
    if mode == "whole":
        logits = logits_of(images)
    else:
        stride, logits, count = int(side * 2 / 3), torch.zeros(1, CLASSES, *size), torch.zeros(size)
        for i in range(max(height - side + stride - 1, 0) // stride + 1):
            for j in range(max(width - side + stride - 1, 0) // stride + 1):
                bottom, right = min(i * stride + side, height), min(j * stride + side, width)
                window = np.s_[max(bottom - side, 0) : bottom, max(right - side, 0) : right]
                logits[:, :, *window] += logits_of(images[:, :, *window])
                count[window] += 1
        logits /= count
    return F.interpolate(logits, shape, mode="bilinear", align_corners=False).argmax(1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="pixels of the short side, and of a window")
    side = parser.parse_args().side
    print("| mode | image | before | edges, no padding | now |\n|---|---|---|---|---|")
    for mode in ("slide", "whole"):
        for seed, size in enumerate(SIZES):
            logits_of, image = random_network(seed), random_image(*size, seed)
            settings = Augmentation(transforms="mmseg", crop_size=side, base_size=side)
            now = view_options(settings, View(eval_mode=mode), classes=CLASSES, **NORM)
            edges = now | {"whole_levels": False}
            before = edges | {"align_corners": True, "edge": "pad" if mode == "whole" else "shift"}
            expected, images = published(logits_of, image, mode, side), normalised(image)
            found = [predict(logits_of, images, **view).argmax(1)[0] for view in (before, edges, now)]
            shares = [f"{100 * (classes != expected).float().mean().item():.2f} %" for classes in found]
            print(f"| {mode} | {size[0]} x {size[1]} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
