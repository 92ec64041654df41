"""What the machine offers to a process, and how a model is fitted to it."""

import platform
import re

import pytest
import timm
import torch
from conftest import ROOT, run
from tiny_networks import one_thread, tiny  # noqa: F401, the first is a fixture

from utils.cli.errors import InputError
from utils.model.processes import fit_to_hardware, keep_freed_memory

MEMORY = """
import resource, sys
sys.path[:0] = ["ROOT"]
import torch
from utils.model.processes import keep_freed_memory, peak_memory
peaks = [peak_memory(torch.device("cpu"))]
torch.ones(134_217_728)
peaks.append(peak_memory(torch.device("cpu")))
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults = fill(), keep_freed_memory(), fill(), fill()
print(*peaks, *faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.accelerator.is_available(), reason="for CPUs, with glibc")
def test_peak_memory_rises_by_what_was_held_for_a_moment_and_freed_memory_is_kept():
    """Twenty tensors of 9,766 pages, one after another: each page is new each time, or none is."""
    done = run("-c", MEMORY.replace("ROOT", str(ROOT)))
    before, after = map(float, re.findall(r"peak ([\d.]+) GiB", done.stdout))
    assert after - before == pytest.approx(0.5, abs=0.02), done.stderr
    new_pages, kept, _, again = done.stdout.split()[-4:]
    assert int(new_pages) > 2_000 and kept == "True" and int(again) < 2_000


def test_what_the_user_chose_for_freed_memory_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    "name, option",
    [
        ("efficientnet_lite0", "sync_bn"),
        ("regnetx_002", "sync_bn"),
        ("resnetv2_18", "sync_bn"),
        ("resnet18", "sync_bn"),
        ("resnetv2_18", "channels_last"),
        ("resnetv2_18", "grad_checkpointing"),
        ("convnextv2_atto", "grad_checkpointing"),
    ],
)
def test_a_fitted_model_evaluates_as_before(name, option):
    """Many of timm's batch norms hold an activation, which torch's converter to SyncBatchNorm drops."""
    torch.manual_seed(0)
    model, images = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-0.5, 0.5)
        expected = model(images)
        fitted = fit_to_hardware(model, **{option: True}).eval()
        torch.testing.assert_close(fitted(images), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    if option == "sync_bn":
        kinds = {type(module) for module in fitted.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)}
        assert kinds and all(issubclass(kind, torch.nn.SyncBatchNorm) for kind in kinds)


def test_a_fitted_network_evaluates_as_before():
    network, images = tiny("resnet18", "encnet", aux_kwargs={}).eval(), torch.randn(1, 3, 64, 64)
    expected = network(images)["logits"]
    fitted = fit_to_hardware(network, channels_last=True, sync_bn=True)
    torch.testing.assert_close(fitted(images)["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), timm.create_model("dla34", num_classes=2)])
def test_a_model_without_gradient_checkpointing(model):  # timm's raises, others lack the method
    with pytest.raises(InputError, match="--grad_checkpointing: timm has none for this model"):
        fit_to_hardware(model, grad_checkpointing=True)
