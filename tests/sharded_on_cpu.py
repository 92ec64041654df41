"""Runs as `accelerate launch` starts them with fsdp2.yaml or deepspeed_zero2.yaml, but on CPUs: there Accelerate itself takes
the plain way, whatever its environment says, so its state is told what it is.
"""

import os

import accelerate.accelerator
from accelerate import state

ENVIRONMENT = {
    "FSDP": {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
    "DEEPSPEED": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"},
}  # fmt: skip


class Sharded(state.AcceleratorState):
    kind = None

    def __init__(self, *words, fsdp_plugin=None, deepspeed_plugin=None, **options):
        begins = not self.initialized
        super().__init__(*words, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if not begins:
            return
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = state.DistributedType(self.kind)
        if self.kind == "FSDP":
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        else:
            self.deepspeed_plugins = deepspeed_plugin
            (plugin,) = deepspeed_plugin.values() if isinstance(deepspeed_plugin, dict) else [deepspeed_plugin]
            plugin.set_mixed_precision(self._mixed_precision)
            plugin.select(_from_accelerator_state=True)


def prepare(kind, precision, rank):
    """For `faults.Job`: this process is one of a launch of this kind."""
    os.environ.update(ENVIRONMENT[kind], ACCELERATE_MIXED_PRECISION=precision)
    Sharded.kind, accelerate.accelerator.AcceleratorState = kind, Sharded
    if kind == "DEEPSPEED":
        import deepspeed.comm.torch

        deepspeed.comm.torch.build_shm_op = lambda: None  # which would be compiled first
