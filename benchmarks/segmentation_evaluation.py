"""What an evaluation of semantic segmentation costs: counting the confusion matrix, and sliding windows in batches.

    python benchmarks/segmentation_evaluation.py

Ratios are of times measured in turns within one run, medians of --repeats. The network is timm's --backbone at output
stride 16, a 1x1 convolution and bilinear upsampling, about the lightest there is: with a heavier one the matrix' share
is smaller.
"""

import argparse
import pathlib
import statistics
import sys
import time

import timm
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from utils.losses.segmentation import SegmentationLoss
from utils.metrics.segmentation import ConfusionMatrix, predicted_classes
from utils.metrics.windows import predict


class Network(torch.nn.Module):
    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(-1,), output_stride=16)
        self.head = torch.nn.Conv2d(self.backbone.feature_info.channels()[-1], classes, 1)

    def forward(self, images):
        return F.interpolate(self.head(self.backbone(images)[-1]), images.shape[2:], mode="bilinear", align_corners=False)


def medians(repeats, device, **functions):
    """Seconds of each function, the functions taking turns; the first turn warms up and is not counted."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def synchronize(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()


def metric_share(args, device):
    """Time of the metric per image, as a share of a training step's and of an evaluation's."""
    size = (args.batch_size, args.size, args.size)
    network = Network(args.backbone, args.classes).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    criterion = SegmentationLoss(args.classes)
    images = torch.randn(args.batch_size, 3, *size[1:], device=device)
    # Blobs of labels like those of real masks, one pixel in ten ignored.
    blobs = torch.randint(args.classes, (args.batch_size, 1, 16, 16), device=device).float()
    masks = F.interpolate(blobs, size[1:])[:, 0].long().where(torch.rand(size, device=device) > 0.1, -1)

    def train():
        network.train()
        criterion({"logits": network(images)}, masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def forward():
        return network.eval()(images)

    logits, matrix = forward(), ConfusionMatrix(args.classes, device)
    labels = predicted_classes(logits)
    time_of = medians(
        args.repeats, device, train=train, forward=forward,
        update=lambda: matrix.update(logits, masks), count=lambda: matrix.update(labels, masks),
        argmax=lambda: logits.argmax(1),
    )  # fmt: skip
    print(f"\nper image of {args.size} x {args.size} pixels, {args.classes} classes, {args.backbone}, batch {args.batch_size}:")
    for name, title in (
        ("train", "training step"),
        ("forward", "forward pass in evaluation"),
        ("update", "ConfusionMatrix.update(logits, masks)"),
        ("count", "  of which counting, without the argmax"),
        ("argmax", "torch's argmax, for comparison"),
    ):
        share = time_of[name] / time_of["train"]
        print(f"  {title:40} {1e3 * time_of[name] / args.batch_size:9.2f} ms {100 * share:8.2f} % of a training step")
    print(f"  the matrix' share of an evaluation: {100 * time_of['update'] / (time_of['update'] + time_of['forward']):.2f} %")


def window_speed(args, device):
    """Batched windows against one at a time."""
    norm = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    network = Network(args.backbone, args.window_classes).to(device).eval()
    print(f"\nsliding windows, mirrored too, {args.window_classes} classes, {args.backbone}; images of 3 x 4 windows' sides:")
    for size in args.windows:
        image = torch.randn(1, 3, 3 * size, 4 * size, device=device)

        def evaluate(batch, size=size, image=image):
            return predict(
                network,
                image,
                classes=args.window_classes,
                crop_size=size,
                flip=True,
                combine="softmax",
                window_batch=batch,
                **norm,
            )

        time_of = medians(args.repeats, device, single=lambda: evaluate(1), batched=lambda: evaluate(args.window_batch))
        deviation = (evaluate(1) - evaluate(args.window_batch)).abs().max().item()
        print(
            f"  {size:4} pixels: one at a time {1e3 * time_of['single']:8.1f} ms, {args.window_batch} at a time "
            f"{1e3 * time_of['batched']:8.1f} ms: {time_of['single'] / time_of['batched']:.2f}x, difference {deviation:.0e}"
        )


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18", help="timm's name")
    parser.add_argument("--device", default="cpu", help="torch's name")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement")
    parser.add_argument("--size", type=int, default=512, help="pixels, of the images for the metric")
    parser.add_argument("--classes", type=int, default=150, help="of the metric")
    parser.add_argument("--batch_size", type=int, default=2, help="images, for the metric")
    parser.add_argument("--windows", type=int, nargs="+", default=(64, 96, 128, 256), help="pixels of a window's side")
    parser.add_argument("--window_classes", type=int, default=11, help="of the sliding windows")
    parser.add_argument("--window_batch", type=int, default=8, help="windows at a time")
    return parser.parse_args()


def main(args):
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {device}, {torch.get_num_threads()} threads")
    metric_share(args, device)
    window_speed(args, device)


if __name__ == "__main__":
    main(parse_args())
