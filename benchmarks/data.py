"""Images per second and core of the training transforms, utils/augment/fast.py against timm's with Pillow.

    python benchmarks/data.py
    python benchmarks/data.py --rounds 40 --size 384

JPEG files of 500 x 375 pixels and about 100 KB, made from scikit-learn's two photographs and kept in memory. One thread, and
its processor time counts; the two take turns in short rounds, so that other load on the machine meets both, and the ratio
is that of the medians. The worker's part is what a loader's worker does, from bytes to a batch; with timm that is all.
Ours needs `finish` besides, on the device; here it is done by the same core.
"""

import argparse
import io
import pathlib
import statistics
import sys
import time

import torch
from PIL import Image
from torch.utils.data import default_collate

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from utils.augment.recognition import build_transforms
from utils.cli.recognition_flags import Augmentation
from utils.data.sampling import seed_everything

JOBS = {
    "random crop and flip": {"aa": "none", "reprob": 0.0},
    "the same, RandAugment and erasing": {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25},
}
BATCH = 64  # images per round and pipeline


def jpeg_files(size=(500, 375), bytes_each=100_000):
    """Four files: two crops of each photograph, each of the lowest quality that has so many bytes."""
    from sklearn.datasets import load_sample_images

    files = []
    for photograph in load_sample_images().images:
        for left, top in ((0, 0), (140, 52)):
            image = Image.fromarray(photograph).crop((left, top, left + size[0], top + size[1]))
            files.append(next(file for file in (jpeg(image, quality) for quality in range(75, 101)) if len(file) > bytes_each))
    return files


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def timm_batch(transforms, files):
    return default_collate([transforms.train(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def fast_batch(transforms, files):
    return transforms.collate([transforms.train(file) for file in files])


def timed(function, *values):
    start = time.process_time()
    result = function(*values)
    return result, time.process_time() - start


def measure(options, size, files, rounds):
    """Median seconds per image: timm's, our worker's part, the rest."""
    with_timm, fast = (build_transforms(Augmentation(transforms=name, input_size=size, **options)) for name in ("timm", "fast"))
    seconds = []
    for seed in range(rounds + 1):
        seed_everything(seed)
        _, of_timm = timed(timm_batch, with_timm, files)
        seed_everything(seed)
        batch, of_worker = timed(fast_batch, fast, files)
        _, of_finish = timed(fast.finish, *batch)
        seconds.append((of_timm, of_worker, of_finish))
    return [statistics.median(column) / len(files) for column in zip(*seconds[1:], strict=True)]  # the first one warms up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help=f"of {BATCH} images for each of the two (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = jpeg_files()
    print(f"{len(files)} files of {', '.join(f'{len(file) / 1000:.0f}' for file in files)} KB, input {args.size}, 1 thread")
    print("| images/s and core | timm | worker's part | ratio | with finish | ratio |\n|---|---|---|---|---|---|")
    for name, options in JOBS.items():
        of_timm, worker, rest = measure(options, args.size, (files * BATCH)[:BATCH], args.rounds)
        ours = (f"{1 / seconds:.0f} | {of_timm / seconds:.2f}" for seconds in (worker, worker + rest))
        print(f"| {name} | {1 / of_timm:.0f} | {' | '.join(ours)} |")


if __name__ == "__main__":
    main()
