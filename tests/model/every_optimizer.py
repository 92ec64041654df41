"""For `faults.Job`: trains tiny models of both scripts by each optimizer in turn, through the functions that the scripts call,
and saves the losses and the weights.
"""

import types

import timm
import torch
from tiny_networks import tiny

import train_recognition
import train_segmentation
from utils.cli.flags import Speed
from utils.losses.recognition import make_loss
from utils.losses.segmentation import SegmentationLoss
from utils.model.optimizer import build_optimizer, can_fuse
from utils.model.processes import start_processes
from utils.model.sharding import gather, prepare

UPDATES, CLASSES = 2, 5
BODY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


def parse_args(words):
    return words


def main(words):
    """words: the file to write, {(script, optimizer): ([loss], {name: weight})}, and optimizers."""
    path, *optimizers = words
    found, accelerator = {}, None
    for script in (train_recognition, train_segmentation):
        for name in optimizers:
            words = f"--opt {name} --lr 0.01 --layer_decay 0.8 --report_to none"
            if (
                "adam" in name or name == "lamb"
            ):  # where a gradient is nothing but rounding, Adam's rule makes a whole step of it
                words += " --opt_eps 1e-3"
            args = script.parse_args(words.split())
            if accelerator is None:
                accelerator, _ = start_processes(2, 1, None, Speed.of(args), default_batch_size=2)
            found[script.__name__, name] = train(script, args, accelerator)
            accelerator.free_memory()  # it keeps each model that it has prepared, and clips the gradients of the first
    if accelerator.is_main_process:
        torch.save(found, path)
    accelerator.end_training()


def train(script, args, accelerator):
    torch.manual_seed(0)
    masks = script is train_segmentation
    if masks:
        model, options = tiny("convnextv2_atto", "upernet", CLASSES, backbone_kwargs=BODY), {"head_lr_scale": 10.0}
        criterion = SegmentationLoss(CLASSES)
    else:
        model, options, criterion = timm.create_model("convnextv2_atto", num_classes=CLASSES, **BODY), {}, make_loss("ce", 0.1)
    optimizer, _ = build_optimizer(model, args, fused=can_fuse(accelerator), say=lambda line: None, **options)
    network, optimizer = prepare(accelerator, model, optimizer)
    shape = (2, 32, 32) if masks else (2,)
    batches = []
    for update in range(UPDATES):
        torch.manual_seed(2 * update + accelerator.process_index)
        batches.append((torch.randn(2, 3, 32, 32), torch.randint(CLASSES, shape)))
    run = Run()
    script.train_one_epoch(accelerator, network, criterion, batches, optimizer, set_rate(optimizer), run)
    return torch.stack(run.losses), gather(model.state_dict())


def set_rate(optimizer):
    def schedule(update):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group.get("lr_scale", 1.0)

    return schedule


class Run:
    """What the loops ask of a Run."""

    max_norm = 1.0

    def __init__(self):
        self.counters, self.losses = types.SimpleNamespace(update=0), []

    def show_batch(self, *_):
        pass

    def seed(self, _):
        return self.counters.update

    def note(self, loss, *_):
        self.losses.append(loss.detach())

    def accepts(self, _):
        return True

    def end_update(self, *_):
        self.counters.update += 1
