"""Sliding windows, scales and mirroring: the published code's numbers, and cases small enough to do by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from safetensors.torch import load_file
from tiny_networks import one_thread  # noqa: F401, a fixture

from utils.cli.errors import InputError
from utils.metrics.windows import evaluated_region, predict

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}  # black is -2, -1, -0.5


def pixelwise(images):
    """Two classes' logits that depend on the pixel alone: every way of cutting gives the same."""
    return torch.stack([images[:, 0], images[:, 1] * images[:, 2]], 1)


def window_mean(images):
    """One class, whose logit is the window's mean of red: shows which windows there were."""
    return images[:, :1].mean((2, 3), keepdim=True).expand(-1, 1, *images.shape[2:])


def recorded(network):
    def logits_of(images):
        calls.append(images)
        return network(images)

    calls = []
    return logits_of, calls


def random_images(height, width, images=1):
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(0))


def row(*values):
    """An image (1, 3, 1, n) with these values in each channel."""
    return torch.tensor(values, dtype=torch.float32).expand(1, 3, 1, -1)


@pytest.mark.parametrize("window_batch", [1, 3, 100])
def test_as_published(golden, window_batch):
    tensors = load_file(GOLDEN / "5_losses_metrics/multi_eval.safetensors")
    for case in golden("5_losses_metrics/multi_eval.json")["cases"]:
        config = case["config"]
        w = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(case["id"] + ".")}

        def network(images, w=w):
            features = F.conv2d(images, w["conv1.weight"], w["conv1.bias"], padding=1).relu()
            image_wide = features.mean((2, 3)) @ w["fc.weight"].T
            return F.conv2d(features, w["conv2.weight"], w["conv2.bias"], padding=1) + image_wide[:, :, None, None]

        logits_of, calls = recorded(network)
        scores = predict(
            logits_of, w["image"], classes=config["nclass"], mode="slide", crop_size=config["crop_size"],
            base_size=config["base_size"], scales=config["scales"], flip=config["flip"], mean=config["mean"],
            std=config["std"], window_batch=window_batch,
        )  # fmt: skip
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, w["scores"], rtol=5e-6, atol=1e-6)
        shapes = [list(call.shape) for call in calls]
        assert [[1, *shape[1:]] for shape in shapes for _ in range(shape[0])] == case["evaluate_call_shapes"]
        assert max(shape[0] for shape in shapes) <= window_batch
        if window_batch == 100:
            assert len(calls) == len(config["scales"])  # windows and mirror images together


@pytest.mark.parametrize("size", [(16, 16), (21, 40), (9, 30), (7, 5)])
@pytest.mark.parametrize("mode, edge", [("slide", "pad"), ("slide", "shift"), ("whole", "pad")])
def test_however_it_is_cut(size, mode, edge):
    images = random_images(*size, images=2)
    for flip in (False, True):
        how = {"classes": 2, "mode": mode, "edge": edge, "crop_size": 16, "flip": flip, **NORM}
        logits = (1 + flip) * pixelwise(images)
        torch.testing.assert_close(predict(pixelwise, images, **how), logits.exp())
        softmax = predict(pixelwise, images, combine="softmax", window_batch=3, **how)
        torch.testing.assert_close(softmax, pixelwise(images).softmax(1))


def test_windows_beyond_the_edge():
    """Windows of 4 pixels every 2 on 1 x 5 pixels: at 0 and 2, the second with one column of padding."""
    logits_of, calls = recorded(window_mean)
    scores = predict(logits_of, row(1, 2, 3, 4, 5), classes=1, crop_size=4, **NORM)
    assert torch.equal(calls[0][0, 0], torch.tensor([[1.0, 2, 3, 4]] + [[-2.0] * 4] * 3))
    assert calls[0][1, :, 0].tolist() == [[3, 4, 5, -2], [3, 4, 5, -1], [3, 4, 5, -0.5]]  # black in each channel
    first, second = math.exp((10 - 24) / 16), math.exp((12 - 26) / 16)
    both = (first + second) / 2
    assert scores[0, 0, 0].tolist() == pytest.approx([first, first, both, both, second])


def test_windows_moved_inwards():
    """The same windows for mmsegmentation: at 0 and 1, as high as the image."""
    logits_of, calls = recorded(lambda images: torch.cat([window_mean(images), 0 * images[:, :1]], 1))
    image = row(1, 2, 3, 4, 5)
    scores = predict(logits_of, image, classes=2, crop_size=4, edge="shift", combine="softmax", **NORM)
    assert [window[0].tolist() for call in calls for window in call] == [[[1, 2, 3, 4]], [[2, 3, 4, 5]]]
    logits = [2.5, 3, 3, 3, 3.5]  # averaged before the softmax
    assert scores[0, 0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in logits])


def test_scales_are_summed_or_averaged():
    image = torch.full((1, 3, 20, 30), 0.5)
    how = {"classes": 2, "crop_size": 16, "scales": (0.5, 1.0, 1.5), "flip": True, **NORM}
    logits = pixelwise(image)
    torch.testing.assert_close(predict(pixelwise, image, edge="shift", **how), 3 * (2 * logits).exp())
    softmax = predict(pixelwise, image, edge="shift", combine="softmax", **how)
    torch.testing.assert_close(softmax, logits.softmax(1))


def test_mirroring():
    def left_to_right(images):
        return torch.arange(3.0).expand(len(images), 1, 3, 3)

    scores = predict(left_to_right, torch.zeros(1, 3, 3, 3), classes=1, mode="slide", crop_size=3, flip=True, **NORM)
    assert scores[0, 0].tolist() == [pytest.approx([math.exp(2)] * 3)] * 3


@pytest.mark.parametrize(
    "base_size, scale, size",
    [
        (None, 1.0, (480, 640)),
        (None, 0.5, (240, 320)),
        (520, 1.0, (390, 520)),
        (520, 0.75, (293, 390)),  # 292.5 rounds up
        (101, 0.5, (38, 51)),  # the long side rounds up
        ((2048, 512), 1.0, (512, 683)),  # the short side decides
        ((600, 512), 1.0, (450, 600)),  # the long one
        ((2048, 512), 0.5, (256, 341)),
    ],
)
def test_resized_image(base_size, scale, size):
    logits_of, calls = recorded(window_mean)
    image = torch.zeros(1, 3, 480, 640)
    how = {"crop_size": 1000, "edge": "shift", **NORM}  # one window, of the size of the resized image
    scores = predict(logits_of, image, classes=1, base_size=base_size, scales=(scale,), **how)
    assert calls[0].shape[2:] == size and scores.shape == (1, 1, 480, 640)


def test_whole_is_padded_right_and_below():
    logits_of, calls = recorded(pixelwise)
    scores = predict(logits_of, torch.ones(1, 3, 33, 20), classes=2, mode="whole", **NORM)
    assert calls[0].shape == (1, 3, 64, 32) and scores.shape == (1, 2, 33, 20)
    assert (calls[0][:, :, :33, :20] == 1).all() and (calls[0][0, :, 33:].amax((1, 2)) == torch.tensor([-2, -1, -0.5])).all()


def test_corners_stay_corners():
    logits_of, calls = recorded(window_mean)
    predict(logits_of, row(0, 1), classes=1, base_size=4, crop_size=1000, edge="shift", **NORM)
    assert calls[0][0, 0, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    "size, crop_size, region",
    [
        ((480, 640), 480, (0, 480, 80, 560)),
        ((100, 200), 50, (0, 100, 50, 150)),
        ((200, 100), 300, (50, 150, 0, 100)),
        ((30, 50), 20, (0, 30, 10, 39)),  # columns 6..26 of 33 are 9.1..39.4 of 50
        ((40, 40), 64, (0, 40, 0, 40)),
    ],
)
def test_evaluated_region(size, crop_size, region):
    rows, columns = evaluated_region(*size, "crop", crop_size)
    assert (rows.start, rows.stop, columns.start, columns.stop) == region
    assert evaluated_region(*size, "slide", crop_size) == (slice(0, size[0]), slice(0, size[1]))


@pytest.mark.parametrize("size", [(16, 41), (50, 16), (16, 16)])
def test_centre_crop(size):
    images = random_images(*size, images=2)
    rows, columns = evaluated_region(*size, "crop", 16)
    logits_of, calls = recorded(pixelwise)
    scores = predict(logits_of, images, classes=2, mode="crop", crop_size=16, **NORM)
    assert [call.shape for call in calls] == [(2, 3, 16, 16)] and torch.equal(calls[0], images[:, :, rows, columns])
    expected = torch.full_like(scores, math.nan)
    expected[:, :, rows, columns] = pixelwise(images).exp()[:, :, rows, columns]
    torch.testing.assert_close(scores, expected, equal_nan=True)


@pytest.mark.parametrize("crop_size, tolerance", [(64, 0.01), (16, 0.05)])
def test_centre_crop_of_another_size(crop_size, tolerance):
    """A ramp stays a ramp, resized there and back, up to the border of the crop."""
    ramp = torch.linspace(2, 4, 61).expand(1, 3, 37, 61)
    rows, columns = evaluated_region(37, 61, "crop", crop_size)
    scores = predict(lambda x: x[:, :1], ramp, classes=1, mode="crop", crop_size=crop_size, **NORM)
    assert columns.stop - columns.start >= 35 and scores.shape == (1, 1, 37, 61)
    torch.testing.assert_close(scores[:, :, rows, columns].log(), ramp[:, :1, rows, columns], rtol=0, atol=tolerance)
    assert scores.isnan().sum() == 37 * (61 - (columns.stop - columns.start))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"mode": "slides"}, "did you mean slide"),
        ({"edge": "wrap"}, "edge rule"),
        ({"combine": "sum"}, "combination"),
        ({"crop_size": None}, "crop_size"),
        ({"scales": ()}, "above 0"),
        ({"scales": (0.5, -1)}, "above 0"),
        ({"mode": "crop", "scales": (0.5, 1.0)}, "one scale"),
        ({"classes": 3}, r"expected \(1, 3, 8, 8\)"),
    ],
)
def test_wrong_input(wrong, message):
    with pytest.raises(InputError, match=message) as caught:
        predict(pixelwise, torch.zeros(1, 3, 8, 8), **{"classes": 2, "mode": "slide", "crop_size": 8, **NORM, **wrong})
    assert "\n" not in str(caught.value)


def test_never_waits_for_the_device():
    """On the meta device nothing has a value: reading one back raises."""
    image = torch.zeros(1, 3, 20, 30, device="meta")
    for mode in ("slide", "whole", "crop"):
        scores = predict(pixelwise, image, classes=2, mode=mode, crop_size=16, base_size=40, flip=True, **NORM)
        assert scores.shape == (1, 2, 20, 30)


def test_blended_windows_show_no_edges():
    image = torch.linspace(0, 1, 100).expand(1, 3, 40, 100)
    options = {"mode": "slide", "crop_size": 40, "edge": "shift", "combine": "softmax", **NORM}

    def largest_step(blend):  # scores are a probability: of the window's mean against 0
        found = predict(
            lambda windows: 9 * F.pad(window_mean(windows), (0, 0, 0, 0, 0, 1)), image, classes=2, blend=blend, **options
        )
        return found[0, 0].diff(dim=-1).abs().max()

    assert largest_step(True) < 0.2 * largest_step(False)
    images = random_images(50, 70)
    alike = [predict(pixelwise, images, classes=2, blend=blend, **options) for blend in (False, True)]
    torch.testing.assert_close(*alike)
