"""Which weights are kept in best/."""

import accelerate
import pytest
import torch
from conftest import Batches, begin_run
from safetensors.torch import load_file

EPOCHS = [{"acc1": 60.0, "loss": 0.9}, {"acc1": 50.0, "loss": 0.3}, {"acc1": 55.0, "loss": 0.4}]


@pytest.mark.parametrize("metric, best", [("acc1", 0), ("loss", 1)])
def test_best_metric_decides_which_weights_are_kept(tmp_path, metric, best):
    accelerator, model = accelerate.Accelerator(cpu=True), torch.nn.Linear(1, 1)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    run = begin_run(accelerator, tmp_path / "run", model, optimizer, Batches([], 1), "--best_metric", metric)
    for epoch, scores in enumerate(EPOCHS):
        torch.nn.init.constant_(model.weight, epoch)
        run.score(scores)
    assert load_file(tmp_path / "run/best/model.safetensors")["weight"].item() == best
    assert run.counters.best == {f"test_{metric}": EPOCHS[best][metric]}
