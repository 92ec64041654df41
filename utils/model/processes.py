"""The processes of a run, and what the machine offers to each."""

import collections
import contextlib
import ctypes
import datetime
import fractions
import os
import pathlib
import platform
import re
import types
import warnings

import accelerate
import timm.layers
import torch
import torch.distributed
from accelerate.utils import InitProcessGroupKwargs

from utils.cli.arguments import derive_batch
from utils.cli.errors import InputError, first_line
from utils.cli.threads import asks_for_cpu, user_chose_threads

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h of glibc
# How long processes wait for one that works alone: a download, the index of a folder, a data set that is prepared, an
# upload. torch's ten minutes are too few for those. A process that ends is noticed without any limit: its launcher ends the
# others (torchrun, accelerate, srun --kill-on-bad-exit), gloo and NCCL's network report its connection closed, and NCCL's
# monitor ends a process whose own watchdog stands still (TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC). Only one that lives and never
# answers is waited for so long.
PATIENCE = datetime.timedelta(hours=12)
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # how many srun and mpirun have started


def start_processes(batch_size, update_freq, total_batch_size, speed, *, default_batch_size):
    """(Accelerator, Batch): joins the processes that the launcher started, and gives torch this one's share of the cores.

    batch_size, update_freq and total_batch_size: see `derive_batch`. speed: flags.Speed. Raises InputError where launcher
    and Accelerate disagree on the processes, and for what their kind cannot do.
    """
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    batch = derive_batch(batch_size, update_freq, total_batch_size, world, default_batch_size, rank)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise InputError("the launcher asks for DeepSpeed: expected accelerate_configs/fsdp2.yaml, which shards weights too")
    # Of Accelerate's threads on CPUs, whose number is chosen below.
    warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")
    # Of 1 x 1 convolutions, whose gradient has the same order in memory under another name; said once by every process.
    warnings.filterwarnings("ignore", "(?s)Grad strides do not match bucket view strides")
    keep_freed_memory()
    choose_kernels(speed)
    _meet_again(world)
    try:
        # Without cpu=True several processes on a machine without GPU would each believe to be alone.
        accelerator = accelerate.Accelerator(
            cpu=not has_accelerator(), mixed_precision=choose_precision(speed.use_amp),
            gradient_accumulation_steps=batch.update_freq, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )  # fmt: skip
    except ImportError as error:  # of what a config of Accelerate's asks for, such as enable_cpu_affinity
        raise InputError(f"Accelerate: {first_line(error)}") from None
    if world != accelerator.num_processes:
        raise InputError(
            f"the launcher started {world} processes, but Accelerate sees {accelerator.num_processes}: launch with torchrun "
            "or with a config of accelerate_configs/"
        )
    if (steps := accelerator.gradient_accumulation_steps) != batch.update_freq:  # of its config, or of the environment
        raise InputError(
            f"the launcher asks for {steps} micro-batches an update (gradient_accumulation_steps), the flags for "
            f"{batch.update_freq}: take it out of the launcher; --update_freq {steps} asks for the same"
        )
    if speed.sync_bn and world > 1 and accelerator.device.type == "cpu":
        raise InputError("--sync_bn: torch synchronises batch norm on GPUs only; leave it out on the CPU")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("the launcher asks for fp16, which is for GPUs: expected bf16 or no on a CPU")
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise InputError("FSDP of version 1: expected fsdp_version 2, as in accelerate_configs/fsdp2.yaml")
    if accelerator.distributed_type == "FSDP" and speed.channels_last:
        raise InputError("--channels_last with FSDP, which shards weights in their ordinary order in memory only: leave it out")
    use_all_cores()
    return accelerator, batch


def choose_precision(use_amp):
    """What --use_amp asks Accelerate for: None (what the launcher chose), "bf16", or "fp16" on a GPU without bf16 of its own.

    `accelerate launch` exports "no" both where "no" was chosen and where nothing was, so --use_amp wins over "no".
    """
    if not use_amp or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        return None
    return "fp16" if _emulates_bf16() else "bf16"


def _emulates_bf16():
    """Whether a GPU older than NVIDIA's Ampere would compute in bf16, which it does slowly, in float32."""
    return has_accelerator() and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)


def describe(accelerator):
    """Lines that say the processes of a run and what each has; the last one what is in doubt about their number."""
    device, precision = accelerator.device.type, accelerator.mixed_precision
    on = f"{torch.get_num_threads()} CPU threads" if device == "cpu" else f"one {device}"
    if precision != "no" and os.environ.get("ACCELERATE_MIXED_PRECISION") == "no":
        precision += ", as --use_amp asks (the launcher said no)"
    elif precision == "bf16" and _emulates_bf16():
        precision += ", which this GPU only emulates (fp16 is faster)"
    lines = [f"processes: {accelerator.num_processes}, each with {on}; precision {precision}"]
    tasks = next((int(os.environ[name]) for name in TASKS if os.environ.get(name, "").isdigit()), 1)
    if tasks > 1 and "WORLD_SIZE" not in os.environ:
        lines.append(f"warning: {tasks} tasks were started, of which each trains alone: one run on all of them is started by "
                     "torchrun, accelerate launch, or accelerate_configs/slurm.sbatch")  # fmt: skip
    return lines


def choose_kernels(speed):
    """How GPUs compute float32, and how cuDNN finds its kernels: --tf32, --cudnn_benchmark and --deterministic of flags.Speed.

    On a CPU only --deterministic can matter.
    """
    with warnings.catch_warnings():
        # The newer fp32_precision ends torch.compile before torch 2.14, which still reads the older names.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = speed.tf32
    torch.backends.cudnn.benchmark = speed.cudnn_benchmark
    if speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it begins
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def without_kernel_search():
    """Within this (or as a decorator) cuDNN does not time its kernels, which it would do again for each new size of image."""
    searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = searches


def _meet_again(world):
    """After a restart (--max_restarts), join the processes under a name of this attempt.

    The launcher's store is the one of before, and holds the addresses of processes that are gone.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if world == 1 or attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    rank = int(os.environ["RANK"])
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    backend = "gloo" if not has_accelerator() else "nccl" if torch.cuda.is_available() else None
    store = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
    torch.distributed.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=world)


def fit_to_hardware(model, *, channels_last=False, grad_checkpointing=False, sync_bn=False, freeze="none"):
    """The model as the device and the processes want it. In evaluation it computes what it did before.

    channels_last: weights are in memory order NHWC. grad_checkpointing: activations are computed again in the backward
    pass; InputError where timm cannot do it for this model. sync_bn: batch norm takes its statistics over all processes.
    freeze: "bn": batch norm keeps the statistics and weights that it has; "backbone": so does everything but the classifier,
    or, in a segmentation network, everything but the heads, of whose batch norm neither speaks, and it stays in evaluation
    mode while the rest is trained. InputError where there is none.
    """
    if freeze != "none":
        _freeze(model, getattr(model, "backbone", model), freeze)
    if grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError):
            raise InputError("--grad_checkpointing: timm has none for this model; leave the flag out") from None
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    # Not torch's converter, which drops the activation inside timm's BatchNormAct2d.
    model = timm.layers.convert_sync_batchnorm(model) if sync_bn else model
    if grad_checkpointing:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(_begin_again)
                module.register_forward_hook(_end_again, always_call=True)
    return model


def _begin_again(norm, _):
    """Batch norm that is computed a second time, within the backward pass, takes no second share of the batch's statistics."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1 and norm.num_batches_tracked is not None:
        norm.before, norm.momentum = (norm.momentum, norm.num_batches_tracked.clone()), 0.0


def _end_again(norm, *_):
    if hasattr(norm, "before"):
        norm.momentum, batches = norm.before
        norm.num_batches_tracked.copy_(batches)
        del norm.before


def _freeze(model, part, what):
    """See `fit_to_hardware`. part: the backbone, or the model itself."""
    learns = part.get_classifier() if part is model and what == "backbone" else None
    if what == "backbone":
        if part is model and not (isinstance(learns, torch.nn.Module) and list(learns.parameters())):
            raise InputError("--freeze backbone: this model has no single classifier that could learn alone")
        of_classifier = {id(parameter) for parameter in learns.parameters()} if learns is not None else set()
        for parameter in part.parameters():
            parameter.requires_grad_(id(parameter) in of_classifier)
    norms = [module for module in part.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if what == "bn" and not norms:
        raise InputError("--freeze bn: there is no batch norm in this model; leave the flag out")
    if norms and norms[0].weight is not None and norms[0].weight.is_meta:  # a dry run, which timm cannot convert
        for norm in norms:
            norm.requires_grad_(False)
    else:
        timm.layers.freeze_batch_norm_2d(part)
    if what == "backbone":
        _keep_in_evaluation(part, learns)


def _keep_in_evaluation(part, learns=None):
    """Let `train()` change nothing in `part` but the module `learns` and those that hold it; dropout is of both sides."""
    if learns is not None and any(module is learns for module in part.modules()):
        for child in part.children() if part is not learns else ():
            _keep_in_evaluation(child, learns)
    elif learns is None or not isinstance(part, torch.nn.Dropout):
        part.eval()
        part.train = types.MethodType(_as_it_is, part)


def _as_it_is(module, mode=True):
    return module


def has_accelerator():
    """Whether this run is on a GPU or another accelerator: torch finds one, and the launcher does not ask for the CPU."""
    return torch.accelerator.is_available() and not asks_for_cpu()


def peak_memory(device):
    """In words: what torch allocated on the GPU at most so far, since `forget_peak`, or, on a CPU, what this process held."""
    if device.type == "cuda":
        return f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    try:  # not getrusage, which begins with the peak of the process that started this one
        kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
        return f"peak {kibibytes / 2**20:.2f} GiB"
    except (OSError, TypeError):  # not Linux
        return "peak unknown"


def forget_peak(device):
    """What was allocated on the GPU so far does not count for `peak_memory`: cuDNN tries its kernels in whatever is free."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def cores_per_process():
    """CPU cores of this process: of those that it may use, each shared fairly with the others of this machine that may too.

    With several processes all of them call it together.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        found = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, (platform.node(), list(cores)))
        sharers = collections.Counter(core for node, theirs in found if node == platform.node() for core in theirs)
        return max(1, int(sum(fractions.Fraction(1, sharers[core]) for core in cores)))
    return max(1, len(cores) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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
    then use a single core. What the user set stays, and so does a larger number of the launcher's, if it is no more than
    the share.
    """
    share = cores_per_process()
    if not user_chose_threads() and (os.environ.get("OMP_NUM_THREADS", "1") == "1" or torch.get_num_threads() > share):
        torch.set_num_threads(share)
    return torch.get_num_threads()
