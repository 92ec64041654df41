"""The scripts and their loops within this process, on the GPU or, so that the tests themselves are tested, on a CPU."""

import contextlib
import functools
import json
import os
import shutil

import accelerate
import numpy as np
import pytest
import sharded_on_cpu
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import begin_run, free_port, lines
from PIL import Image

import train_recognition
import train_segmentation
from segmentation_networks.network import build_network
from utils.augment import fast, segmentation
from utils.augment.distortion import Distortion
from utils.augment.mixup import Mixup
from utils.cli.recognition_flags import MixupOptions
from utils.data.loaders import Loader
from utils.data.sampling import TrainBatches
from utils.images.read import pack_masks, unpack_masks
from utils.losses.recognition import make_loss
from utils.losses.segmentation import SegmentationLoss
from utils.model.ema import EMA
from utils.pictures.gallery import Gallery
from utils.run.checkpoint import states

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for equal bits; cuBLAS reads it when it begins
SCRIPTS = {"recognition": train_recognition, "segmentation": train_segmentation}
BACKBONE = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}  # of a ConvNeXt V2
# Without cuDNN's search, which takes longer than these runs.
COMMON = "--epochs 2 --opt adamw --num_workers 0 --report_to none --cudnn_benchmark false"
SAVES = "--save_ckpt_updates 4 --save_ckpt_num 9".split()
WORDS = {
    "recognition": f"--model convnextv2_atto --model_kwargs depths=(1,1,1,1) dims=(8,8,16,16) --input_size 64 --lr 2e-3 "
    f"--warmup_epochs 0 --batch_size 16 {COMMON}".split(),
    "segmentation": f"--backbone convnextv2_atto --backbone_kwargs depths=(1,1,1,1) dims=(8,8,16,16) --channels 8 --crop_size "
    f"64 --base_size 64 --lr 2e-3 --head_lr_scale 1 --batch_size 16 --dropout 0 {COMMON}".split(),
}
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def on(gpu, cpu=(), slow=()):
    """Parametrises a test by `device` and `case`: {name: case} on the GPU, marked gpu; those named in `cpu` on the CPU too, and
    so those in `slow`, marked slow.
    """
    needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    found = [pytest.param("cuda", case, id=f"cuda-{name}", marks=needs_gpu) for name, case in gpu.items()]
    found += [pytest.param("cpu", gpu[name], id=f"cpu-{name}") for name in cpu]
    found += [pytest.param("cpu", gpu[name], id=f"cpu-{name}", marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize(("device", "case"), found)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """{script: folder} of 96 training and 24 validation images in three colours, which are three classes."""
    folders = {script: tmp_path_factory.mktemp(script) for script in SCRIPTS}
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 24)):
        for number in range(count):
            mask = np.full((64, 64), number % 3, np.uint8)
            mask[number % 30 : number % 30 + 20, 10:40] = (number + 1) % 3
            image = Image.fromarray((COLOURS[mask] + rng.integers(-30, 30, (64, 64, 3))).astype(np.uint8))
            for script, kind, picture in (
                ("recognition", f"{split}/{'red green blue'.split()[number % 3]}", image),
                ("segmentation", f"images/{split}", image), ("segmentation", f"masks/{split}", Image.fromarray(mask)),
            ):  # fmt: skip
                (folders[script] / kind).mkdir(parents=True, exist_ok=True)
                picture.save(folders[script] / kind / f"{number}.png")
    return folders


@pytest.fixture
def start(monkeypatch, data, capsys):
    """A script within this process: returns what it printed. It draws no pictures, which would take longer than all else."""
    monkeypatch.setattr(Gallery, "finish", lambda gallery, look=None: None)
    monkeypatch.setattr(Gallery, "refresh", lambda gallery: None)

    def call(device, script, *words, precision="no", trains=True):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true" if device == "cpu" else "false")
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        words = [*WORDS[script], "--data_path", data[script], *words] if trains else words
        with fresh_state():
            SCRIPTS[script].main(SCRIPTS[script].parse_args(list(map(str, words))))
        return capsys.readouterr().out

    return call


@contextlib.contextmanager
def fresh_state():
    """Before and after this, what a run sets for its process is as it was."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
        torch.compiler.reset()


def losses(folder):
    return [record["loss"] for record in lines(folder / "updates.txt")]


def go_back(folder, state=0):
    """Make a finished run one that was lost after its state of this number."""
    (folder / "finished.json").unlink()
    for path in states(folder / "checkpoints")[state + 1 :]:
        shutil.rmtree(path)


def alone():
    """The environment of the only process of a launch."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def sharded_alone(rank):
    """For `faults.Job`: this process is the only one of a launch with FSDP2 on CPUs."""
    os.environ.update(alone())
    sharded_on_cpu.prepare("no", rank)


def saved(folder):
    """state.json of the newest state."""
    return json.loads((states(folder / "checkpoints")[-1] / "state.json").read_text())


# --- the loops alone, on batches in memory


def small_model(script, **options):
    torch.manual_seed(0)
    if script == "recognition":
        return timm.create_model("convnextv2_atto", num_classes=5, **(BACKBONE | options))
    return build_network("convnextv2_atto", "upernet", 5, head_kwargs={"channels": 8}, backbone_kwargs=BACKBONE | options)


def batches_in_memory(script, count, size=8, pixels=64, pinned=False):
    """As a loader's workers give them: images in uint8, what to erase (recognition) or to distort, labels or masks, and -1s."""
    torch.manual_seed(0)
    made = []
    for _ in range(count):
        replaced = torch.full((size,), -1)
        images = torch.randint(256, (size, 3, pixels, pixels), dtype=torch.uint8)
        if script == "segmentation":
            rests = [
                segmentation.Rest((pixels, pixels - 8 * (n % 2)), Distortion(0.1, None, 1.5, 0.1, 0.5)) for n in range(size)
            ]
            made.append([images, rests, pack_masks(torch.randint(5, (size, pixels, pixels)), 5), replaced])
            continue
        boxes = [(number, 4, 6, 10, 12, 3 * 10 * 12) for number in range(0, size, 2)]
        noise = torch.randn(3 * 10 * 12 * len(boxes))
        made.append([images, (boxes, noise), torch.randint(5, (size,)), replaced])
    return [torch.utils.data._utils.pin_memory.pin_memory(batch) for batch in made] if pinned else made


def loader_of(script, batches, device, update_freq=1, **options):
    """A Loader of these batches, which are those of an epoch."""
    module, labels = (fast, None) if script == "recognition" else (segmentation, unpack_masks)
    options["finish"] = functools.partial(module.finish, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Loader(batches, TrainBatches(len(batches), 1, update_freq), device=device, finish_labels=labels, **options)


def train_in_memory(script, device, folder, batches, *words, precision="no", update_freq=1, ema=False, model=None, **options):
    """(model, EMA, Run) after an epoch of the script's own loop over `batches`, an iterable with a length."""
    with fresh_state():
        accelerator = accelerate.Accelerator(
            cpu=device == "cpu", mixed_precision=precision, gradient_accumulation_steps=update_freq
        )
        model = small_model(script) if model is None else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        network, optimizer = accelerator.prepare(model, optimizer)
        average = EMA(model) if ema else None
        loader = loader_of(script, batches, accelerator.device, update_freq, **options)
        mixing = {"mixup": Mixup(5, MixupOptions(mixup=0.8, cutmix=1.0))} if script == "recognition" else {}
        criterion = make_loss("ce", 0.1) if script == "recognition" else SegmentationLoss(5)
        run = begin_run(accelerator, folder, model, optimizer, loader, *words, ema=average)
        with run:
            run.start_epoch(loader.updates)
            SCRIPTS[script].train_one_epoch(
                accelerator, network, criterion, loader, optimizer, lambda update: 1e-3, run, ema=average, **mixing
            )
    return model, average, run
