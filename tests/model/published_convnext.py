"""ConvNeXt and ConvNeXt V2 from the papers' words, under the names of their published code."""

import itertools

import timm
import torch
import torch.nn.functional as F
from torch import nn

SIZES = {  # model -> depths, dims (arXiv 2201.03545 section 3, 2301.00808 appendix A)
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "convnextv2_atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "convnextv2_femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "convnextv2_pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "convnextv2_nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "convnextv2_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnextv2_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnextv2_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnextv2_huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GRN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):  # (B, H, W, C)
        energy = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * (x * energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class Block(nn.Module):
    def __init__(self, dim, v2):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        if v2:
            self.grn = GRN(4 * dim)
        else:
            self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        y = self.pwconv2(self.grn(y)) if hasattr(self, "grn") else self.gamma * self.pwconv2(y)
        return x + y.permute(0, 3, 1, 2)


class Original(nn.Module):
    def __init__(self, depths, dims, v2, classes=1000):
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelsFirst(dims[0], eps=1e-6))])
        for narrow, wide in itertools.pairwise(dims):
            self.downsample_layers.append(nn.Sequential(ChannelsFirst(narrow, eps=1e-6), nn.Conv2d(narrow, wide, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, v2) for _ in range(depth))) for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)

    def forward(self, x):
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((-2, -1))))


def noisy(model):
    """`model` with every parameter drawn anew, so that none is left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model.eval()


def sparse(tensors):
    """The layout of FCMAE's encoder, from a dense state dict: kernels by position, columns first; no norm, no head."""
    content = {}
    for name, tensor in tensors.items():
        stem = name.startswith("downsample_layers.0.")
        is_conv = name.endswith(("dwconv.weight", ".1.weight")) and tensor.ndim == 4 and not stem
        part = "linear" if ".pwconv" in name else ""
        part = "ln" if ".norm." in name or (name.startswith("downsample_layers.") and not stem) else part
        if name.startswith(("norm.", "head.")):
            continue
        if is_conv:
            columns_first = tensor.transpose(2, 3).flatten(2)  # (C_out, C_in / groups, positions)
            kernel = columns_first.permute(2, 1, 0)  # (positions, C_in / groups, C_out)
            content["encoder." + name.removesuffix("weight") + "kernel"] = kernel[:, 0] if "dwconv" in name else kernel
        elif name.endswith(("dwconv.bias", ".1.bias")) and not stem:
            content["encoder." + name] = tensor[None]
        elif ".grn." in name:
            content["encoder." + name] = tensor.flatten()[None]
        else:
            module, _, leaf = name.rpartition(".")
            content[f"encoder.{module}.{part}.{leaf}" if part else f"encoder.{name}"] = tensor
    decoder = "mask_token proj.weight proj.bias pred.weight pred.bias decoder.0.grn.gamma decoder.0.norm.bias"
    return content | {name: torch.zeros(2) for name in decoder.split()}


def timm_model(classes=10):
    """A small ConvNeXt V2 of timm's."""
    return timm.create_model("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=classes)
