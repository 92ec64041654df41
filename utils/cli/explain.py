"""What a machine that lacks something said, as one line for its user: memory, shared memory, files, processes, a full disk.

Standard library only.
"""

import errno
import os
import re
import sys

from utils.cli.errors import first_line, last_words

# How gloo and NCCL say that another process is gone.
LOST = re.compile(r"closed by peer|reset by peer|broken pipe|remote process exited|watchdog|timed out|timeout", re.I)
NO_DETERMINISTIC = " does not have a deterministic implementation"  # in what torch says of an operation
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|bad_alloc|could not create a primitive|"
    r"could not execute a primitive|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|not enough memory", re.I
)  # fmt: skip
ASKED = re.compile(r"(?:tried to allocate|unable to allocate|you tried to allocate) ([\d.]+) ?([KMGT]i?B|bytes)", re.I)
SHARED_GPU = "Duplicate GPU detected"  # in what NCCL says
NO_SHARED = re.compile(r"bus error|shared memory|shm|/torch_\d+", re.I)
GOES_ON = "what was saved is whole, and the same command goes on"
DOCTOR = "`python -m utils.doctor` shows what this machine has"


def explain(error, args=None):
    """One line for an error of the machine, with what to do; None for what is none of these. args: flags of the run."""
    said, code = last_words(error), getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM or NO_MEMORY.search(str(error)):
        return _no_memory(str(error), args)
    if _lost_worker(error) or (isinstance(error, RuntimeError | OSError) and NO_SHARED.search(str(error))):
        return _lost_loader(error, said)
    if code in (errno.EMFILE, errno.ENFILE) or "too many open files" in said.lower():
        return f"{said}: more files than `ulimit -n` allows; a larger one, or fewer --num_workers; {GOES_ON}; {DOCTOR}"
    if code == errno.EAGAIN or "can't start new thread" in said:
        return f"{said}: more processes than `ulimit -u` or the container allows; fewer --num_workers; {GOES_ON}; {DOCTOR}"
    if SHARED_GPU in str(error):
        return ("two processes have one GPU, which NCCL refuses: expected as many processes as GPUs (--num_processes, "
                "--nproc_per_node), or ACCELERATE_USE_CPU=true before the command for all of them on the CPU")  # fmt: skip
    if isinstance(error, RuntimeError | OSError) and "WORLD_SIZE" in os.environ and LOST.search(str(error)):
        return f"a process of this run was lost ({first_line(error)}); the same command goes on from the last state"
    if isinstance(error, RuntimeError) and NO_DETERMINISTIC in said:
        return f"--deterministic: {said.split(NO_DETERMINISTIC)[0]} has no deterministic kernel here; leave it out"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        asks = "--torchcompile" if getattr(args, "torchcompile", False) else f"--opt {getattr(args, 'opt', '')}"
        return f"{asks} compiles, which fails here ({said}): leave it out, or install a C++ compiler such as g++"
    if isinstance(error, BrokenPipeError):
        return "nobody reads any more what this prints"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{said}; {GOES_ON}"
    return None


def _no_memory(text, args):
    """asked for …; the peak; the flags that help."""
    asked = ASKED.search(text)
    amount = f"asked for {_gibibytes(float(asked[1]), asked[2])}; " if asked else ""
    size = "crop_size" if hasattr(args, "crop_size") else "input_size"
    flags = [f"--batch_size {args.batch_size // 2 or 1} --update_freq {2 * (args.update_freq or 1)} learns from as many images"
             ] if getattr(args, "batch_size", None) and args.batch_size > 1 else ["a smaller --batch_size"]  # fmt: skip
    flags += ["--grad_checkpointing true"] * (not getattr(args, "grad_checkpointing", False))
    flags += [f"a smaller --{size}, now {getattr(args, size)}"] * hasattr(args, size) + ["fewer --num_workers"]
    return f"out of memory: {amount}{_peak()}; what helps: {', '.join(flags)}; {GOES_ON}"


def _gibibytes(number, unit):
    power = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}[unit[0].lower()]
    return f"{number * 1024 ** (power - 3):.2f} GiB"


def _peak():
    """In words: the most that was held so far, on the GPU where there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    try:
        with open("/proc/self/status") as file:
            kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])
        return f"peak {kibibytes / 2**20:.2f} GiB"
    except (OSError, TypeError):  # not Linux
        return "peak unknown"


def _lost_worker(error):
    """Whether a loader worker is gone: torch says so, or what is left of it breaks in its own code, while it is read from."""
    if "DataLoader worker" in str(error) and "Caught " not in str(error):
        return True
    gone = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    trace, seen = error.__traceback__, False
    while trace is not None:
        seen |= "multiprocessing" in trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return gone and seen


def _lost_loader(error, said):
    if NO_SHARED.search(str(error)):
        return (f"a loader worker found no shared memory ({said}): docker run --shm-size 8g, or fewer --num_workers (0 needs "
                f"none); {GOES_ON}; {DOCTOR}")  # fmt: skip
    return f"a loader worker was lost ({said}); memory is the usual reason: try fewer --num_workers; {GOES_ON}"
