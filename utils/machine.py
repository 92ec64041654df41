"""What the machine offers to this process."""

import os

import torch


def has_accelerator():
    """Whether torch finds a GPU or another accelerator that can be used."""
    return torch.accelerator.is_available()


def cores_per_process():
    """CPU cores that this process may use, shared fairly with the other processes on this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def use_all_cores():
    """Give torch this process's share of the cores; returns the number of threads.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 where the user set nothing, and training on a CPU would
    then use a single core. A larger number is the user's own wish and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(cores_per_process())
    return torch.get_num_threads()
