"""python sharded_on_cpu.py FSDP|DEEPSPEED SCRIPT WORDS …: the script as `accelerate launch` starts it with fsdp2.yaml or
deepspeed_zero2.yaml, but on CPUs, where Accelerate itself takes the plain way: its state is told what it is.
"""

import os
import pathlib
import runpy
import sys

from accelerate import state

ENVIRONMENT = {
    "FSDP": {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
    "DEEPSPEED": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"},
}  # fmt: skip


class Sharded(state.AcceleratorState):
    def __init__(self, *words, fsdp_plugin=None, deepspeed_plugin=None, **options):
        begins = not self.initialized
        super().__init__(*words, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if not begins:
            return
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = state.DistributedType(kind)
        if kind == "FSDP":
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        else:
            self.deepspeed_plugins = deepspeed_plugin
            (plugin,) = deepspeed_plugin.values() if isinstance(deepspeed_plugin, dict) else [deepspeed_plugin]
            plugin.set_mixed_precision(self._mixed_precision)
            plugin.select(_from_accelerator_state=True)


kind, script = sys.argv[1:3]
os.environ.update(ENVIRONMENT[kind])
import accelerate.accelerator  # noqa: E402

accelerate.accelerator.AcceleratorState = Sharded
if kind == "DEEPSPEED":
    import deepspeed.comm.torch

    deepspeed.comm.torch.build_shm_op = lambda: None  # which would be compiled first
sys.argv = sys.argv[2:]
sys.path.insert(0, str(pathlib.Path(script).parent))
runpy.run_path(script, run_name="__main__")
