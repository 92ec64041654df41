"""Runs as `accelerate launch` starts them with fsdp2.yaml, but on CPUs: there Accelerate takes the plain way, whatever its
environment says, unless its state is told what it is.
"""

import os
import pathlib

import accelerate.accelerator
from accelerate import state
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env


def exported(config):
    """What `accelerate launch` tells FSDP2 in the environment of its processes, by this file of accelerate_configs/."""
    path = pathlib.Path(__file__).parent.parent / "accelerate_configs" / config
    words = ["--config_file", str(path), "--main_process_port", "0", "script.py"]  # 0: any port that is free
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return {name: text for name, text in prepare_multi_gpu_env(args).items() if "FSDP" in name}


ENVIRONMENT = exported("fsdp2.yaml")


class Sharded(state.AcceleratorState):
    def __init__(self, *words, fsdp_plugin=None, **options):
        begins = not self.initialized
        super().__init__(*words, fsdp_plugin=fsdp_plugin, **options)
        if not begins:
            return
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


def prepare(precision, rank):
    """For `faults.Job`: this process, of number `rank`, is one of a launch with FSDP2 in this precision (no, bf16)."""
    os.environ.update(ENVIRONMENT, ACCELERATE_MIXED_PRECISION=precision)
    accelerate.accelerator.AcceleratorState = Sharded
