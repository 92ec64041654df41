"""One page about this machine, for a look of your own or a bug report: what is there, what works, and what to change.

    python -m utils.doctor

It trains for a few seconds on each device. It prints no secrets: of the environment only the variables named here.
"""

import os
import pathlib
import platform
import shutil
import time

import accelerate
import torch

from utils import machine, versions
from utils.cli.arguments import Parser, number
from utils.cli.errors import first_line, one_line, run_script
from utils.cli.threads import LAUNCHERS, spin_briefly, user_chose_threads
from utils.cli.urls import hide_secrets
from utils.model.processes import cores_per_process, has_accelerator, loader_workers, peak_memory

VARIABLES = (
    "OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT KMP_BLOCKTIME MKL_NUM_THREADS LD_PRELOAD CUDA_VISIBLE_DEVICES "
    "HF_HUB_OFFLINE HF_HOME HF_ENDPOINT TORCH_HOME MPLCONFIGDIR TMPDIR WORLD_SIZE RANK LOCAL_WORLD_SIZE "
    "ACCELERATE_MIXED_PRECISION ACCELERATE_USE_CPU ACCELERATE_GRADIENT_ACCUMULATION_STEPS ACCELERATE_DYNAMO_BACKEND "
    "NCCL_DEBUG NCCL_P2P_DISABLE PYTORCH_CUDA_ALLOC_CONF PYTHONUTF8 LANG LC_ALL"
).split()
SECONDS = 5  # of training on each device
LEAST_SHARED, LEAST_FILES, LEAST_DISK = 1 << 30, 256, 5 << 30
GIB = 2**30


def main(args):
    """Print the page."""
    advice, chosen = [], {name: hide_secrets(os.environ[name]) for name in VARIABLES if name in os.environ}
    for title, rows in (
        ("versions", versions.versions() | {"commit": versions.commit() or "no git", "system": platform.platform()}),
        ("machine", _machine(advice)),
        ("launcher", _launcher(advice)),
        ("environment", chosen or {"set": "nothing"}),
        ("devices", _devices(args.seconds, advice)),
    ):
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<{max(map(len, rows)) + 2}}{one_line(str(value))}")
    print("\nwhat to change")
    for line in advice or ["nothing that this page knows of"]:
        print(f"  {line}")


def _machine(advice):
    """Cores, memory, disk and limits."""
    cores, files, shared = cores_per_process(), machine.open_files(), machine.shared_memory()
    rows = {
        "cores": f"{cores} of {os.cpu_count()} for this process, {torch.get_num_threads()} threads of torch",
        "loader workers": f"{loader_workers()} without --num_workers",
        "memory": _memory(),
        "open files": f"{files:,}",
        "shared memory": "none here" if shared is None else f"{shared / GIB:.2f} GiB free in {machine.SHARED}",
    }
    for name, folder in (("disk here", "."), ("disk of the caches", pathlib.Path.home()), ("disk for temporary files", "/tmp")):
        try:
            free = shutil.disk_usage(folder).free
            rows[name] = f"{free / GIB:.1f} GiB free in {os.path.abspath(folder)}"
            if free < LEAST_DISK:
                advice.append(f"{os.path.abspath(folder)} has {free / GIB:.1f} GiB free: make room, or choose another disk")
        except OSError as error:
            rows[name] = f"{folder}: {error.strerror}"
    if shared is not None and shared < LEAST_SHARED:
        advice.append(f"{machine.SHARED} has {shared / 2**20:.0f} MiB: docker run --shm-size 8g, or --num_workers 0")
    if files < LEAST_FILES:
        advice.append(f"a process may have {files} open files: ulimit -n 4096")
    if user_chose_threads() and torch.get_num_threads() < cores:
        advice.append(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} leaves cores idle: unset it, and all {cores} are used")
    return rows


def _memory():
    """In words: memory of the machine, what is available, and what a container may take."""
    try:
        lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return "unknown"
    text = f"{free:.1f} of {total:.1f} GiB available"
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            bytes_ = int(pathlib.Path(limit).read_text())
            return text + f", {bytes_ / GIB:.1f} GiB for this container" * (bytes_ < total * GIB)
        except (OSError, ValueError):  # another kind of container, or no limit
            continue
    return text


def _launcher(advice):
    """How this process was started, and Accelerate's own config."""
    config = pathlib.Path(accelerate.commands.config.config_args.default_config_file)
    started = "a launcher" if LAUNCHERS & set(os.environ) else "python"
    if config.is_file():
        advice.append(
            f"Accelerate has a config of its own in {config}: `accelerate launch` follows it; --config_file names another"
        )
    return {"started by": started, "Accelerate's config": config if config.is_file() else "none, its defaults hold"}


def _devices(seconds, advice):
    """{device: what it is, its precisions, and how fast it trains}."""
    found = {"cpu": torch.device("cpu")}
    if has_accelerator():
        kind = torch.accelerator.current_accelerator().type
        found |= {f"{kind}:{i}": torch.device(kind, i) for i in range(torch.accelerator.device_count())}
    rows = {}
    for name, device in found.items():
        try:
            rows[name] = f"{_name(device)}; {', '.join(_precisions(device))}; {_training(device, seconds)}"
        except Exception as error:  # drivers raise many kinds
            rows[name] = f"does not work: {type(error).__name__}: {first_line(error)}"
            advice.append(f"{name} does not train: {first_line(error)}")
    if len(found) == 1 and shutil.which("nvidia-smi"):
        advice.append(
            "there is nvidia-smi, but torch finds no GPU: the driver, CUDA_VISIBLE_DEVICES, or a build of torch for CPUs"
        )
    return rows


def _name(device):
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, compute capability {facts.major}.{facts.minor}"
    return platform.processor() or platform.machine()


def _precisions(device):
    """The types in which a convolution works there."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8, device=device, dtype=dtype),
                                       torch.ones(4, 3, 3, 3, device=device, dtype=dtype)).sum().item()  # fmt: skip
            yield str(dtype).removeprefix("torch.")
        except RuntimeError:
            yield f"no {str(dtype).removeprefix('torch.')}"


def _training(device, seconds):
    """Images per second of a small network on noise, for so many seconds, and the memory that it took."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 7, 4), torch.nn.GELU(), torch.nn.Conv2d(32, 64, 3, 2), torch.nn.GELU(), torch.nn.Flatten(),
        torch.nn.Linear(64 * 27 * 27, 10),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters())
    images, labels = torch.rand(16, 3, 224, 224, device=device), torch.arange(16, device=device) % 10
    begin, updates = None, 0
    while begin is None or time.perf_counter() - begin < seconds:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # which waits for the device
        updates, begin = (updates + 1, begin) if begin else (0, time.perf_counter())  # the first update warms up
    return f"{updates * 16 / (time.perf_counter() - begin):.0f} images/s in a small training, {peak_memory(device)}"


def parse_args(argv=None):
    parser = Parser("python -m utils.doctor", __doc__)
    parser.add_argument("--seconds", type=number(above=0), default=SECONDS, help="of training on each device")
    return parser.parse_args(argv)


if __name__ == "__main__":
    spin_briefly()
    run_script("python -m utils.doctor", main, parse_args())
