"""The plan of a run on a user's own data that starts from trained weights: what it sets where its user says nothing.

The published defaults are for a million images and hundreds of thousands of updates. On some hundred images they are a few
dozen updates at a hundredth of a useful rate, and nothing is learned. docs/PLAN.md says why each rule is as it is, and what was
measured.
"""

import math
from typing import NamedTuple

ADAM, SGD = ("adam", "adamw", "nadamw", "radam"), ("sgd", "momentum", "nesterov")  # whose rates are known
# (of segmentation, with batch norm) -> rate of updates of up to 64 images. Networks with batch norm bear more, as long as its
# statistics follow the batch.
RATES = {(False, True): 2.5e-3, (False, False): 3e-4, (True, True): 1e-3, (True, False): 3e-4}
LEAST_FOR_BATCH_NORM = 16  # images of a process, of which batch norm takes its statistics
SEARCH = 2000  # updates, from which on the ten seconds in which cuDNN searches its kernels are little
LONG = 3500  # images x epochs, from which on strong changes of the images, and an average of the weights, pay


class Facts(NamedTuple):
    """What a plan is made from. images: to train on; validation: to score; total: images per update; processes: that share
    them; opt: name of the optimizer; parameters: of the network; batch_norm: it has batch norm, which is not frozen; side: of
    segmentation, the usual long side of an image in pixels, else None; epochs: that the user set, or their share of one, else
    None; several: an image may have several labels; bands: images have bands, whose colours nothing
    changes; cudnn: the run is on a GPU of NVIDIA's.
    """

    images: int
    validation: int
    total: int
    processes: int
    opt: str
    parameters: int
    batch_norm: bool
    side: int | None = None
    epochs: float | None = None
    several: bool = False
    bands: bool = False
    cudnn: bool = False


def images_per_update(images, processes, least):
    """Images of an update: small data has small batches, for the number of updates counts.

    least: images on each process, where there are enough. The number divides by the processes.
    """
    wanted = least if images < 2000 else 32 if images < 20_000 else 64
    on_each = max(wanted // processes, least)
    return max(1, min(on_each, images // processes)) * processes


def plan(facts):
    """{flag: value} for these Facts; a pure function."""
    epochs = facts.epochs or min(max(round(700 / math.sqrt(facts.images)), 10), 100)  # 100 of 36 images, 40 of 300, 10 of 5,000
    planned = {
        "epochs": epochs,
        "warmup_epochs": round(epochs / 10, 1),
        "drop_path": 0.1 if facts.parameters > 20e6 else 0.0,  # only large networks learn small data by heart at once
        # an evaluation looks at three times as many images as training does in between, at most
        "eval_freq": max(1, min(math.ceil(facts.validation / max(facts.images, 1) / 3), int(epochs))),
    }
    few = facts.side is None and facts.batch_norm and facts.total // facts.processes < LEAST_FOR_BATCH_NORM
    if facts.opt in ADAM + SGD:
        rate = RATES[facts.side is not None, facts.batch_norm and not few] * max(1, math.sqrt(facts.total / 64))
        rate *= 1 if facts.opt in ADAM else 10
        planned |= {"lr": float(f"{rate:.2g}"), "weight_decay": 0.05 if facts.opt in ADAM else 1e-4}
    planned |= {"freeze": "bn"} if few else {}
    planned |= {"cudnn_benchmark": False} if facts.cudnn and facts.images * epochs / facts.total < SEARCH else {}
    return planned | (_recognition(facts, epochs) if facts.side is None else _segmentation(facts))


def _recognition(facts, epochs):
    long = facts.images * epochs >= LONG
    return {
        "layer_decay": 0.8,  # the first layers have learned what edges are; the last ones have to change
        "head_init_scale": 0.01,  # the first loss is near ln(classes): a new head of full size would shake all layers
        "scale": (0.35, 1.0),  # crops of 8 % of an image often show no object, and few images bear few of them
        # a short run does not get to know the images themselves; a long one would learn them by heart
        "aa": "rand-m9-mstd0.5-inc1" if long and not facts.bands else "none",
        "reprob": 0.25 if long else 0.0,
        "smoothing": 0.0 if facts.several else 0.1,  # which is of one label an image
        **({"model_ema": True, "model_ema_warmup": True} if long else {}),  # small updates of few images are noisy
    }


def _segmentation(facts):
    base = min(max(facts.side, 64), 800)
    return {
        "opt": facts.opt, "weight_decay_filter": "norm_bias", "sched": "cosine", "head_lr_scale": 1.0,
        "base_size": base, "crop_size": min(480, max(64, base // 32 * 32)),
    }  # fmt: skip
