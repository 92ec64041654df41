"""States of a model that FSDP2 shards over two processes: whole when saved, the same on any hardware when loaded."""

import pytest
import torch
from conftest import ROOT, run

from utils.sharding import gather, load_model, load_optimizer

SCRIPT = """
import copy
import os
import sys
sys.path[:0] = ["ROOT", "ROOT/tests"]
import torch
from torch.distributed.fsdp import fully_shard
from utils import sharding
from utils.ema import EMA
from test_sharding import adamw, make, step

torch.distributed.init_process_group("gloo")
torch.set_num_threads(1)
model = make()
fully_shard(model[0])
fully_shard(model)
optimizer = adamw(model)
ema = EMA(model, 0.5)
for update in range(3):
    step(model, optimizer, update)
    ema.update(update)
saved = copy.deepcopy(sharding.gather([model.state_dict(), optimizer.state_dict(), ema.state_dict()]))
with ema.in_model():
    torch.testing.assert_close(sharding.gather(model.state_dict()), saved[2], rtol=0, atol=0)
step(model, optimizer, 3)
after = sharding.gather(model.state_dict())
sharding.load_model(model, saved[0])
sharding.load_optimizer(optimizer, copy.deepcopy(saved[1]))
ema.load_state_dict(saved[2])
again = sharding.gather([model.state_dict(), optimizer.state_dict(), ema.state_dict()])
torch.testing.assert_close(again, saved, rtol=0, atol=0)
step(model, optimizer, 3)
torch.testing.assert_close(sharding.gather(model.state_dict()), after, rtol=0, atol=0)
if torch.distributed.get_rank() == 0:
    torch.save(saved + [after], sys.argv[1])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # gloo's threads now and then abort on the ordinary way out
"""


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 2))


def adamw(model):
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [{"params": parameters[:2], "lr_scale": 0.5}, {"params": parameters[2:], "weight_decay": 0.0}], lr=0.1
    )


def step(model, optimizer, update):
    """The same batch on every process, so that one process alone does the same."""
    batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(update))
    model(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.slow
def test_a_sharded_state_is_that_of_one_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace("ROOT", str(ROOT)))
    done = run(tmp_path / "script.py", tmp_path / "state.pt", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    weights, moments, average, after = torch.load(tmp_path / "state.pt", weights_only=True)

    model = make()
    optimizer = adamw(model)
    for update in range(3):
        step(model, optimizer, update)
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=1e-5)
    assert average.keys() == weights.keys() and [g["lr_scale"] for g in moments["param_groups"] if "lr_scale" in g] == [0.5]
    load_model(model, weights)  # and what two processes saved, one can go on with
    load_optimizer(optimizer, moments)
    step(model, optimizer, 3)
    torch.testing.assert_close(gather(dict(model.state_dict())), after, rtol=0, atol=1e-5)
