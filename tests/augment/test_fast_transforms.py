"""The fast transforms against timm's over Pillow: the same draws by seed, pixels apart by rounding."""

import functools
import io
import random

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import auto_augment
from torchvision import transforms

from utils.augment import fast_operations
from utils.augment import timm as timm_transforms
from utils.augment.fast import collate, eval_transform, finish, first_rows, read_part, train_transform
from utils.cli.recognition_flags import Augmentation
from utils.data.sampling import seed_everything
from utils.images.read import decode_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)
RAND = "rand-m9-mstd0.5-inc1"


def settings(input_size, **options):
    """Random crop and flip, and what the options add."""
    return Augmentation(**{"input_size": input_size, "aa": "none", "reprob": 0.0} | options)


def nothing_to_erase():
    return [], torch.empty(0)


@functools.cache
def photographs():
    return [Image.fromarray(pixels).crop((60, 30, 560, 405)) for pixels in load_sample_images().images]


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image):
    return np.asarray(image).astype(int)


def seeded(seed, function, *values):
    seed_everything(seed)
    return function(*values)


def finished(sample):
    images, erase = collate([sample])
    return finish(images, erase, MEAN, STD)[0]


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, options",
    [
        (224, {}),
        (160, {"train_interpolation": "random", "vflip": 0.5, "hflip": 0.0, "scale": (0.3, 1.0), "ratio": (0.5, 2.0)}),
        (224, {"aa": RAND, "reprob": 0.5}),
        (128, {"aa": "rand-m5-n4-p0.9-tweights", "train_interpolation": "random"}),
        (128, {"aa": "augmix-m5-w2", "reprob": 0.9, "remode": "rand", "recount": 3}),
        (128, {"aa": "original-mstd0.5", "reprob": 0.9, "remode": "const"}),
        (128, {"aa": "v0r", "reprob": 0.9, "recount": 4}),
        (128, {"aa": "3a", "color_jitter": 0.3}),
        (128, {"color_jitter": 0.4, "train_interpolation": "bilinear"}),
        (32, {"aa": RAND, "reprob": 0.5}),
    ],
)
def test_a_seed_gives_what_it_gives_with_timm(size, options):
    wanted = settings(size, **options)
    fast, timm_ = train_transform(wanted), timm_transforms.train_transform(wanted)
    files = [encode(photograph, quality=90) for photograph in photographs()]
    apart = []
    for seed in range(12):
        sample = seeded(seed, fast, files[seed % 2])
        expected = seeded(seed, timm_, Image.open(io.BytesIO(files[seed % 2])))
        assert sample[0].shape == (3, size, size) and sample[0].dtype == torch.uint8
        apart.append(float((finished(sample) - expected).abs().mean()) * 255 * 0.225)
    # in levels of 255; operations such as Solarize and Equalize make more of a rounding
    assert np.median(apart) < 0.15 and max(apart) < 1


@pytest.mark.parametrize("size, crop_pct", [(32, None), (64, 1.0), (224, None), (384, None)])
def test_evaluation_is_timms_bit_for_bit(size, crop_pct):
    data = encode(photographs()[1])
    image = decode_image(data, "photograph")
    wanted = settings(size, crop_pct=crop_pct)
    expected = timm_transforms.eval_transform(wanted)(image)
    for given in (data, image):
        assert torch.equal(finished(eval_transform(wanted)(given)), expected)


# --- reading ----------------------------------------------------------------------------------------------------------


def grey16(photograph):
    return Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "make",
    [
        lambda p: encode(p),
        lambda p: encode(p, progressive=True),
        lambda p: encode(p, subsampling=0, restart_marker_rows=1),
        lambda p: encode(p.convert("L")),
        lambda p: encode(p.convert("CMYK")),
        lambda p: encode(p, exif=turned(6)),
        lambda p: encode(p, exif=turned(1)),
        lambda p: encode(p.convert("RGBA"), "PNG"),
        lambda p: encode(p.quantize(), "PNG"),
        lambda p: encode(grey16(p), "PNG"),
        lambda p: encode(p, "PNG", exif=turned(3)),
        lambda p: encode(p, "WEBP", lossless=True),
    ],
    ids="baseline progressive restarts grey cmyk turned upright rgba palette grey16 png_turned webp".split(),
)
def test_bytes_of_any_kind_are_read_as_the_decoded_image_is(make):
    data, transform = make(photographs()[0]), train_transform(settings(160))
    image = decode_image(data, "photograph")
    for seed in range(12):
        assert torch.equal(seeded(seed, transform, data)[0], seeded(seed, transform, image)[0])


def test_a_broken_file_raises_where_the_crop_needs_what_is_broken():
    data, transform = encode(photographs()[0], quality=90), train_transform(settings(160, scale=(0.08, 0.2)))
    with pytest.raises(OSError):
        transform(b"no image")
    half = data[: len(data) // 2]
    fails = 0
    for seed in range(20):
        try:
            result = seeded(seed, transform, half)[0]
        except OSError:
            fails += 1
        else:
            assert torch.equal(result, seeded(seed, transform, data)[0])
    assert fails == 20


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("bottom", [40, 175, 357, 375])
def test_the_rows_of_the_crop_are_those_of_the_whole_file(subsampling, bottom):
    data = encode(photographs()[0], quality=95, subsampling=subsampling)
    box = (33, 20, 400, bottom)
    image, reduce = read_part(data, Image.open(io.BytesIO(data)), box, 448)
    assert reduce == 1 and image.size == (500, min(bottom + 8, 375))
    assert (pixels(image.crop(box)) == pixels(Image.open(io.BytesIO(data)).crop(box))).all()


def test_first_rows_leaves_progressive_and_unknown_files_alone():
    assert first_rows(encode(photographs()[0], progressive=True), 100) is None
    data = encode(photographs()[0])
    header = data.index(b"\xff\xc0")
    for cut in range(header + 9):
        assert first_rows(data[:cut], 100) is None
    for wrong in (b"", b"\xff\xd8 no frame's header here", data[:2] + b"\xff" + data[2:], data[:2] + bytes(9) + data[2:]):
        assert first_rows(wrong, 100) is None


@pytest.mark.parametrize("size, reduce", [(400, 1), (224, 2), (112, 4), (64, 4), (48, 8)])
def test_large_crops_are_decoded_smaller_but_never_below_twice_the_target(size, reduce):
    large = photographs()[1].resize((2001, 1499), Image.Resampling.BICUBIC)
    data, box = encode(large, quality=92), (301, 202, 1650, 1117)
    image, got = read_part(data, Image.open(io.BytesIO(data)), box, 2 * size)
    assert got == reduce and image.width == -(-2001 // reduce) and image.height < 1200 / reduce
    assert reduce == 1 or (1117 - 202) / reduce >= 2 * size
    transform = train_transform(settings(size, hflip=0, scale=(0.4, 1)))
    for seed in range(3):
        expected = seeded(seed, transform, Image.open(io.BytesIO(data)))[0]  # an image is not decoded smaller
        assert (seeded(seed, transform, data)[0].float() - expected.float()).abs().mean() < 0.6


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aa", [RAND, "rand-m9", "augmix-m5", "v0", "original", "3a"])
def test_every_operation_is_as_strong_as_timms_at_every_magnitude(aa):
    def operations(steps):
        step = next(step for step in steps if hasattr(step, "policy") or hasattr(step, "ops"))
        return [op for policy in getattr(step, "policy", None) or [step.ops] for op in policy]

    def strength(op, magnitude):
        op.prob, op.magnitude, op.magnitude_std = 1.0, magnitude, 0
        random.seed(magnitude)
        return np.mean([np.abs(pixels(op(image)) - pixels(image)).mean() for image in images])

    fast = operations(train_transform(settings(64, aa=aa)).changes)
    timm_ = operations(timm_transforms.train_transform(settings(64, aa=aa)).transforms)
    images = [photograph.resize((64, 48)) for photograph in photographs()]
    seen = set()
    for ours, theirs in zip(fast, timm_, strict=True):
        assert (ours.name, ours.prob, ours.magnitude, ours.kwargs) == (
            theirs.name,
            theirs.prob,
            theirs.magnitude,
            theirs.kwargs,
        )
        assert (ours.aug_fn is theirs.aug_fn) == (ours.name not in fast_operations.FASTER)
        if ours.name not in seen:
            seen.add(ours.name)
            for magnitude in range(11):
                assert strength(ours, magnitude) == pytest.approx(strength(theirs, magnitude), abs=0.1)


@pytest.mark.parametrize("name", fast_operations.FASTER)
@pytest.mark.parametrize("mode", ["BILINEAR", "BICUBIC", "NEAREST"])
def test_faster_operations_give_pillows_pixels(name, mode):
    options = {"resample": Image.Resampling[mode], "fillcolor": FILL}
    amounts = (0.0, 0.1, 1.0, 1.9) if name.startswith("Sharpness") else (0, 0.27, -0.3, 0.4999, -0.999, 7.3, -50.5, 100, -400)
    for image in (
        photographs()[0].resize((61, 40)),
        photographs()[1].crop((0, 0, 64, 64)),
        photographs()[1].crop((0, 0, 9, 1)),
    ):
        for amount in amounts:
            got = pixels(fast_operations.FASTER[name](image, amount, **options))
            apart = np.abs(got - pixels(auto_augment.NAME_TO_OP[name](image, amount, **options)))
            assert apart.max(initial=0) <= 1 and apart.mean() < 0.15, (amount, image.size)


def test_the_interpolation_of_an_operation_is_drawn():
    both = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    image = photographs()[0].resize((32, 32))
    random.seed(0)
    results = [pixels(fast_operations.shear_x(image, 0.2, resample=both, fillcolor=FILL)) for _ in range(20)]
    shares = [np.mean([(result == results[i]).all() for result in results]) for i in range(20)]
    assert len({result.tobytes() for result in results}) == 2 and min(shares) > 0.2


# --- batches ----------------------------------------------------------------------------------------------------------


def test_collate_keeps_the_boxes_on_the_cpu_and_other_elements_as_torch_does():
    values = torch.arange(18.0).view(3, 2, 3), torch.ones(3, 1, 1)
    grey = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    parts = [(1, 2, 2, 3, values[0]), (0, 0, 4, 4, values[1])]
    batch = collate([(grey, None, 3, {"a": 1.5}), (grey, parts, 4, {"a": 2.5})])
    assert batch[0].shape == (2, 3, 8, 8) and batch[0].dtype == torch.uint8
    assert batch[2].tolist() == [3, 4] and batch[3]["a"].tolist() == [1.5, 2.5]
    boxes, noise = accelerate.utils.send_to_device(batch, "meta")[1]
    assert boxes == [(1, 1, 2, 2, 3, 18), (1, 0, 0, 4, 4, 3)] and noise.device.type == "meta" and noise.shape == (21,)
    images = finish(*batch[:2], (0, 0, 0), (1, 1, 1))
    assert (images[0] == 7 / 255).all() and (images[1, :, 4:] == 7 / 255).all()
    assert (images[1, :, :4, :4] == 1).all()  # the later of two boxes wins
    assert (finish(batch[0], nothing_to_erase(), (0, 0, 0), (1, 1, 1)) == 7 / 255).all()


def test_finish_has_the_bits_of_totensor_and_normalize_in_any_memory_format():
    images = torch.randint(256, (4, 3, 20, 30), dtype=torch.uint8)
    normalize = transforms.Normalize(MEAN, STD)
    expected = torch.stack([normalize(transforms.ToTensor()(image.permute(1, 2, 0).numpy())) for image in images])
    assert torch.equal(finish(images, nothing_to_erase(), MEAN, STD), expected)
    last = finish(images.to(memory_format=torch.channels_last), nothing_to_erase(), list(MEAN), STD)
    assert torch.equal(last, expected) and last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_finish_on_a_gpu_gives_the_cpus_bits_and_does_not_wait(memory_format):
    seed_everything(0)
    transform, data = train_transform(settings(96, aa=RAND, reprob=0.7, recount=2)), encode(photographs()[0])
    images, erase = collate([transform(data) for _ in range(16)])
    expected = finish(images, erase, MEAN, STD)
    there, on_gpu = images.cuda().to(memory_format=memory_format), (erase[0], erase[1].cuda())
    finish(there, on_gpu, MEAN, STD)  # copies the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = finish(there, on_gpu, MEAN, STD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), expected) and got.is_contiguous(memory_format=memory_format)
