"""The loss of networks that answer with masks and their classes (EoMT): each class of an image is matched with one query.

Source: Cheng et al. 2022, Mask2Former (arXiv 2112.01527), section 3.2, as EoMT has it: tue-mps/eomt,
training/mask_classification_loss.py.
"""

import torch
import torch.distributed
import torch.nn.functional as F

OVERSAMPLE, IMPORTANT = 3.0, 0.75  # of the points: three times as many are drawn, of which the unsure ones make three quarters


class MaskLoss(torch.nn.Module):
    """For each pair (class logits, mask logits) of "queries": class_weight * cross-entropy of the queries' classes +
    mask_weight * binary cross-entropy + dice_weight * (1 - Dice) of the matched masks, at `points` of an image; summed.

    A mask is the pixels of one class in one image; ignored pixels are in none. Queries are matched with masks so that the sum
    of the same three terms is least (Hungarian). The others are to say "no object", which counts no_object times.
    Masks are compared at random points, three quarters of them where the prediction is least sure; at every pixel instead
    where an image has no more of them than points. Sums are divided by numbers of masks and weights that are means over
    the processes: the loss does not depend on how a batch is spread.

    weights: (classes,) how much each class counts in the cross-entropy, or None.
    """

    def __init__(
        self, classes, *, points=12_544, class_weight=2.0, mask_weight=5.0, dice_weight=5.0, no_object=0.1, weights=None
    ):
        super().__init__()
        self.classes, self.points = classes, points
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        weights = torch.ones(classes) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        self.register_buffer("weights", torch.cat([weights, torch.tensor([no_object])]))

    def forward(self, outputs, target):
        """outputs: "queries", [((B, Q, classes + 1), (B, Q, h, w)), …]; target (B, H, W) int64. Gives a scalar."""
        image, label = present_classes(target, self.classes).nonzero(as_tuple=True)  # (M,) each: the masks
        truth = (target[image] == label[:, None, None]).float()[:, None]  # (M, 1, H, W)
        pairs = [(classes.float(), masks.float()) for classes, masks in outputs["queries"]]
        matches = self._match(pairs, image, label, truth)
        return sum(self._of_pair(*pair, *match, image, label, truth) for pair, match in zip(pairs, matches, strict=True))

    def _of_pair(self, classes, masks, query, mask, image, label, truth):
        """The loss of one pair. query, mask: (K,) the queries that are matched, and the masks that each of them is to be."""
        image, label, truth = image[mask], label[mask], truth[mask]
        wanted = torch.full(classes.shape[:2], self.classes, device=classes.device)
        wanted[image, query] = label
        counts = self.weights[wanted]
        entropy = F.cross_entropy(classes.flatten(0, 1), wanted.flatten(), reduction="none") * counts.flatten()
        total, number = _mean_over_processes(torch.stack([counts.sum(), counts.new_tensor(len(mask))]))
        loss = self.class_weight * entropy.sum() / total
        if not len(mask):
            return loss + 0 * masks.sum()  # every weight has a gradient, which distributed training waits for
        masks = masks[image, query][:, None]  # (K, 1, h, w)
        places = self._places(masks, truth)
        logits, truth = at(masks, places), at(truth, places)  # (K, P)
        binary = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        shares = logits.sigmoid()
        dice = 1 - (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + truth.sum(1) + 1)  # with 1 on both sides, as published
        return loss + (self.mask_weight * binary + self.dice_weight * dice).sum() / number.clamp(min=1)

    @torch.no_grad()
    def _match(self, pairs, image, label, truth):
        """For each pair (queries (K,), masks (K,)): which query is matched with which mask. K is the number of masks M, or less
        where an image has more masks than queries."""
        from scipy.optimize import linear_sum_assignment  # takes a third of a second, which most runs need not spend

        if not len(image):
            return [(image, image) for _ in pairs]
        sizes = torch.bincount(image, minlength=len(pairs[0][0])).tolist()  # masks of each image, which follow one another
        of_images = [zip(*pair, label.split(sizes), truth.split(sizes), strict=True) for pair in pairs]
        costs = torch.cat([self._costs(*one) for images in of_images for one in images], 1).cpu()  # one wait for the device
        found = []
        for of_pair in costs.split(len(image), 1):
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            matched = [linear_sum_assignment(cost) for cost in of_pair.split(sizes, 1)]
            queries = torch.cat([torch.from_numpy(rows) for rows, _ in matched])
            masks = torch.cat([start + torch.from_numpy(columns) for start, (_, columns) in zip(starts, matched, strict=True)])
            found.append((queries.to(image.device), masks.to(image.device)))
        return found

    def _costs(self, classes, masks, label, truth):
        """(Q, M): what each query would cost as each mask of an image. classes (Q, C + 1), masks (Q, h, w), label (M,)."""
        places = self._every_pixel(truth) if self._is_small(truth) else torch.rand(1, self.points, 2, device=masks.device)
        logits = at(masks[:, None], places.expand(len(masks), -1, -1))  # (Q, P)
        truth = at(truth, places.expand(len(truth), -1, -1))  # (M, P)
        inside, outside = F.softplus(-logits), F.softplus(logits)
        binary = (inside @ truth.T + outside @ (1 - truth).T) / logits.shape[1]
        shares = logits.sigmoid()
        dice = 1 - (2 * (shares @ truth.T) + 1) / (shares.sum(1)[:, None] + truth.sum(1) + 1)
        cost = self.mask_weight * binary + self.dice_weight * dice - self.class_weight * classes.softmax(-1)[:, label]
        return cost.clamp(-1e10, 1e10).nan_to_num(0)  # a loss that is no number is told elsewhere

    @torch.no_grad()
    def _places(self, masks, truth):
        """(M, P, 2), from 0 to 1: every pixel, or random points, most of them where the logits (M, 1, h, w) are near 0."""
        if self._is_small(truth):
            return self._every_pixel(truth).expand(len(masks), -1, -1)
        drawn = torch.rand(len(masks), int(self.points * OVERSAMPLE), 2, device=masks.device)
        unsure = int(self.points * IMPORTANT)
        chosen = at(masks, drawn).abs().topk(unsure, 1, largest=False).indices
        drawn = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
        return torch.cat([drawn, torch.rand(len(masks), self.points - unsure, 2, device=masks.device)], 1)

    def _is_small(self, truth):
        return truth.shape[-2] * truth.shape[-1] <= self.points

    @staticmethod
    def _every_pixel(truth):
        """(1, H x W, 2): the centres of the pixels."""
        rows, columns = ((torch.arange(side, device=truth.device) + 0.5) / side for side in truth.shape[-2:])
        return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)[None]


def present_classes(target, classes):
    """(B, H, W) int64 -> (B, classes) float32: 1 where the image has the class. Labels outside 0..classes-1 do not count."""
    inside = (target >= 0) & (target < classes)
    column = target.where(inside, classes).flatten(1)  # the others share a column of their own, dropped below
    return torch.zeros(len(target), classes + 1, device=target.device).scatter_(1, column, 1.0)[:, :classes]


def at(maps, places):
    """Values (N, P) of maps (N, 1, h, w), bilinear, at places (N, P, 2): x and y from 0 to 1. There are zeros around a map."""
    return F.grid_sample(maps, 2 * places[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def _mean_over_processes(values):
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values
