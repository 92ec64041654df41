"""The views of an image against mmsegmentation's rule, worked out here in numpy; and PyTorch-Encoding's, which stay."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_networks import one_thread, tiny  # noqa: F401, a fixture

from utils.cli.segmentation_flags import Augmentation, View
from utils.metrics.published_views import view_options
from utils.metrics.windows import predict

MEAN, STD, CLASSES, SIDE = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.3]), 3, 32
NORM = {"mean": tuple(MEAN), "std": tuple(STD)}


def view(transforms, eval_mode, **options):
    settings = Augmentation(transforms=transforms, crop_size=SIDE, base_size=SIDE)
    return view_options(settings, View(eval_mode=eval_mode, **options), classes=CLASSES, **NORM)


def matrix(old, new):
    """(new, old): bilinear weights of a row of pixels, whose edges stay edges; nothing is averaged in shrinking."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        low = int(np.floor(place))
        for pixel, share in ((low, 1 - (place - low)), (low + 1, place - low)):
            weights[i, min(max(pixel, 0), old - 1)] += share
    return weights


def resized(maps, size):
    """(C, H, W) float64 to (C, *size)."""
    return np.einsum("ph,qw,chw->cpq", matrix(maps.shape[1], size[0]), matrix(maps.shape[2], size[1]), maps)


def softmax(logits):
    exponents = np.exp(logits - logits.max(0))
    return exponents / exponents.sum(0)


def normalised(levels):
    return (levels / 255 - MEAN[:, None, None]) / STD[:, None, None]


def published(logits_of, levels, mode, scales=(1.0,), flip=False):
    """Probabilities (classes, H, W) of an image's grey levels (3, H, W): resized to whole levels as large as fits into
    4 x SIDE and SIDE, normalised, mirrored; logits of it all or averaged over windows; resized, then softmax, then averaged."""
    height, width = levels.shape[1:]
    views = []
    for scale in scales:
        long, short = int(4 * SIDE * scale), int(SIDE * scale)
        factor = min(long / max(height, width), short / min(height, width))
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        image = normalised(np.floor(resized(levels, size) + 0.5))
        for mirrored in (False, True)[: 1 + flip]:
            logits = logits_over(logits_of, image[:, :, ::-1] if mirrored else image, mode)
            logits = resized(logits, (height, width))
            views.append(softmax(logits[:, :, ::-1] if mirrored else logits))
    return sum(views) / len(views)


def logits_over(logits_of, image, mode):
    def run(part):
        return logits_of(torch.from_numpy(part.copy()).float()[None])[0].double().numpy()

    if mode == "whole":
        return run(image)
    _, height, width = image.shape
    stride, total, count = int(SIDE * 2 / 3), np.zeros((CLASSES, height, width)), np.zeros((height, width))
    for i in range(max(height - SIDE + stride - 1, 0) // stride + 1):
        for j in range(max(width - SIDE + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + SIDE, height), min(j * stride + SIDE, width)
            window = np.s_[max(bottom - SIDE, 0) : bottom, max(right - SIDE, 0) : right]
            total[:, *window] += run(image[:, *window])
            count[window] += 1
    return total / count


def network(images):
    """Logits that depend on the neighbours and, as after pooling, on the whole window."""
    generator = torch.Generator().manual_seed(1)
    features = F.conv2d(images, torch.randn(4, 3, 5, 5, generator=generator) / 5, padding=2).relu()
    return F.conv2d(features, torch.randn(CLASSES, 4, 1, 1, generator=generator)) + features.mean((2, 3), keepdim=True)[:, :3]


@pytest.mark.parametrize("size", [(32, 32), (40, 57), (64, 71), (23, 29), (20, 150)])
@pytest.mark.parametrize("mode, options", [
    ("slide", {}), ("whole", {}), ("slide", {"eval_flip": True}), ("whole", {"eval_flip": True, "eval_scales": (0.5, 1.25)}),
])  # fmt: skip
def test_mmsegmentation_looks_at_an_image_so(size, mode, options):
    levels = np.random.default_rng(sum(size)).integers(0, 256, (3, *size)).astype(np.float64)
    expected = published(network, levels, mode, options.get("eval_scales", (1.0,)), options.get("eval_flip", False))
    images = torch.from_numpy(normalised(levels)).float()[None]
    scores = predict(network, images, **view("mmseg", mode, **options))
    differences = np.abs(scores[0].numpy() - expected)  # float32 puts a few levels in a thousand on the other side of a half
    assert np.median(differences) < 5e-4 and differences.max() < 1e-2


@pytest.mark.parametrize("size, windows", [((40, 64), 2), ((100, 30), 4), ((32, 32), 1), ((20, 41), 3)])
def test_eomt_looks_at_an_image_so(size, windows):
    """Short side SIDE, by PIL; as few windows as cover the long side, equally far apart; the mean of scores, not of logits."""
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    new = [round(side * SIDE / min(size)) for side in size]
    resized_image = torch.from_numpy(np.array(Image.fromarray(levels).resize(new[::-1], Image.BILINEAR)).copy())
    long = int(new[1] >= new[0]) + 1  # the axis of (C, H, W) along which windows stand
    count = -(-max(new) // SIDE)
    starts = [int(i * (SIDE - ((count * SIDE - max(new)) / (count - 1) if count > 1 else 0))) for i in range(count)]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, CLASSES, 5, padding=2)
    total, times = torch.zeros(CLASSES, *new), torch.zeros(CLASSES, *new)
    image = torch.from_numpy(normalised(resized_image.permute(2, 0, 1).double().numpy())).float()
    seen = []

    def logits_of(images):
        seen.extend(images)
        return network(images)

    with torch.no_grad():
        for start in starts:
            total.narrow(long, start, SIDE).add_(network(image.narrow(long, start, SIDE)[None])[0].exp())
            times.narrow(long, start, SIDE).add_(1)
        expected = F.interpolate((total / times)[None], size, mode="bilinear")[0]
        found = predict(
            logits_of, torch.from_numpy(normalised(levels.transpose(2, 0, 1).astype(float))).float()[None],
            **view("eomt", "slide"),
        )[0]  # fmt: skip
    assert len(seen) == len(starts) == windows and (found - expected).abs().median() < 1e-2
    assert (found.argmax(0) == expected.argmax(0)).float().mean() > 0.95  # a grey level more or less by PIL's rounding


def test_a_resized_image_has_whole_levels():
    levels = np.array([0.0, 1, 3, 6]).reshape(1, 1, 4).repeat(3, 0).repeat(64, 1)  # averages of two: 0.5 and 4.5 go up
    seen = []
    image = torch.from_numpy(normalised(levels)).float()[None]
    predict(lambda images: seen.append(images) or images, image, **view("mmseg", "whole") | {"base_size": (64, 2)})
    shown = (seen[0][0].double().numpy() * STD[:, None, None] + MEAN[:, None, None]) * 255
    np.testing.assert_allclose(shown[:, 0], [[1, 5]] * 3, atol=1e-4)


def test_a_whole_image_is_padded_for_pytorch_encoding_only():
    sizes = []

    def logits_of(images):
        sizes.append(tuple(images.shape[2:]))
        return images

    for transforms in ("mmseg", "encoding", "none"):
        predict(logits_of, torch.zeros(1, 3, 33, 50), **view(transforms, "whole"))
    assert sizes == [(32, 48), (32, 32), (64, 64)]


def test_pytorch_encoding_resizes_from_corner_to_corner():
    row = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    scores = predict(lambda images: images, row, **view("encoding", "whole") | {"base_size": 4, "combine": "exp"})
    assert scores[0, 0, 0].log().tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_take_whole_images_of_any_size(backbone):
    model = tiny(backbone, "upernet", CLASSES, input_size=64).eval()
    images = torch.randn(1, 3, 45, 67)
    scores = predict(lambda x: model(x, only_logits=True)["logits"], images, **view("mmseg", "whole"))
    assert scores.shape == (1, CLASSES, 45, 67) and not scores.isnan().any()
