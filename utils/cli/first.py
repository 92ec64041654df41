"""Answers --help and a wrong flag, prints the first line of a run, sets how threads wait and hides GPUs from a run on the CPU:
all before torch is imported, which takes seconds.

A training script imports this file before all others. In any other program importing it does nothing.
"""

import contextlib
import importlib.util
import os
import sys

from utils.cli import recognition_flags, segmentation_flags
from utils.cli.arguments import Parser
from utils.cli.errors import leave_on_signals, ready_output
from utils.cli.threads import hide_gpus, spin_briefly

NEEDED = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "PIL")
FLAGS = {"train_recognition.py": recognition_flags, "train_segmentation.py": segmentation_flags}


def parse(script, description, argv=None):
    """`Arguments` of the `script`, one of FLAGS; description: for its help."""
    flags = FLAGS[script]
    parser = Parser(script, description)
    flags.add_flags(parser)
    return parser.parse_args(argv, flags.defaults_for, flags.check)


def _answer():
    main = sys.modules["__main__"]
    script = os.path.basename(getattr(main, "__file__", None) or "")
    if script not in FLAGS:
        return
    ready_output()
    leave_on_signals(script)
    args = parse(script, main.__doc__)
    if missing := [name for name in NEEDED if name not in sys.modules and not importlib.util.find_spec(name)]:
        sys.exit(f"{script}: error: {sys.executable} has no {' and no '.join(missing)}; python -m pip install -r "
                 "requirements.txt, or activate the environment that has them")  # fmt: skip
    hide_gpus()
    spin_briefly()
    if os.environ.get("RANK", "0") == "0" and args.dry_run != "json":
        model = f"{args.model} on {args.backbone}" if hasattr(args, "backbone") else args.model
        if args.predict or (args.finetune and not {"model", "backbone"} & args.given):
            model = args.finetune  # which may say what it is
        with contextlib.suppress(OSError):  # a full disk, a pipe that nobody reads: the run says so
            print(f"{script.removesuffix('.py')}: {model}, {args.predict or args.data_path or args.dataset or 'built-in data'}",
                  flush=True)  # fmt: skip


_answer()
