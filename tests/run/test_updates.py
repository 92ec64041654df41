"""The seconds of each part of an update."""

import json
import pathlib
import time
import types

import pytest
import torch

from utils.run.state import Counters
from utils.run.updates import Updates


@pytest.mark.parametrize("skip_nonfinite", [0, 5], ids=["looked at in the end", "asked at every update"])
def test_where_the_host_waits_for_a_gpu_the_time_is_the_gpus(tmp_path, skip_nonfinite):
    """A device that takes 20 ms for what it was given, and answers then; the host has all but nothing to do."""

    def answer(tensor, _):
        time.sleep(0.02)
        return tensor

    accelerator = types.SimpleNamespace(device=torch.device("cuda"), scaler=None, reduce=answer)
    log = types.SimpleNamespace(folder=pathlib.Path(tmp_path), updates=len, warn=print, progress=lambda *_: None)
    updates = Updates(accelerator, Counters(), log, skip_nonfinite=skip_nonfinite)
    for _ in range(2):
        updates.lap("data")
        updates.add_loss(torch.ones(()))
        updates.lap("forward and backward")
        assert updates.accepts(torch.ones(()))
        updates.end(0.1)
        updates.lap("optimizer")
        updates.counters.update += 1
    updates.look()
    updates.lap("logging and saving")
    updates.write_seconds()
    seconds = json.loads((tmp_path / "timing.json").read_text())
    waits = 3 if skip_nonfinite else 1
    assert seconds.pop("computing on the device") == pytest.approx(0.02 * waits / 2, rel=0.5)
    assert len(seconds) == 4 and sum(seconds.values()) < 0.01
