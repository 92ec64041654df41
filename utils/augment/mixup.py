"""Mixup and CutMix of a batch, on the batch's device, with random numbers keyed by seed, update and micro-batch.

Modes as in timm's Mixup: `batch` draws once for the whole batch, `pair` once per pair (i, B-1-i), `elem` once per
sample. Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix); the partner of a sample is its mirror in the
batch, as in timm. A CutMix box reaches half its side, rounded down, to both sides of its centre, as in the CutMix paper's
code and in timm up to 1.0.28, whose rule the published models were trained with; from timm 1.0.29 on a box of odd side is one
pixel larger. Any batch of two or more will do, an odd one too.
"""

import numpy as np
import torch


def make_mixup(options, classes, smoothing):
    """`Mixup` of these MixupOptions for so many classes; None where they switch mixup and CutMix off."""
    if options.mixup or options.cutmix or options.cutmix_minmax:
        return Mixup(classes, options, smoothing)
    return None


class Mixup:
    """Callable (images (B, C, H, W), labels (B,) int64, seed) -> (mixed images, soft targets (B, classes) float32). Several
    labels of an image are (B, classes) float32, which are mixed as they are.

    options: MixupOptions of utils/cli/recognition_flags.py, whose flags say what each does; --cutmix_minmax switches CutMix on
    by itself. smoothing: the share of a target that is spread over all classes.
    """

    def __init__(self, classes, options, smoothing=0.0):
        self.classes, self.options, self.smoothing = classes, options, smoothing
        self.cutmix = 1.0 if options.cutmix_minmax else options.cutmix  # alpha

    def draw(self, count, shape, rng):
        """`count` draws for images of `shape`: lambda (count,) float32, and boxes (count, 4) int64 as y0, y1, x0, x1, which
        are empty where images are blended.
        """
        height, width, mixup = *shape, self.options.mixup
        lam, boxes = np.ones(count, np.float32), np.zeros((count, 4), np.int64)
        for i in range(count):
            if rng.random() >= self.options.mixup_prob:
                continue
            cut = self.cutmix > 0 and (mixup <= 0 or rng.random() < self.options.mixup_switch_prob)
            lam[i] = rng.beta(self.cutmix, self.cutmix) if cut else rng.beta(mixup, mixup)
            if cut:
                boxes[i] = self._box(height, width, lam[i], rng)
                y0, y1, x0, x1 = boxes[i]
                lam[i] = 1.0 - (y1 - y0) * (x1 - x0) / (height * width)  # the box may be cut by the border
        return lam, boxes

    def _box(self, height, width, lam, rng):
        if self.options.cutmix_minmax:
            low, high = self.options.cutmix_minmax
            cut_h = int(rng.integers(int(height * low), max(int(height * high), int(height * low) + 1)))
            cut_w = int(rng.integers(int(width * low), max(int(width * high), int(width * low) + 1)))
            y0 = int(rng.integers(0, height - cut_h + 1))
            x0 = int(rng.integers(0, width - cut_w + 1))
            return y0, y0 + cut_h, x0, x0 + cut_w
        side = float(np.sqrt(1.0 - lam))
        cut_h, cut_w = int(height * side), int(width * side)
        y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
        y0, y1 = max(y - cut_h // 2, 0), min(y + cut_h // 2, height)
        x0, x1 = max(x - cut_w // 2, 0), min(x + cut_w // 2, width)
        return y0, y1, x0, x1

    def __call__(self, images, labels, seed):
        batch = len(images)
        rng = np.random.default_rng(seed)
        if self.options.mixup_mode == "batch":
            lam, boxes = self.draw(1, images.shape[-2:], rng)
            lam, boxes = np.repeat(lam, batch), np.repeat(boxes, batch, axis=0)
        elif self.options.mixup_mode == "pair":
            lam, boxes = self.draw(batch // 2, images.shape[-2:], rng)
            middle = ([np.float32(1)] * (batch % 2), np.zeros((batch % 2, 4), np.int64))  # has no partner
            lam, boxes = np.concatenate([lam, middle[0], lam[::-1]]), np.concatenate([boxes, middle[1], boxes[::-1]])
        else:
            lam, boxes = self.draw(batch, images.shape[-2:], rng)
        return mix(images, labels, lam.astype(np.float32), boxes, self.classes, self.smoothing)


def mix(images, labels, lam, boxes, classes, smoothing=0.0):
    """Mix each image with its mirror in the batch: paste the partner's box where there is one, else blend by lambda.

    images (B, C, H, W); labels (B,) int64; lam (B,) float32; boxes (B, 4) int. Returns images and (B, classes) targets.
    """
    device = images.device
    weight = torch.from_numpy(lam).to(device, non_blocking=device.type != "mps")
    if (lam == lam[0]).all() and (boxes == boxes[0]).all():  # one draw for all, with fewer passes over the pixels
        y0, y1, x0, x1 = boxes[0].tolist()
        if y1 > y0 and x1 > x0:
            mixed = images.clone(memory_format=torch.preserve_format)
            mixed[:, :, y0:y1, x0:x1] = images[:, :, y0:y1, x0:x1].flip(0)
        else:
            mixed = images.flip(0).lerp_(images, float(lam[0])) if lam[0] != 1 else images
    else:
        mixed = _mix_each(images, lam, boxes)
    targets = smooth_one_hot(labels, classes, smoothing) if labels.ndim == 1 else labels
    weight = weight.unsqueeze(-1)
    return mixed, targets * weight + targets.flip(0) * (1 - weight)


def _mix_each(images, lam, boxes):
    """The same with a lambda and a box of its own for each image."""
    device, partner = images.device, images.flip(0)
    is_cut = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])
    blend = torch.from_numpy(np.where(is_cut, 1.0, lam).astype(np.float32)).to(device, non_blocking=device.type != "mps")
    mixed = partner.lerp(images, blend.view(-1, 1, 1, 1).to(images.dtype))
    if is_cut.any():
        edges = torch.from_numpy(boxes).to(device, non_blocking=device.type != "mps")
        rows = torch.arange(images.shape[-2], device=device)
        columns = torch.arange(images.shape[-1], device=device)
        in_rows = (rows >= edges[:, :1]) & (rows < edges[:, 1:2])  # (B, H)
        in_columns = (columns >= edges[:, 2:3]) & (columns < edges[:, 3:])  # (B, W)
        mixed = torch.where((in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1), partner, mixed)
    return mixed


def smooth_one_hot(labels, classes, smoothing=0.0):
    """(B,) int64 -> (B, classes) float32: smoothing / classes everywhere, and 1 - smoothing more at the label."""
    off = smoothing / classes
    target = torch.full((*labels.shape, classes), off, device=labels.device)
    return target.scatter_(-1, labels.unsqueeze(-1), 1.0 - smoothing + off)
