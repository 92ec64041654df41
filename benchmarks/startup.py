"""How long it takes until training begins: the answers of the command line, the first update, the index of a large folder.

    python benchmarks/startup.py                     # the index of 1,281,000 files takes half a minute to lay out
    python benchmarks/startup.py --files 100000
    python benchmarks/startup.py --imports           # and where the time of the imports goes

The files are hard links to a few small ones, in 1,000 class folders of a temporary folder, which is deleted afterwards. The
disk is warm. Beside the seconds on the clock stand those of the processor, which other load on the machine changes less.
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "train_recognition.py"
sys.path.insert(0, str(ROOT))

# what the script is asked, the line of its output that is waited for (None: its end), and the seconds it may take
COMMANDS = {
    "first line": (["--layer_decay", "0.7"], r"train_recognition: ", 1),
    "--help": (["--help"], None, 2),
    "a wrong flag": (["--layer_decey", "0.7"], None, 2),
    "first update of the built-in job": (["--layer_decay", "0.7", "--log_every", "1"], r"epoch 1/\d+, update 1/", 8),
}
PARTS = (  # of what is imported, most special first
    "torch._dynamo", "torch._inductor", "torch.distributed", "torch.fx", "torch", "torchvision", "timm", "accelerate",
    "sklearn", "scipy", "pandas", "sympy", "pyarrow", "datasets", "matplotlib", "triton", "numpy", "PIL", "utils",
)  # fmt: skip


def seconds_until(flags, pattern, folder):
    """(seconds, processor seconds) from the start of the script to the line that `pattern` finds, or to its end."""
    start = time.perf_counter()
    command = [sys.executable, "-u", SCRIPT, *flags] + ([] if pattern is None else ["--output_dir", f"{folder}/run"])
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = next((line for line in process.stdout if pattern and re.search(pattern, line)), None)
        seconds, used = time.perf_counter() - start, processor_seconds(process.pid)
        process.kill()
    if pattern and line is None:
        sys.exit(f"{' '.join(flags)}: never printed {pattern}")
    return seconds, used


def processor_seconds(pid):
    """What a process has used so far, its threads together; nan where /proc does not tell."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lay_out(root, files, classes=1000):
    """A tree of `files` hard links in `classes` folders, with names as long as ImageNet's."""
    originals = []
    for number in range(files // 50_000 + 1):  # a file cannot have as many names as one likes
        originals.append(root / f"original-{number}")
        originals[-1].write_bytes(b"\xff\xd8\xff")
    for label in range(classes):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for i in range(label, files, classes):
            os.link(originals[i // 50_000], folder / f"n{label:08d}_{i}.JPEG")
    time.sleep(2.5)  # a folder that has just changed is not trusted
    return root / "train"


def measure_index(files, folder):
    """Seconds of the first and of the second index of a large folder, both on a warm disk."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    from utils.folders.class_folders import scan_folder

    tree = lay_out(pathlib.Path(folder), files)
    for time_of in ("first", "second"):
        start, used = time.perf_counter(), time.process_time()
        images = len(scan_folder(tree).labels)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(f"| {time_of} index of {images:,} files | {seconds:.2f} | {used:.2f} | {'5' if time_of == 'second' else ''} |")
    kept = [path.stat().st_size for path in pathlib.Path(folder, "cache", "strata").glob("*.npz")]
    print(f"kept list: {', '.join(f'{size / 1e6:.1f} MB' for size in kept) or 'none'}")


def measure_imports(folder):
    """Milliseconds that the modules of each package take to import, without what they import in turn."""
    command = [sys.executable, "-X", "importtime", SCRIPT, "--dry_run", "json"]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True).stderr
    own = collections.Counter()
    for microseconds, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", text, re.M):
        part = next((part for part in PARTS if f"{module}.".startswith(f"{part}.")), "the rest")
        own[part] += int(microseconds) / 1000
    print(
        f"imports: {own.total():.0f} ms as -X importtime counts: " + ", ".join(f"{k} {v:.0f}" for k, v in own.most_common(12))
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_281_000, help="of the large folder; 0: leave it out (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each command; the fastest counts (%(default)s)")
    parser.add_argument("--imports", action="store_true", help="also print the time of the imports by package")
    args = parser.parse_args()
    print("| until | seconds | processor seconds | at most |\n|---|---|---|---|")
    for name, (flags, pattern, limit) in COMMANDS.items():
        runs = []
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(seconds_until(flags, pattern, folder))
        seconds, used = min(runs)
        print(f"| {name} | {seconds:.2f} | {used:.2f} | {limit} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.files:
            measure_index(args.files, folder)
        if args.imports:
            measure_imports(folder)


if __name__ == "__main__":
    main()
