"""States of a model that FSDP2 shards over two processes: whole when saved, the same on any hardware when loaded."""

import argparse
import copy
import functools
import re
import shutil

import pytest
import sharded_on_cpu
import timm
import torch
from conftest import ROOT, TINY, forked, lines, run, train
from faults import SCRIPTS
from test_train_recognition import assert_same_run

from optim_factory import create_optimizer
from utils.cli import segmentation_flags
from utils.cli.first import parse
from utils.model.sharding import blocks, gather, load_model, load_optimizer, optimizer_state
from utils.run.checkpoint import states

SCRIPT = """
import copy
import os
import sys
sys.path[:0] = ["ROOT", "ROOT/tests", "ROOT/tests/model"]
import torch
from torch.distributed.fsdp import fully_shard
from utils.model import sharding
from utils.model.ema import EMA
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
images = torch.ones(1, 3)
with torch.no_grad():
    outputs = [model(images)]  # which leaves whole weights behind
    with ema.in_model():
        outputs.append(model(images))
        torch.testing.assert_close(sharding.gather(model.state_dict()), saved[2], rtol=0, atol=0)
        model(images)
    outputs.append(model(images))
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
    torch.save(saved + [after, outputs], sys.argv[1])
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
    weights, moments, average, after, outputs = torch.load(tmp_path / "state.pt", weights_only=True)

    model = make()
    optimizer = adamw(model)
    for update in range(3):
        step(model, optimizer, update)
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=1e-5)
    assert average.keys() == weights.keys() and [g["lr_scale"] for g in moments["param_groups"] if "lr_scale" in g] == [0.5]
    for held, output in zip((weights, average, weights), outputs, strict=True):
        load_model(model, held)
        torch.testing.assert_close(model(torch.ones(1, 3)).detach(), output, rtol=0, atol=1e-5)
    load_model(model, weights)  # and what two processes saved, one can go on with
    load_optimizer(optimizer, moments)
    step(model, optimizer, 3)
    torch.testing.assert_close(gather(dict(model.state_dict())), after, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnextv2_atto", ["ConvNeXtBlock", "ConvNeXtStage"]),
        ("resnest14d", []),  # one block in each stage
        ("resnest26d", ["ResNestBottleneck"]),
        ("vit_tiny_patch16_224", ["Block"]),
        ("tf_efficientnet_lite0", ["InvertedResidual"]),
    ],
)
def test_blocks_are_what_fsdp_gathers_at_once(name, expected):
    with torch.device("meta"):
        assert blocks(timm.create_model(name)) == expected


# --- an optimizer goes on


def some_steps(optimizer, model, updates):
    for update in updates:
        step(model, optimizer, update)
    return gather(dict(model.state_dict()))


def optimizer_of(model, name, **options):
    usual = dict(lr=0.01, weight_decay=0.05, momentum=0.9, opt_eps=None, opt_betas=None, fused=True)
    return create_optimizer(argparse.Namespace(opt=name, **(usual | options)), model)


@pytest.mark.parametrize("name", ["adamw", "momentum", "lamb", "adan", "muon", "lookahead_adamw"])
def test_an_optimizer_goes_on_to_the_bit_with_the_steps_that_its_groups_count(name):
    model, again = make(), make()
    optimizer, other = optimizer_of(model, name), optimizer_of(again, name)
    some_steps(optimizer, model, range(4))
    again.load_state_dict(model.state_dict())
    load_optimizer(other, copy.deepcopy(optimizer_state(optimizer)))
    expected = some_steps(optimizer, model, range(4, 9))
    torch.testing.assert_close(some_steps(other, again, range(4, 9)), expected, rtol=0, atol=0)


def test_an_optimizer_goes_on_with_the_options_of_its_flags():
    model = make()
    optimizer = optimizer_of(model, "adamw")
    some_steps(optimizer, model, range(2))
    now = optimizer_of(model, "adamw", weight_decay=0.5, opt_betas=[0.8, 0.9], opt_eps=1e-3, fused=False)
    options = copy.deepcopy([{**group, "params": None} for group in now.param_groups])
    load_optimizer(now, copy.deepcopy(optimizer_state(optimizer)))
    assert [{**group, "params": None} for group in now.param_groups] == options


@pytest.mark.parametrize("name", ["adamw", "momentum", "lamb"])
@pytest.mark.parametrize("later", [torch.channels_last, torch.contiguous_format])
def test_an_optimizer_goes_on_where_weights_lie_in_another_order_in_memory(name, later):
    sooner = torch.contiguous_format if later is torch.channels_last else torch.channels_last
    parameters, optimizers = [], []
    for layout in (sooner, later):
        weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        parameters.append(torch.nn.ParameterList([weight]))
        optimizers.append(optimizer_of(parameters[-1], name))
    for update in range(2):
        if update:
            load_optimizer(optimizers[1], copy.deepcopy(optimizer_state(optimizers[0])))
            parameters[1].load_state_dict(parameters[0].state_dict())
        for (weight,), optimizer in zip(parameters, optimizers, strict=True):
            grad = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1 + update))
            weight.grad = torch.empty_like(weight).copy_(grad)
            optimizer.step()
    torch.testing.assert_close(parameters[1][0], parameters[0][0], check_stride=False)


# --- every optimizer


def optimizers():
    """Those of the recipes and the defaults of the scripts."""
    texts = [path.read_text() for path in (ROOT / "recipes").rglob("*.args")]
    named = set(re.findall(r"--opt[ =](\w+)", "\n".join(texts)))
    defaults = {parse(f"{script}.py", "", []).opt for script in SCRIPTS} | {segmentation_flags.SGD["opt"]}
    return sorted(named | defaults)


@pytest.mark.slow
def test_every_optimizer_trains_on_sharded_weights_as_on_whole_ones(tmp_path):
    """Both scripts' loops, two updates on two processes."""
    found = []
    for name, prepare in (("whole", None), ("sharded", functools.partial(sharded_on_cpu.prepare, "no"))):
        done = forked("every_optimizer", tmp_path / name, *optimizers(), processes=2, prepare=prepare)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        found.append(torch.load(tmp_path / name))
    whole, parts = found
    assert {name for _, name in whole} >= {"adamw", "momentum"} and whole.keys() == parts.keys()
    for case, (losses, weights) in whole.items():
        assert losses.isfinite().all(), case
        torch.testing.assert_close(
            parts[case], (losses, weights), rtol=1e-3, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}"
        )


# --- whole runs

JOB = ["--batch_size", 32, "--layer_decay", 0.8, "--update_freq", 2, "--clip_grad", 1, "--model_ema", "true", "--mixup", 0.5,
       "--model_ema_decay", 0.9, "--save_ckpt_updates", 4, "--epochs", 1, "--warmup_epochs", 0.5]  # fmt: skip


def sharded(script, *words, precision="no"):
    prepare = functools.partial(sharded_on_cpu.prepare, precision)
    done = forked(script, *words, processes=2, prepare=prepare)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of two ordinary processes."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    done = train(*JOB, "--output_dir", folder, processes=2)
    assert done.returncode == 0, done.stderr
    return folder


def losses(folder):
    return [record["loss"] for record in lines(folder / "updates.txt")]


@pytest.mark.slow
def test_a_sharded_run_is_a_run_like_any_other(plain, tmp_path):
    """Its losses, norms, averages and evaluations; it resumes to the bit, and elsewhere."""
    job = ["train_recognition", *TINY, *JOB]
    sharded(*job, "--output_dir", tmp_path / "a")
    assert losses(tmp_path / "a") == pytest.approx(losses(plain), rel=1e-5)
    norms = [[record["grad_norm"] for record in lines(folder / "updates.txt")] for folder in (plain, tmp_path / "a")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    for record, expected in zip(lines(tmp_path / "a" / "log.txt"), lines(plain / "log.txt"), strict=True):
        for name in ("test_acc1", "test_acc1_ema"):
            assert abs(record[name] - expected[name]) < 0.3  # one image of 359
        assert record["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)

    for name, source, again in (("b", tmp_path / "a", True), ("c", tmp_path / "a", False), ("d", plain, True)):
        shutil.copytree(source, tmp_path / name)
        for path in states(tmp_path / name / "checkpoints"):
            if path.name > "update_00000004":
                shutil.rmtree(path)
        (tmp_path / name / "finished.json").unlink()
        if again:
            assert "after 4 updates" in sharded(*job, "--output_dir", tmp_path / name)
        else:  # one ordinary process with the same total batch
            done = train(*JOB, "--update_freq", 4, "--output_dir", tmp_path / name)
            assert done.returncode == 0 and "after 4 updates" in done.stdout, done.stderr
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "d") == pytest.approx(losses(plain), rel=1e-5)  # what ordinary processes saved
    assert losses(tmp_path / "c") == pytest.approx(losses(tmp_path / "a"), rel=0.02)  # mixup sees other batches

    out = sharded(*job, "--eval", "true", "--finetune", tmp_path / "a" / "last")
    assert f"top-1 {lines(tmp_path / 'a' / 'log.txt')[-1]['test_acc1']:.5f} %" in out


@pytest.mark.slow
def test_segmentation_is_sharded_too(tmp_path):
    words = ["--max_updates", 6, "--warmup_epochs", 0, "--batch_size", 4, "--update_freq", 2, "--model_ema", "true",
             "--report_to", "none", "--num_workers", 0, "--eval_mode", "whole", "--output_dir", tmp_path / "run"]  # fmt: skip
    sharded("train_segmentation", *words, precision="bf16")
    (record,) = lines(tmp_path / "run" / "log.txt")
    assert 0 <= record["test_miou"] <= 100 and 0 <= record["test_miou_ema"] <= 100
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "arguments"), [("resnet10t", ["channels=(8,8,16,16)"]), ("vit_tiny_patch16_224", ["depth=2", "embed_dim=24"])]
)
def test_models_with_buffers_and_vits_start_with_what_the_launcher_exports(model, arguments, tmp_path):
    """Batch norm's averages are ordinary tensors; the class token and the position embedding are parameters of the root."""
    words = ["--model", model, "--model_kwargs", *arguments, "--batch_size", 256, "--epochs", 1, "--warmup_epochs", 0]
    sharded("train_recognition", *TINY, *words, "--output_dir", tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 2


def test_channels_last_is_refused():
    done = forked(
        "train_recognition",
        *TINY,
        "--channels_last",
        "true",
        processes=2,
        prepare=functools.partial(sharded_on_cpu.prepare, "no"),
    )
    assert done.returncode == 1 and "error: --channels_last with FSDP" in done.stderr, done.stderr
