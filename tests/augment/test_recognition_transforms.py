"""From the flags to transforms: what each set is given, how evaluation sees an image, and what is refused."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from utils.augment.recognition import build_transforms
from utils.augment.timm import train_transform
from utils.cli.errors import InputError
from utils.cli.recognition_flags import Augmentation
from utils.data.sampling import seed_everything

WIDE = Image.fromarray(np.tile(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (200, 1, 3)))  # dark to bright


def encoded(image):
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def network_input(transforms, sample):
    """What the network gets of one sample."""
    if transforms.collate is None:
        return sample[None]
    return transforms.finish(*transforms.collate([sample]))


@pytest.mark.parametrize("name", ["fast", "timm", "encoding"])
def test_a_seed_repeats_a_sample_also_in_a_worker_that_was_spawned(name):
    settings = Augmentation(transforms=name, input_size=40, aa="rand-n2-m12" if name == "encoding" else "rand-m9-mstd0.5-inc1")
    transforms = build_transforms(settings)
    takes_bytes = getattr(transforms.train, "takes_bytes", False)
    image = encoded(WIDE) if takes_bytes else WIDE
    samples = []
    for seed, each in ((1, transforms), (1, pickle.loads(pickle.dumps(transforms))), (2, transforms)):
        seed_everything(seed)
        samples.append(torch.cat([network_input(each, each.train(image)) for _ in range(8)]))
    assert samples[0].shape == (8, 3, 40, 40) and samples[0].dtype == torch.float32
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    assert takes_bytes == getattr(transforms.evaluate, "takes_bytes", False) == (name == "fast")


@pytest.mark.parametrize(
    ("options", "crop_pct", "crop_mode"),
    [
        ({"input_size": 224}, 0.875, "center"),
        ({"input_size": 224, "crop_pct": 0.9}, 0.9, "center"),
        ({"input_size": 32}, 1.0, "squash"),
        ({"input_size": 384, "transforms": "timm"}, 1.0, "squash"),
        ({"input_size": 384, "transforms": "encoding"}, 384 / 416, "center"),
    ],
)
def test_evaluation_sees_an_image_as_published(options, crop_pct, crop_mode):
    transforms = build_transforms(Augmentation(**{"aa": "none"} | options))
    assert (transforms.crop_pct, transforms.crop_mode) == (crop_pct, crop_mode)
    image = network_input(transforms, transforms.evaluate(WIDE))[0, 0] * transforms.std[0] + transforms.mean[0]
    left = 0.0 if crop_mode == "squash" else (400 - 200 * crop_pct) / 2 / 400  # where a crop of the short side begins
    assert image[0, 0] == pytest.approx(left, abs=0.02) and image[0, -1] == pytest.approx(1 - left, abs=0.02)


@pytest.mark.parametrize("name", ["fast", "timm", "encoding"])
@pytest.mark.parametrize("crop_mode", [None, "center", "squash", "border"])
def test_images_of_any_size_give_one_size(name, crop_mode):
    """So a batch of an evaluation can hold any of them."""
    transforms = build_transforms(Augmentation(transforms=name, crop_mode=crop_mode, crop_pct=0.5, input_size=40, aa="none"))
    for size in ((500, 30), (20, 333), (40, 40), (1, 1)):
        assert network_input(transforms, transforms.evaluate(Image.new("RGB", size))).shape == (1, 3, 40, 40)


def test_images_are_normalised_as_inception_where_imagenet_is_switched_off():
    black = Image.new("RGB", (40, 40))
    for name in ("fast", "timm", "encoding"):
        settings = Augmentation(transforms=name, aa="none", input_size=40, imagenet_default_mean_and_std=False)
        transforms = build_transforms(settings)
        assert (network_input(transforms, transforms.evaluate(black)) == -1).all()
        assert transforms.mean == transforms.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("aa", ["none", "None", ""])
def test_aa_none_leaves_the_pixels_of_a_whole_image(aa):
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "reprob": 0.0}
    square = WIDE.crop((0, 0, 200, 200))
    for name in ("fast", "timm"):
        transforms = build_transforms(Augmentation(transforms=name, aa=aa, input_size=200, **whole))
        pixels = network_input(transforms, transforms.train(square))[0] * 0.225 + 0.406
        assert np.abs(pixels[2].numpy() * 255 - np.asarray(square)[..., 2]).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aa": "rand-m9-x5"}, "--aa rand-m9-x5: "),
        ({"aa": "bogus"}, "--aa bogus: "),
        ({"aa": "rand-m9", "transforms": "encoding"}, "--aa rand-m9: found 'rand-m9', expected none or rand-nN-mM"),
        ({"aa": "none", "transforms": "encoding", "train_interpolation": "random"}, "--train_interpolation random: --transf"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_flag(options, message):
    with pytest.raises(InputError) as error:
        build_transforms(Augmentation(**options))
    assert str(error.value).startswith(message)


def test_small_images_are_padded_and_cropped():
    seed_everything(0)
    transform = train_transform(Augmentation(input_size=32, aa="none", hflip=0.0, reprob=0.0))
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    padded = torch.stack([transform(white) < 0 for _ in range(200)]).all(1)  # black rows and columns, up to four
    assert padded.any(2).sum(1).max() == 32 and padded.all(2).sum(1).max() == 4 and padded.all(1).sum(1).max() == 4
    assert not padded[:, 4:-4, 4:-4].any()


def test_posterize_to_no_bits_is_black():
    """As Pillow's before 13, which raises now; both ends of timm's range reach it."""
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    for policy, name in (("rand-m10-inc1", "PosterizeIncreasing"), ("rand-m0", "Posterize")):
        step = train_transform(Augmentation(aa=policy)).transforms[2]
        op = next(op for op in step.ops if op.name == name)
        op.prob = 1.0
        assert np.asarray(op(picture)).max() == 0
    for policy in ("original", "v0", "augmix-m9-w3"):
        augment = train_transform(Augmentation(input_size=40, aa=policy))
        for _ in range(40):
            augment(picture)
