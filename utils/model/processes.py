"""The processes of a run, and what the machine offers to each."""

import ctypes
import os
import pathlib
import re
import warnings

import accelerate
import timm.layers
import torch
import torch.distributed

from utils.cli.arguments import derive_batch
from utils.cli.errors import InputError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h of glibc


def start_processes(batch_size, update_freq, total_batch_size, use_amp=False, *, default_batch_size, sync_bn=False):
    """(Accelerator, Batch): joins the processes that the launcher started, and gives torch this one's share of the cores.

    batch_size, update_freq and total_batch_size: see `derive_batch`. use_amp: bf16 (fp16 where a GPU has no bf16) if
    the launcher chose no precision. Raises InputError where launcher and Accelerate disagree on the processes, and for
    what their kind cannot do.
    """
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    batch = derive_batch(batch_size, update_freq, total_batch_size, world, default_batch_size, rank)
    precision = None
    if use_amp and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        precision = "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else "bf16"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise InputError("the launcher asks for DeepSpeed: expected accelerate_configs/fsdp2.yaml, which shards weights too")
    use_all_cores()
    keep_freed_memory()
    _meet_again(world)
    # Without cpu=True several processes on a machine without GPU would each believe to be alone.
    accelerator = accelerate.Accelerator(
        cpu=not has_accelerator(), mixed_precision=precision, gradient_accumulation_steps=batch.update_freq
    )
    # Of 1 x 1 convolutions, whose gradient has the same order in memory under another name; said once by every process.
    warnings.filterwarnings("ignore", "(?s)Grad strides do not match bucket view strides")
    if world != accelerator.num_processes:
        raise InputError(
            f"the launcher started {world} processes, but Accelerate sees {accelerator.num_processes}: launch with torchrun "
            "or with a config of accelerate_configs/"
        )
    if sync_bn and world > 1 and accelerator.device.type == "cpu":
        raise InputError("--sync_bn: torch synchronises batch norm on GPUs only; leave it out on the CPU")
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise InputError("FSDP of version 1: expected fsdp_version 2, as in accelerate_configs/fsdp2.yaml")
    return accelerator, batch


def describe(accelerator):
    """The processes of a run and what each has, in words."""
    device = accelerator.device.type
    on = f"{torch.get_num_threads()} CPU threads" if device == "cpu" else f"one {device}"
    return f"processes: {accelerator.num_processes}, each with {on}; precision {accelerator.mixed_precision}"


def _meet_again(world):
    """After a restart (--max_restarts), join the processes under a name of this attempt.

    The launcher's store is the one of before, and holds the addresses of processes that are gone.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if world == 1 or attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    rank = int(os.environ["RANK"])
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    backend = "nccl" if torch.cuda.is_available() else None if has_accelerator() else "gloo"
    store = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)


def fit_to_hardware(model, *, channels_last=False, grad_checkpointing=False, sync_bn=False):
    """The model as the device and the processes want it. In evaluation it computes what it did before.

    channels_last: weights are in memory order NHWC. grad_checkpointing: activations are computed again in the backward
    pass; InputError where timm cannot do it for this model. sync_bn: batch norm takes its statistics over all processes.
    """
    if grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError):
            raise InputError("--grad_checkpointing: timm has none for this model; leave the flag out") from None
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    # Not torch's converter, which drops the activation inside timm's BatchNormAct2d.
    return timm.layers.convert_sync_batchnorm(model) if sync_bn else model


def has_accelerator():
    """Whether torch finds a GPU or another accelerator that can be used."""
    return torch.accelerator.is_available()


def peak_memory(device):
    """In words: what torch allocated on the GPU at most so far, or, on a CPU, what this process held."""
    if device.type == "cuda":
        return f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    try:  # not getrusage, which begins with the peak of the process that started this one
        kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
        return f"peak {kibibytes / 2**20:.2f} GiB"
    except (OSError, TypeError):  # not Linux
        return "peak unknown"


def cores_per_process():
    """CPU cores that this process may use, shared fairly with the other processes on this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def loader_workers(wanted=None):
    """Loader processes of this process: as many as `wanted`, or its share of the cores, 10 at most."""
    return min(10, cores_per_process()) if wanted is None else wanted


def keep_freed_memory():
    """Keep the memory of freed tensors for the next ones, on a CPU: returns whether it could be asked of the C library.

    glibc gives each large block back to the system at once, which fills the next one with zeros, page by page: more than a
    tenth of a training step. What the user chose for it (MALLOC_…, another library by LD_PRELOAD) stays.
    """
    if has_accelerator() or any(name == "LD_PRELOAD" or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def use_all_cores():
    """Give torch this process's share of the cores; returns the number of threads.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 where the user set nothing, and training on a CPU would
    then use a single core. A larger number is the user's own wish and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(cores_per_process())
    return torch.get_num_threads()
