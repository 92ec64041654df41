"""What layer-wise learning rate decay costs: an update with a parameter group per layer against one with a single group.

    python benchmarks/optimizer.py                                          # convnextv2_atto, whole updates
    python benchmarks/optimizer.py --model convnextv2_base --alone          # the optimizer by itself, for larger models

AdamW in torch's three forms: fused (what the scripts ask for), foreach, and a loop over the tensors. Each part of an update
is timed by itself: the network forward and back, the schedule that writes a rate into every group, the optimizer, the
average (EMA). One group and many take turns in short rounds, so that other load on the machine meets both; medians. What
the groups cost is the difference of the two optimizers, as a share of the whole update with one group. Where others use the
same cores, give OMP_NUM_THREADS=1: with more, the threads wait for one another at every tensor, and that is what is timed.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import time
import types

import timm
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from lr_sched import make_schedule
from optim_factory import create_optimizer, layer_decay_assigner
from utils.model.ema import EMA

FORMS = ("fused", "foreach", "loop")
PARTS = ("network", "schedule", "optimizer", "average")


class Job:
    """A model with its optimizer, schedule and average. layer_decay 1.0: all parameters in one group."""

    def __init__(self, name, form, layer_decay, device):
        torch.manual_seed(0)
        self.device, self.updates = device, 0
        self.model = timm.create_model(name, num_classes=1000).to(device).train()
        args = types.SimpleNamespace(opt="adamw", lr=1e-4, weight_decay=0.05, momentum=0.9, fused=form == "fused")
        assigner = layer_decay_assigner(self.model, layer_decay)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        self.optimizer = create_optimizer(args, self.model, *by_layer, filter_bias_and_bn=assigner is not None)
        for group in self.optimizer.param_groups:
            group["foreach"] = form == "foreach"
        self.schedule = make_schedule(self.optimizer, 1000, sched="cosine", lr=1e-4, epochs=10, warmup_epochs=1)
        self.average = EMA(self.model)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3

    def update(self, images):
        """Seconds of the four PARTS; without images the gradients stay as they are."""
        times = [self._now()]
        if images is not None:
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
                loss = self.model(images).float().logsumexp(1).mean()
            loss.backward()
        times.append(self._now())
        for part in (lambda: self.schedule(self.updates), self.optimizer.step, lambda: self.average.update(self.updates)):
            part()
            times.append(self._now())
        self.updates += 1
        return [end - start for start, end in itertools.pairwise(times)]

    def _now(self):
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()


def measure(name, form, layer_decay, images, rounds, device):
    """Two dicts of median seconds by part, for one group and for many, and the number of groups."""
    jobs = [Job(name, form, scale, device) for scale in (1.0, layer_decay)]
    seconds = [[], []]
    for _ in range(rounds + 2):
        for job, rows in zip(jobs, seconds, strict=True):
            rows.append(job.update(images))
    medians = [dict(zip(PARTS, map(statistics.median, zip(*rows[2:], strict=True)), strict=True)) for rows in seconds]
    return *medians, len(jobs[1].optimizer.param_groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnextv2_atto", help="a name that timm knows (%(default)s)")
    parser.add_argument("--layer_decay", type=float, default=0.7, help="one group per layer and weight decay (%(default)s)")
    parser.add_argument("--input_size", type=int, default=128, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of one update each, after two to warm up (%(default)s)")
    parser.add_argument("--alone", action="store_true", help="leave the network out: the times of the other parts only")
    args = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    images = None if args.alone else torch.randn(args.batch_size, 3, args.input_size, args.input_size, device=device)
    what = "the optimizer alone" if args.alone else f"{args.batch_size} images of {args.input_size} pixels"
    print(f"{args.model}, {what}, {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| AdamW | groups | ms, one group | ms, all groups | ratio | extra share | schedule | EMA | ms of an update |")
    print("|---|---|---|---|---|---|---|---|---|")
    for form in FORMS:
        one, many, groups = measure(args.model, form, args.layer_decay, images, args.rounds, device)
        whole = sum(one.values())
        shares = [many["optimizer"] - one["optimizer"], many["schedule"], many["average"]]
        extra, schedule, average = ["" if args.alone else f"{100 * part / whole:.2f} %" for part in shares]
        print(
            f"| {form} | {groups} | {1000 * one['optimizer']:.1f} | {1000 * many['optimizer']:.1f} | "
            f"{many['optimizer'] / one['optimizer']:.2f} | {extra} | {schedule} | {average} | "
            + ("" if args.alone else f"{1000 * whole:.0f} |")
        )


if __name__ == "__main__":
    main()
