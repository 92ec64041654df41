"""What the machine offers to a process, and how a model is fitted to it."""

import copy
import os
import platform
import re
import types

import pytest
import timm
import torch
from conftest import ROOT, run, train
from tiny_networks import BACKBONES, one_thread, tiny  # noqa: F401, the first is a fixture

from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.cli.flags import Speed
from utils.model import processes
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


@pytest.mark.slow
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


# --- what fits a model to the hardware leaves its outputs alone

FAMILIES = {  # a model of each, and options that make it small
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "resnet18": {"channels": (8, 8, 16, 16)},
    "resnet50": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "resnest14d": {"channels": (8, 8, 16, 16), "stem_width": 8},
    "resnetv2_18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "regnetx_002": {},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 8, "num_heads": (1, 1), "img_size": 64, "window_size": 4},
    "hrnet_w18_small": {},
    "dla46_c": {},
}
WITHOUT_CHECKPOINTING = {"hrnet_w18_small", "dla46_c"}
BATCH_NORM = (torch.nn.BatchNorm2d, timm.layers.BatchNormAct2d)


def shaken(model):
    """The model in evaluation mode; its batch norms do something, as after a training."""
    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.5, 0.5)
    return model.eval()


def logits(model, images):
    found = model(images)
    return found["logits"] if isinstance(found, dict) else found


def refused_while_fitting(model):
    """The ways of fitting that the model has not; each other one is added to those before, and changes no logits."""
    images, refused = torch.randn(2, 3, 64, 64), []
    expected, with_batch_norm = logits(model, images), any(isinstance(module, BATCH_NORM) for module in model.modules())
    limit = 1e-5 * expected.abs().max().item()
    for option in ("channels_last", "grad_checkpointing", "sync_bn"):
        try:
            model = fit_to_hardware(model, **{option: True}).eval()
        except InputError:
            refused.append(option)
        found = logits(model, images)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=limit, msg=lambda text, option=option: f"{option}: {text}")
    kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)}
    assert bool(kinds) == with_batch_norm and all(issubclass(kind, torch.nn.SyncBatchNorm) for kind in kinds)
    return refused


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_fitted_model_evaluates_as_before(name):
    """Many of timm's batch norms hold an activation, which torch's converter to SyncBatchNorm drops."""
    torch.manual_seed(0)
    refused = refused_while_fitting(shaken(timm.create_model(name, num_classes=5, **FAMILIES[name])))
    assert refused == ["grad_checkpointing"] * (name in WITHOUT_CHECKPOINTING)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [*((backbone, "fcn") for backbone in BACKBONES), *(("resnet18", head) for head in ("encnet", "deeplab", "upernet"))],
)
@torch.no_grad()
def test_a_fitted_network_evaluates_as_before(backbone, head):
    torch.manual_seed(0)
    network = tiny(backbone, head, aux_kwargs={"channels": 8}, head_kwargs={"channels": 8}, input_size=64)
    assert refused_while_fitting(shaken(network)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recognition", "segmentation"])
@torch.no_grad()
def test_a_compiled_model_evaluates_as_before(kind):
    torch.manual_seed(0)
    if kind == "recognition":
        model = timm.create_model("convnextv2_atto", num_classes=5, **FAMILIES["convnextv2_atto"])
    else:
        model = tiny("resnet18", "fcn", head_kwargs={"channels": 8})
    model, images = fit_to_hardware(shaken(model), channels_last=True), torch.randn(2, 3, 64, 64)
    expected = logits(model, images)
    model.compile()  # in place, as the scripts do
    torch.testing.assert_close(logits(model, images), expected, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), timm.create_model("dla34", num_classes=2)])
def test_a_model_without_gradient_checkpointing(model):  # timm's raises, others lack the method
    with pytest.raises(InputError, match="--grad_checkpointing: timm has none for this model"):
        fit_to_hardware(model, grad_checkpointing=True)


def test_checkpointing_changes_no_statistics_of_batch_norm():
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet").train()
    other = fit_to_hardware(copy.deepcopy(plain), grad_checkpointing=True)
    images = torch.randn(8, 3, 32, 32)
    for _ in range(2):
        for model in (plain, other):
            model(images).square().mean().backward()
    assert all(torch.equal(buffer, other.state_dict()[name]) for name, buffer in plain.state_dict().items())
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(plain.parameters(), other.parameters(), strict=True))


# --- precision and kernels


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of this capability, as far as torch's questions go."""

    def gpu(*capability):
        for module in (torch.cuda, torch.accelerator):
            monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    return gpu


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 1), "bf16")]
)
def test_use_amp_is_bf16_where_the_gpu_computes_in_it_and_wins_over_no(gpu, monkeypatch, capability, expected):
    """V100 (7.0) and T4 (7.5) only emulate bf16."""
    gpu(*capability)
    assert processes.choose_precision(True) == expected and processes.choose_precision(False) is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what `accelerate launch` exports where nothing was chosen
    assert processes.choose_precision(True) == expected and processes.choose_precision(False) is None
    for chosen in ("bf16", "fp16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", chosen)
        assert processes.choose_precision(True) is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert processes.choose_precision(True) == "bf16"


@pytest.mark.parametrize(("capability", "note"), [((7, 0), ", which this GPU only emulates (fp16 is faster)"), ((8, 0), "")])
def test_bf16_that_is_only_emulated_is_named(gpu, capability, note):
    gpu(*capability)
    accelerator = types.SimpleNamespace(device=torch.device("cuda"), mixed_precision="bf16", num_processes=8)
    assert processes.describe(accelerator) == [f"processes: 8, each with one cuda; precision bf16{note}"]


def test_tasks_that_each_train_alone_are_said(monkeypatch):
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), mixed_precision="no", num_processes=1)
    for name in ("WORLD_SIZE", *processes.TASKS):
        monkeypatch.delenv(name, raising=False)
    assert len(processes.describe(accelerator)) == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert len(processes.describe(accelerator)) == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert processes.describe(accelerator)[1].startswith("warning: 4 tasks were started, of which each trains alone")
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a launcher, which knows them
    assert len(processes.describe(accelerator)) == 1


@pytest.fixture
def kernels():
    """What torch is set to of kernels; put back in the end."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn

    def kernels():
        return {
            "matmul": backends[0].allow_tf32, "convolution": backends[1].allow_tf32, "benchmark": backends[1].benchmark,
            "deterministic": (backends[1].deterministic, torch.are_deterministic_algorithms_enabled()),
            "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }  # fmt: skip

    before = kernels()
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield kernels
    backends[0].allow_tf32, backends[1].allow_tf32 = before["matmul"], before["convolution"]
    backends[1].benchmark, (backends[1].deterministic, deterministic) = before["benchmark"], before["deterministic"]
    torch.use_deterministic_algorithms(deterministic)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if before["cublas"]:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = before["cublas"]


FAST = {"matmul": True, "convolution": True, "benchmark": True, "deterministic": (False, False), "cublas": None}
SAME = {"matmul": False, "convolution": False, "benchmark": False, "deterministic": (True, True), "cublas": ":4096:8"}


@pytest.mark.parametrize("script", ["train_recognition.py", "train_segmentation.py"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", FAST),
        ("--tf32 false", FAST | {"matmul": False, "convolution": False}),
        ("--cudnn_benchmark false", FAST | {"benchmark": False}),
        ("--deterministic true", SAME),
        ("--deterministic true --tf32 false --cudnn_benchmark false", SAME),
    ],
)
def test_kernels_are_fast_or_the_same_each_time(kernels, script, line, expected):
    processes.choose_kernels(Speed.of(parse(script, "", line.split())))
    assert kernels() == expected
    assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # a CPU computes as before


@pytest.mark.parametrize("flag", ["tf32", "cudnn_benchmark"])
def test_a_deterministic_run_refuses_what_would_not_be(flag, capsys):
    with pytest.raises(SystemExit):
        parse("train_recognition.py", "", ["--deterministic", "true", f"--{flag}", "true"])
    assert f"--{flag} true would do nothing: it takes effect without --deterministic true" in capsys.readouterr().err


def test_an_evaluation_of_segmentation_does_not_search_kernels_for_each_size(kernels):
    """Its images have many sizes; what training does comes back, whatever happens."""
    import accelerate

    import train_segmentation

    class Images(list):
        order = None

        def __iter__(self):
            assert not torch.backends.cudnn.benchmark
            raise KeyboardInterrupt

    torch.backends.cudnn.benchmark = True
    with pytest.raises(KeyboardInterrupt):
        view = {"classes": 2, "mode": "whole", "crop_size": 8}
        train_segmentation.evaluate(accelerate.Accelerator(cpu=True), torch.nn.Linear(1, 1), Images([1]), view, None)
    assert torch.backends.cudnn.benchmark


# --- joining the others


@pytest.mark.parametrize(("use_cpu", "backend"), [("true", "gloo"), ("false", "nccl")])
def test_processes_meet_again_where_they_run(gpu, monkeypatch, use_cpu, backend):
    """After a restart on a machine with GPUs, a run on its CPUs stays there."""
    gpu(9, 0)
    joined = []
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *words, **options: torch.distributed.HashStore())
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: joined.append((backend, options)))
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, text in (where | {"TORCHELASTIC_RESTART_COUNT": "1", "ACCELERATE_USE_CPU": use_cpu}).items():
        monkeypatch.setenv(name, text)
    processes._meet_again(2)
    ((found, options),) = joined
    assert found == backend and options["timeout"].total_seconds() == 12 * 3600 and options["rank"] == 1


def test_a_package_that_a_config_asks_for_is_named(kernels, monkeypatch):
    """`enable_cpu_affinity` on a machine with a GPU and without nvidia-ml-py."""

    def missing(**options):
        raise ImportError("the `nvidia-ml-py` package must be available. (`pip install nvidia-ml-py`)")

    monkeypatch.setattr(processes.accelerate, "Accelerator", missing)
    monkeypatch.setattr(processes, "keep_freed_memory", lambda: None)
    with pytest.raises(InputError, match="Accelerate: the `nvidia-ml-py` package must be available"):
        processes.start_processes(None, None, None, Speed(), default_batch_size=8)
    assert kernels() == FAST  # chosen before the GPU is first used


def two_micro_batches(_rank):
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "2"  # as a config of Accelerate's does


def test_a_launcher_that_accumulates_gradients_agrees_with_the_flags_or_is_refused(tmp_path):
    for words, code in (([], 1), (["--update_freq", 2], 0)):
        done = train(*words, "--dry_run", prepare=two_micro_batches)
        assert done.returncode == code, done.stderr
        assert code == 0 or ("asks for 2 micro-batches an update" in done.stderr and "--update_freq 2" in done.stderr)


def test_threads_of_the_user_stay_and_a_launchers_do_not(monkeypatch):
    """One thread that the user asked for is enough; of more than the cores a launcher may have asked for (it counts all)."""
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(processes, "cores_per_process", lambda: 4)
    for threads, mark, expected in (("1", {}, []), ("9", {}, []), ("1", "x", [4]), ("9", "x", [4]), ("3", "x", [])):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(processes, "user_chose_threads", lambda mark=mark: not mark)
        chosen.clear()
        processes.use_all_cores()
        assert chosen == expected, (threads, mark)
