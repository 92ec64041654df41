"""Weights for a small network that nobody has trained: taught by another network's answers on any images, for plan.py.

    python benchmarks/small_weights.py TEACHER OUT IMAGES... --model convnext_atto --minutes 40

TEACHER is a folder with config.json and model.safetensors of a timm model with 1,000 classes, IMAGES are folders of images,
looked through with all below them. Teacher and student see the same crop; the student learns the teacher's probabilities
(Beyer et al., arXiv 2106.05237). They are no substitute for weights trained on ImageNet, but they start where real weights
do: edges, textures and parts are known, the classes of the user are not.
"""

import argparse
import io
import math
import pathlib
import time
import warnings

import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch.nn.functional import kl_div
from torchvision.transforms import v2

LARGEST = 512  # pixels of an image's short side in memory; a larger one is made smaller once
Image.MAX_IMAGE_PIXELS = 10e6  # Pillow refuses images of twice as many, which take seconds each
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Images(torch.utils.data.IterableDataset):
    """Crops without end, uint8 [3, size, size], of the images below the folders; an image is taken as often as it has room for
    other crops: its short side in units of 128 pixels."""

    def __init__(self, folders, size):
        self.kept, shares = [], []
        for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".png", ".jpg")):
            try:
                image = Image.open(path)
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
            if min(image.size) < 64:
                continue
            image.thumbnail([side * LARGEST // min(image.size) for side in image.size])
            file = io.BytesIO()
            image.save(file, "JPEG", quality=92)
            self.kept.append(file.getvalue())
            shares.append(min(image.size) / 128)
        self.shares = torch.tensor(shares)
        self.view = v2.Compose([v2.RandomResizedCrop(size, (0.1, 1)), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __iter__(self):
        while True:
            for index in torch.multinomial(self.shares, 512, replacement=True):
                yield self.view(Image.open(io.BytesIO(self.kept[index])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("images", nargs="+", type=pathlib.Path)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--size", type=int, default=96, help="pixels of a crop")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    teacher = timm.create_model(f"local-dir:{args.teacher}", pretrained=True).eval()
    seen = resolve_model_data_config(teacher)
    mean, std = (255 * torch.tensor(seen[name]).view(3, 1, 1) for name in ("mean", "std"))
    student = timm.create_model(args.model, num_classes=teacher.num_classes)
    optimizer = torch.optim.AdamW(student.parameters(), args.lr, weight_decay=0.05)
    images = Images(args.images, args.size)
    print(f"{len(images.kept)} images", flush=True)
    start = time.monotonic()
    for update, batch in enumerate(torch.utils.data.DataLoader(images, args.batch_size)):
        share = (time.monotonic() - start) / 60 / args.minutes
        if share >= 1:
            break
        batch = (batch - mean) / std
        with torch.no_grad():
            wanted = teacher(batch).log_softmax(1)
        loss = kl_div(student(batch).log_softmax(1), wanted, reduction="batchmean", log_target=True)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (update + 1) / 200) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if update % 50 == 0:
            print(f"{share:4.0%}  update {update}  loss {loss.item():.3f}", flush=True)
    student.pretrained_cfg |= {"mean": seen["mean"], "std": seen["std"], "interpolation": seen["interpolation"]}
    save_for_hf(student, str(args.out), safe_serialization=True)


if __name__ == "__main__":
    main()
