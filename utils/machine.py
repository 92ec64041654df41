"""What loader workers need of the machine: shared memory for their batches, and open files."""

import os

import torch

PREFETCHED = 2  # batches that each worker makes ahead, torch's default
PLENTY = 1 << 30  # bytes of shared memory that are not looked at closer
OWN_FILES, FILES_OF_WORKER = 40, 8  # open files of a run, and more for each worker
SHARED = "/dev/shm"


def workers_that_fit(wanted, dataset, batch_size, sharers=1, say=print):
    """`wanted` loader workers, or as many as shared memory and open files suffice for, which is said.

    dataset: whose first sample shows how large a batch is. sharers: processes of this machine that share the memory.
    """
    files = max(0, (open_files() - OWN_FILES) // FILES_OF_WORKER)
    if wanted > files:
        say(f"--num_workers {files} instead of {wanted}: a process may have {open_files()} open files; `ulimit -n` allows more")
        wanted = files
    free = shared_memory()
    if wanted and free is not None and free < PLENTY * sharers and hasattr(dataset, "__getitem__"):
        with torch.random.fork_rng(devices=[]):  # weights that are drawn after this are the same
            batch = batch_size * _bytes(dataset[0])
        fit = min(wanted, int(0.9 * free / sharers // (batch * PREFETCHED + (1 << 20))))
        if fit < wanted:
            say(
                f"--num_workers {fit} instead of {wanted}: each keeps {PREFETCHED} batches of {batch / 2**20:.1f} MiB in "
                f"{SHARED}, which has {free / 2**20:.0f} MiB free; docker run --shm-size 8g gives more"
            )
        wanted = fit
    return wanted


def open_files():
    """How many files this process may have open, after it asked for all that the system allows it."""
    try:
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return max(soft, most) if soft != resource.RLIM_INFINITY else most
    except (ImportError, OSError, ValueError):
        return 65_536


def shared_memory():
    """Bytes that are free in it for files of this process; None where the system has no such folder."""
    try:
        there = os.statvfs(SHARED)
    except (OSError, AttributeError):  # another system
        return None
    return there.f_bavail * there.f_frsize if os.access(SHARED, os.W_OK) else 0


def _bytes(part):
    """Bytes of a tensor or an array, alone or in lists."""
    if isinstance(part, list | tuple):
        return sum(map(_bytes, part))
    return part.numel() * part.element_size() if torch.is_tensor(part) else getattr(part, "nbytes", 8)
