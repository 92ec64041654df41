"""What the machine offers to a process."""

import platform
import re
import sys

import pytest
import torch
from conftest import ROOT, run

FAULTS = """
import resource, sys
sys.path[:0] = ["ROOT"]
import torch
from utils.model import processes as machine
kept = machine.keep_freed_memory()
def fill():
    for _ in range(20):
        torch.ones(10_000_000)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.accelerator.is_available(), reason="for CPUs, with glibc")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_unless_the_user_says_otherwise(environment):
    """Twenty tensors of 9,766 pages, one after another: each page is new each time, or none is."""
    done = run("-c", FAULTS.replace("ROOT", str(ROOT)), env=environment)
    kept, faults = done.stdout.split()
    assert (kept == "True") == (not environment), done.stderr
    assert int(faults) < 2_000 if kept == "True" else int(faults) > 2_000


PEAK = """
import sys
sys.path[:0] = ["ROOT"]
import torch
from utils.model.processes import peak_memory
print(peak_memory(torch.device("cpu")))
torch.ones(134_217_728)
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_rises_by_what_was_held_for_a_moment():
    before, after = map(float, re.findall(r"peak ([\d.]+) GiB", run("-c", PEAK.replace("ROOT", str(ROOT))).stdout))
    assert after - before == pytest.approx(0.5, abs=0.02)
