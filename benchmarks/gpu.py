"""All there is to check on one GPU, in eight minutes, with one command.

    python benchmarks/gpu.py                              # on a machine with a GPU; results and tables go to gpu_results/
    python benchmarks/gpu.py --only speed --minutes 5     # one part: tests, kernels, loader or speed
    python benchmarks/gpu.py --small                      # the same in small, on a CPU too: does it run to its end?

    tests    the tests marked gpu
    kernels  what bounds ConvNeXt: its operators against their bytes and operations
    loader   images/s of the loader from JPEG files, against what the loop needs
    speed    the loop, the bare step and timm's step: images/s, share of the card's bf16 peak, memory

Each part has a share of the time, what one leaves over goes to the next, and one that takes longer is ended. A part writes
gpu_results/PART.json row by row, so that nothing is lost; gpu_results/tables.md has the tables of RESULTS.md. Needs neither a
network nor the library `datasets`. What is measured, and how, is written in gpu_runs.py and gpu_kernels.py.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from utils.files import write_json, write_text

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARES = {"tests": 0.38, "kernels": 0.07, "loader": 0.12, "speed": 0.43}  # of the time, in this order
RESERVE = 5.0  # seconds that are kept for the tables, and for ending what takes too long


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART", help=", ".join(SHARES))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu_results"), help="folder (%(default)s)")
    parser.add_argument("--small", action="store_true", help="small models, few updates")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of the loader (%(default)s)")
    parser.add_argument("--here", action="store_true", help="run the parts in this process, which nothing ends")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes - RESERVE
    for number, part in enumerate(args.only):
        left = max(1.0, end - time.monotonic())
        seconds = left * SHARES[part] / sum(SHARES[other] for other in args.only[number:])
        if args.here:
            run_part(part, args, seconds)
        else:
            run_apart(part, args, seconds)
    text = tables(args.out)
    write_text(args.out / "tables.md", text)
    print(text)


def run_apart(part, args, seconds):
    """The part in a process of its own, which is ended with all of its own after so many seconds."""
    words = ["--only", part, "--minutes", seconds / 60, "--out", args.out, "--workers", args.workers, "--here"]
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), *map(str, words), *["--small"] * args.small]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = f"ended after {seconds:.0f} s, its time"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    print(f"{part}: {'done' if code == 0 else code}", flush=True)


def run_part(part, args, seconds):
    """The part within this process; its rows are in `args.out`/PART.json as soon as they are known."""
    args.end, rows, about = time.monotonic() + seconds, [], {}
    path = args.out / f"{part}.json"
    path.unlink(missing_ok=True)

    def add(**columns):
        rows.append(columns)
        write_json(path, {"about": about, "rows": rows})
        print(f"{part}: {columns}", file=sys.stderr, flush=True)

    if part == "tests":
        return run_tests(args, add, about)
    import gpu_kernels
    import gpu_runs

    device = gpu_kernels.prepare_device()
    about.update(describe(device))
    {"kernels": gpu_kernels.kernels, "loader": gpu_runs.loader, "speed": gpu_runs.speed}[part](args, device, add)


def describe(device):
    """The machine and the libraries that the figures are of."""
    import accelerate
    import timm
    import torch

    return {
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }  # fmt: skip


def run_tests(args, add, about):
    """A row for each test marked gpu; in small, for a few of the same tests on the CPU. tests.txt has what pytest said."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [path for path in files if path.parent.name == "gpu" or "mark.gpu" in path.read_text()]
    words = ["-m", "not gpu", "-k", "keeps_its_lane or batches_under_load"] if args.small else ["-m", "gpu"]
    if importlib.util.find_spec("xdist") and not args.small:
        words += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    command = [sys.executable, "-m", "pytest", *map(str, files), *words, "-o", "addopts=", "-v", "-rfE", "--tb=short"]
    process = subprocess.Popen(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    under_way = True
    with open(args.out / "tests.txt", "w") as log:
        for line in process.stdout:
            log.write(line)
            log.flush()
            under_way = (under_way and not line.startswith("====")) or "test session starts" in line
            test, outcome = re.search(r"tests/\S+::(\S+)", line), re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
            if under_way and test and outcome:
                add(test=test[1], outcome=outcome[1].lower())
    about["code"] = process.wait()


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(folder):
    """The results in `folder` as RESULTS.md has them."""
    found = {part: json.loads(path.read_text()) for part in SHARES if (path := folder / f"{part}.json").exists()}
    about = next((result["about"] for result in found.values() if "card" in result["about"]), {})
    head = ", ".join(value if name == "card" else f"{name} {value}" for name, value in about.items())
    rows = {part: result["rows"] for part, result in found.items()}
    made = {
        "tests": tests_table, "kernels": kernels_table, "speed": speed_table,
        "loader": lambda of_loader: loader_table(of_loader, rows.get("speed", [])),
    }  # fmt: skip
    return "\n\n".join([head, *(made[part](rows[part]) for part in rows)]).strip() + "\n"


def table(columns, rows):
    """Markdown; a cell is text, a number or None, which is empty. Without rows one that is to be filled in."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join(lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows or [[None] * len(columns)]])


def _cell(value):
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def tests_table(rows):
    counts = [sum(row["outcome"] == outcome for row in rows) for outcome in ("passed", "failed", "error", "skipped")]
    wrong = [row["test"] for row in rows if row["outcome"] in ("failed", "error")]
    columns = ("tests marked gpu: passed", "failed", "errors", "skipped", "which failed")
    return table(columns, [[*counts, ", ".join(wrong)]] if rows else [])


def speed_table(rows):
    columns = (
        "bf16, channels_last", "pixels", "batch", "loop, images/s", "bare step", "timm's step", "loop / bare", "loop / timm",
        "share of the bf16 peak", "memory, GiB: loop / bare / timm",
    )  # fmt: skip
    cells = []
    for row in rows:
        memory = " / ".join(f"{size / 2**30:.2f}" for size in row.get("memory") or () if size is not None)
        share = row.get("share of peak") and f"{100 * row['share of peak']:.1f} %"
        figures = [row.get(name) for name in ("loop", "bare", "timm", "loop / bare", "loop / timm")]
        name = f"{row['model']}{', compile' * row['compile']}"
        cells.append([name, row["pixels"], row["batch"], *figures, share, memory or row.get("why")])
    return table(columns, cells)


def loader_table(rows, of_speed=()):
    """Beside each rate the loop's that asks for most at 224 pixels."""
    needs = max(((row["loop"], row["model"]) for row in of_speed if row.get("loop") and row["pixels"] == 224), default=None)
    columns = ("JPEG files of 500 x 375, 224 pixels", "workers", "loader, images/s", "the fastest loop needs", "loader / loop")
    cells = []
    for row in rows:
        needed = [f"{needs[0]:.0f} ({needs[1]})", row["rate"] / needs[0]] if needs else [None, None]
        cells.append([row["augmentation"], row["workers"], row["rate"], *needed])
    return table(columns, cells)


def kernels_table(rows):
    """ms of all blocks of the stage together, forward and backward."""
    columns = (
        "operator of ConvNeXt, bf16, batch 256", "stage: blocks x channels x pixels", "ms, forward", "with backward", "GB/s",
        "TFLOP/s", "least ms", "times the least", "bound by",
    )  # fmt: skip
    cells = []
    for row in rows:
        blocks = row.get("blocks", 1)
        forward, whole, least = (row[name] * blocks if row.get(name) else None for name in ("forward ms", "ms", "least ms"))
        rates = [
            row["bandwidth"] / 1e9 if row.get("bandwidth") else None,
            row["operations"] / 1e12 if row.get("operations") else None,
        ]
        cells.append(
            [row["operator"], row["stage"], forward, whole, *rates, least, whole / least if least else None, row.get("bound")]
        )
    return table(columns, cells)


if __name__ == "__main__":
    main()
