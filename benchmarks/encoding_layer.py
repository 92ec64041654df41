"""Time and memory of the encoding layer against its formula written out.

    python benchmarks/encoding_layer.py
    python benchmarks/encoding_layer.py --size 2 512 96 96 --threads 4

Prints, for both, seconds of one forward and backward pass (the fastest of some) and how far the process's memory grew
during the first, each measured in a process of its own; then the ratios, and how far the two results are apart.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from segmentation_networks.encnet import Encoding


def written_out(layer, x):
    """sum_i softmax_k(s_k ||x_i - c_k||^2) (x_i - c_k), with all (B, N, K, C) residuals in memory."""
    residuals = x.flatten(2).transpose(1, 2)[:, :, None] - layer.codewords
    weights = (layer.scale * residuals.square().sum(3)).softmax(2)
    return (weights[..., None] * residuals).sum(1)


FORMULAS = {"formula": written_out, "encoding layer": lambda layer, x: layer(x)}


def problem(size, codewords):
    torch.manual_seed(0)
    return Encoding(size[1], codewords), torch.randn(size).relu()


def measure(formula, size, codewords, repeats):
    layer, x = problem(size, codewords)
    x.requires_grad_()

    def step():
        start = time.perf_counter()
        formula(layer, x).square().sum().backward()
        return time.perf_counter() - start

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [step()]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {"seconds": min(seconds + [step() for _ in range(repeats - 1)]), "MiB": grown * unit / 2**20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=int, nargs=4, default=(2, 512, 60, 60), help="batch, channels, height, width (2 512 60 60)"
    )
    parser.add_argument("--codewords", type=int, default=32, help="(32)")
    parser.add_argument("--repeats", type=int, default=5, help="passes, the fastest of which counts (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    parser.add_argument("--only", choices=FORMULAS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(measure(FORMULAS[args.only], args.size, args.codewords, args.repeats)))
        return

    print(f"input {tuple(args.size)}, {args.codewords} codewords, float32, CPU, {args.threads} threads")
    results = {}
    for name in FORMULAS:
        command = [sys.executable, *sys.argv, "--only", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{name:>15}: {results[name]['seconds']:.3f} s, {results[name]['MiB']:.0f} MiB")
    plain, ours = results.values()
    print(f"{'ratio':>15}: {plain['seconds'] / ours['seconds']:.1f} x faster, {plain['MiB'] / ours['MiB']:.1f} x less memory")
    with torch.no_grad():
        layer, x = problem(args.size, args.codewords)
        expected, got = (formula(layer, x) for formula in FORMULAS.values())
    print(f"{'difference':>15}: {(got - expected).abs().max() / expected.abs().max():.1e} of the largest value")


if __name__ == "__main__":
    main()
