"""GPU decoding with the decoder replaced at its one seam, and batches on the device."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as STD

from utils.augment import fast as fast_transforms
from utils.augment import timm as recognition_transforms
from utils.data import gpu_decoding
from utils.data.loaders import DeviceBatches
from utils.data.sampling import seed_everything


def photograph(kind="JPEG", size=(120, 90), seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def on_the_cpu(files, device):
    """What nvJPEG does, by Pillow."""
    decoded = (Image.open(io.BytesIO(file.numpy().tobytes())).convert("RGB") for file in files)
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in decoded]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_same_pixels_as_on_the_cpu(monkeypatch, interpolation):
    """The same random numbers, crops, flips and erased boxes; PNG and rotated files are decoded by the worker."""
    monkeypatch.setattr(gpu_decoding, "decode_jpeg", on_the_cpu)
    transform = fast_transforms.train_transform(48, hflip=0.5, vflip=0.5, reprob=0.5, interpolation=interpolation)
    draw, files = gpu_decoding.Draw(transform), [photograph(seed=i) for i in range(7)] + [photograph("PNG", seed=7)]
    ours, drawn = [], []
    for seed, file in enumerate(files):
        seed_everything(seed)
        ours.append((*transform(file), seed))
        seed_everything(seed)
        drawn.append((*draw(file), seed))
    expected, erase, labels = fast_transforms.collate(ours)
    encoded, erase_too, labels_too = gpu_decoding.collate(drawn)
    assert [file.ndim for file in encoded.files] == [1] * 7 + [3] and torch.equal(labels, labels_too)
    assert erase[0] == erase_too[0] and erase[0] and torch.equal(erase[1], erase_too[1])
    images = gpu_decoding.decode(encoded, torch.device("cpu"))
    assert images.dtype == torch.uint8 and images.shape == expected.shape
    assert (images.int() - expected.int()).abs().max() <= 1
    pinned = [encoded, [list(map(list, erase_too[0])), erase_too[1]], labels]  # pinning memory makes lists of tuples
    (batch,) = DeviceBatches([pinned], "cpu", MEAN, STD)
    assert torch.equal(batch[0], fast_transforms.finish(images, erase, MEAN, STD)) and torch.equal(batch[1], labels)


@pytest.mark.parametrize(
    ("device", "options", "reason"),
    [
        ("cpu", {}, "there is no CUDA GPU"),
        ("cuda", {"aa": "rand-m9"}, "give --aa none"),
        ("cuda", {"color_jitter": 0.4}, "give --aa none"),
        ("cuda", {}, "has no nvJPEG (it broke)"),
    ],
)
def test_why_not(monkeypatch, device, options, reason):
    def breaks(files, device):
        raise RuntimeError("it broke\nat length")

    monkeypatch.setattr(gpu_decoding, "decode_jpeg", breaks)
    assert reason in gpu_decoding.why_not(torch.device(device), fast_transforms.train_transform(48, **options))


def test_it_is_used_where_it_works(monkeypatch):
    monkeypatch.setattr(gpu_decoding, "decode_jpeg", on_the_cpu)
    assert gpu_decoding.why_not(torch.device("cuda"), fast_transforms.train_transform(48)) is None


def test_batches_of_other_transforms_are_only_moved():
    images, labels, replaced = torch.rand(4, 3, 8, 8), torch.arange(4), torch.full((4,), -1)
    loader = [(images, labels, replaced)] * 3
    batches = DeviceBatches(loader, "cpu", MEAN, STD, channels_last=True)
    assert len(batches) == 3 and len(list(batches)) == 3
    for batch in batches:
        assert torch.equal(batch[0], images) and batch[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch[1], labels) and batch[2] is replaced


def test_evaluation_has_the_pixels_of_timm():
    image = Image.open(io.BytesIO(photograph()))
    expected = recognition_transforms.eval_transform(48)(image)
    pixels, erase = fast_transforms.eval_transform(48)(photograph())
    (batch,) = DeviceBatches([fast_transforms.collate([(pixels, erase, 3)])], "cpu", MEAN, STD)
    assert torch.equal(batch[0][0], expected) and batch[1].tolist() == [3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_nvjpeg_and_the_side_stream():
    transform = fast_transforms.train_transform(48, hflip=0.5, reprob=0.5)
    assert gpu_decoding.why_not(torch.device("cuda"), transform) is None
    draw, samples, ours = gpu_decoding.Draw(transform), [], []
    for seed in range(16):
        seed_everything(seed)
        samples.append((*draw(photograph(seed=seed)), seed))
        seed_everything(seed)
        ours.append((*transform(photograph(seed=seed)), seed))
    loader = [gpu_decoding.collate(samples)] * 4
    images, erase, _ = fast_transforms.collate(ours)
    expected = fast_transforms.finish(images, erase, MEAN, STD)
    for batch in DeviceBatches(loader, "cuda", MEAN, STD):
        assert (batch[0].cpu() - expected).abs().mean() < 0.1
