"""EoMT: queries join the tokens of a plain ViT in its last blocks, and become a class and a mask each.

Source: Kerssies et al. 2025, "Your ViT is Secretly an Image Segmentation Model" (arXiv 2503.19108); tue-mps/eomt.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import checkpoint
from torch import nn

from segmentation_networks.network import SegmentationNetwork
from segmentation_networks.options import check_whole
from utils.cli.errors import InputError

POWER = 0.9  # of the curve along which attention is unmasked


class EoMTNetwork(SegmentationNetwork):
    """A ViT, `backbone`, and an EoMTHead, `decode_head`, whose queries are tokens of the ViT's last blocks.

    In evaluation images (B, 3, H, W) give {"logits": (B, classes, H, W)}: logarithms of the scores of a class, each the sum
    over the queries of the class's probability times the mask's. The published argmax is that of the scores' mean over
    windows, which is `combine` "exp" of utils/metrics/windows.py.
    In training, without `only_logits`, {"queries": [(class logits (B, Q, classes + 1), the last of them for no object, mask
    logits (B, Q, h, w)), …]}: before each of the last blocks, and after them.
    """

    def __init__(self, backbone, decode_head):
        super().__init__(backbone, decode_head, size_multiple=math.lcm(*backbone.patch_embed.patch_size))
        if decode_head.blocks >= len(backbone.blocks):
            raise InputError(f"blocks {decode_head.blocks}: expected fewer than the {len(backbone.blocks)} of the backbone")
        # Probability that a query is masked, of each block; a buffer, so that torch.compile reads a new value.
        self.register_buffer("masked", torch.ones(decode_head.blocks), persistent=False)

    def follow(self, schedule, updates):
        """The `schedule`, which sets `masked` for an update, too."""

        def with_masks(update):
            left = [(end - update / updates) / (end - start) for start, end in self.decode_head.spans]
            self.masked.copy_(torch.tensor([min(max(share, 0.0), 1.0) ** POWER for share in left]))
            return schedule(update)

        return with_masks

    def forward(self, images, only_logits=False):
        height, width = images.shape[-2:]
        right, below = -width % self.size_multiple, -height % self.size_multiple
        images = F.pad(images, (0, right, 0, below)) if right or below else images
        if self.training and not only_logits:
            return {"queries": self.predictions(images)}
        classes, masks = self.predictions(images)[-1]
        size = (height + below, width + right)
        masks = F.interpolate(masks.float(), size, mode="bilinear")[..., :height, :width].sigmoid()
        with _full_precision(images.device.type):  # half of it would make ties of near scores
            scores = torch.einsum("bqc,bqhw->bchw", classes.float().softmax(-1)[..., :-1], masks)
        return {"logits": scores.clamp(min=torch.finfo(scores.dtype).tiny).log()}

    def predictions(self, images):
        """[(class logits, mask logits)] of images whose sides the patches divide; in evaluation the last pair alone."""
        vit, head = self.backbone, self.decode_head
        grid = vit.patch_embed.dynamic_feat_size(images.shape[-2:])
        prefix, queries = vit.num_prefix_tokens, len(head.queries)
        rope = self._rotations(grid, queries)
        x = self._tokens(images)
        x = torch.cat([x[:, :prefix], head.queries.expand(x.shape[0], -1, -1), x[:, prefix:]], 1)
        found = []
        first = len(vit.blocks) - head.blocks
        for i, block in enumerate(vit.blocks[first:]):
            options = {}
            if self.training:
                found.append(head(vit.norm(x), grid, prefix))
                options["attn_mask"] = self._attention(found[-1][1], grid, prefix, self.masked[i])
            if rope is not None:
                options["rope"] = rope[first + i] if getattr(vit, "rope_mixed", False) else rope
            recompute = vit.grad_checkpointing and self.training
            x = checkpoint(block, x, **options) if recompute else block(x, **options)
        return [*found, head(vit.norm(x), grid, prefix)]

    def _tokens(self, images):
        """(B, prefix + h x w, width): what comes out of the blocks before the queries join, prefix tokens first."""
        before = len(self.backbone.blocks) - self.decode_head.blocks
        [(patches, prefix)] = self.backbone.forward_intermediates(
            images, indices=[before - 1], return_prefix_tokens=True, stop_early=True, output_fmt="NLC", intermediates_only=True
        )
        return torch.cat([prefix, patches], 1)

    def _rotations(self, grid, queries):
        """Rotary embedding of queries and patches, (…, Q + h x w, 2 x d), or None. Queries have no place and are not turned."""
        rope = getattr(self.backbone, "rope", None)
        if rope is None:
            return None
        with torch.random.fork_rng(devices=[]):  # the ViT draws its own, and the same, right after
            turns = rope.get_embed(shape=grid)
        still = turns.new_zeros(*turns.shape[:-2], queries, turns.shape[-1])
        still[..., turns.shape[-1] // 2 :] = 1  # sines, then cosines
        return torch.cat([still, turns], -2)

    @torch.no_grad()
    def _attention(self, masks, grid, prefix, share):
        """(B, 1, N, N) bool: whom each token attends to. A query sees the patches in its mask (B, Q, h, w) alone, and the other
        queries and the prefix tokens. share: () float, probability that a query is held to its mask."""
        inside = F.interpolate(masks, grid, mode="bilinear").flatten(2) > 0  # (B, Q, P)
        free = torch.rand(inside.shape[:2], device=inside.device) >= share
        count, patches = inside.shape[1:]
        total = prefix + count + patches
        seen = torch.ones(len(inside), 1, total, total, dtype=torch.bool, device=inside.device)
        seen[:, 0, prefix : prefix + count, prefix + count :] = inside | free[..., None]
        return seen


class EoMTHead(nn.Module):
    """Queries, and what makes a class and a mask of each.

    width: of the ViT's tokens; patch: pixels of a patch's side.
    queries: how many. blocks: the ViT's last blocks, in which they are tokens.
    mask_from, mask_to: for each of these blocks, from which share of the run to which its attention is unmasked, little by
        little; none: one block after another, each in 1 / (blocks + 2) of the run, after a first such part with all masks.
    """

    network = EoMTNetwork

    def __init__(self, width, classes, patch, *, queries=100, blocks=4, mask_from=None, mask_to=None):
        super().__init__()
        check_whole(queries=queries, blocks=blocks)
        if mask_from is None and mask_to is None:
            mask_from, mask_to = ([(i + step) / (blocks + 2) for i in range(blocks)] for step in (1, 2))
        if not _are_spans(mask_from, mask_to, blocks):
            raise InputError(f"mask_from {mask_from}, mask_to {mask_to}: expected {blocks} shares of the run each, 0 to 1, "
                             "every end after its start")  # fmt: skip
        self.blocks, self.spans = blocks, list(zip(mask_from, mask_to, strict=True))
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.class_head = nn.Linear(width, classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = nn.Sequential(*[_doubled(width) for _ in range(max(1, int(math.log2(patch)) - 2))])
        self.classifiers = ("class_head",)

    def forward(self, tokens, grid, prefix):
        """tokens (B, prefix + Q + h x w, width), patches last, rows of `grid` (h, w) -> (B, Q, classes + 1), (B, Q, H, W)."""
        queries, patches = tokens[:, prefix:].split([len(self.queries), grid[0] * grid[1]], 1)
        pixels = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        return self.class_head(queries), torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), pixels)


def _full_precision(device):
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()


def _doubled(width):
    """(B, width, h, w) to (B, width, 2 h, 2 w)."""
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    return nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2), nn.GELU(), depthwise, LayerNorm2d(width))


def _are_spans(starts, ends, count):
    if not all(isinstance(values, list | tuple) and len(values) == count for values in (starts, ends)):
        return False
    numbers = all(isinstance(value, int | float) for value in (*starts, *ends))
    return numbers and all(0 <= start < end <= 1 for start, end in zip(starts, ends, strict=True))
