"""What torch and its OpenMP read in the environment when they are imported: how threads wait for each other, whether the user
chose their number, and which GPUs there are. Standard library only.
"""

import glob
import os
import pathlib

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}  # LLVM's OpenMP reads the first, GNU's both
GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and those that Windows lends to Linux
ON_CPU = "ACCELERATE_USE_CPU"  # true: the launcher, or the user, asks for the CPU
LAUNCHERS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"}  # torchrun and `accelerate launch` export these


def asks_for_cpu():
    """Whether the launcher or the user asks for the CPU, in a word that Accelerate takes for true."""
    return os.environ.get(ON_CPU, "").lower() in ("y", "yes", "t", "true", "on", "1")


def hide_gpus():
    """Where the run is to be on the CPU, let it find no GPU, to be called before torch is imported.

    Processes on the CPU would else meet on GPUs, one for each, and end where these are fewer.
    """
    if asks_for_cpu():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # AMD's are hidden by it too


def spin_briefly():
    """Let threads sleep while they wait for the others, to be called before torch is imported.

    By default they spin. Where other programs want the same cores, loader workers among them, each thread then waits for
    one that is not running. Stays as it is where there is a GPU, and where the user chose.
    """
    chosen = any(name in os.environ for name in (*WAITING, "KMP_BLOCKTIME"))
    if not chosen and (asks_for_cpu() or not any(glob.glob(path) for path in GPUS)):
        os.environ.update(WAITING)


def user_chose_threads():
    """Whether OMP_NUM_THREADS is the user's own: the launchers set it, most often to 1, where the user did not.

    A launcher is the parent of this process, and Linux tells with which environment it was started.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if not LAUNCHERS & set(os.environ):
        return True
    try:
        started_with = pathlib.Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:  # no Linux
        return os.environ["OMP_NUM_THREADS"] != "1"
    return any(line.startswith(b"OMP_NUM_THREADS=") for line in started_with)
