"""Memory of loader workers while the indices of a very long data set go round, without reading any image.

    python benchmarks/loader_memory.py

Prints, for each worker, its private memory (pages that no other process shares) after the first batch and after the last.
"""

import argparse
import os
import pathlib
import re
import sys
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from utils.data.datasets import RecognitionDataset
from utils.data.loaders import in_worker
from utils.data.sampling import TrainBatches
from utils.folders.class_folders import Folder


class Names(Folder):
    """A folder whose images are made up when they are read; the name is looked up all the same."""

    def read(self, index):
        return len(self.name(index))


def private_mib(pid):
    """Memory of a process that it shares with nobody, in MiB."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.M)) / 1024


def growth(entries, workers, epochs, batch_size=1024):
    """[(MiB after the first batch, MiB at the end)] of each worker, over `epochs` passes."""
    paths = (f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(entries))
    source = Names("/data/train", paths, np.arange(entries) % 1000, [f"n{i:08d}" for i in range(1000)])
    batches = TrainBatches(entries, batch_size)
    data = RecognitionDataset(source, lambda length: torch.tensor(length), seed=0)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=batches, num_workers=workers, persistent_workers=True, worker_init_fn=in_worker
    )
    before = None
    for epoch in range(epochs):
        batches.epoch = epoch
        for number, _ in enumerate(loader):
            if before is None and number == 2 * workers:  # each has had its first
                pids = [worker.pid for worker in loader._iterator._workers]
                before = [private_mib(pid) for pid in pids]
    return list(zip(before, map(private_mib, pids), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")
    start = time.perf_counter()
    for worker, (before, after) in enumerate(growth(args.entries, args.workers, args.epochs)):
        print(f"worker {worker}: {before:.1f} MiB at the start, {after:.1f} MiB at the end, {after - before:+.1f} MiB")
    print(f"{args.entries:,} entries, {args.epochs} epochs, {time.perf_counter() - start:.0f} s, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
