"""Runs as `accelerate launch` starts them with fsdp2.yaml, but on CPUs: there Accelerate takes the plain way, whatever its
environment says, unless its state is told what it is.
"""

import os

import accelerate.accelerator
from accelerate import state

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip


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
