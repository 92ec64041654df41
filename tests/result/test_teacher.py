"""--teacher: what is learned of an image when a trained model is asked, and which models cannot be asked."""

import argparse
import contextlib
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import forked, lines, train

from utils.augment.mixup import make_mixup
from utils.cli.errors import InputError
from utils.cli.recognition_flags import MixupOptions
from utils.losses.recognition import CrossEntropy
from utils.result.teacher import Teacher, make_teacher

NORM = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class OnTheCpu:
    """What a teacher needs of an Accelerator."""

    device, autocast = torch.device("cpu"), contextlib.nullcontext
    local_main_process_first = contextlib.nullcontext


class Looks(torch.nn.Module):
    """Logits that are given, whatever the images, which it remembers."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        self.images = images
        return self.logits.expand(len(images), -1)


def asked(model, share=0.25, smoothing=0.0, columns=(0, 1, 2), size=8, mixup=None, **facts):
    facts = {"input_size": size, **NORM, **facts}
    return Teacher(model, facts, list(columns), NORM, share, smoothing, OnTheCpu()).after(mixup)


def test_a_target_is_the_label_and_a_share_of_the_teachers_probabilities():
    logits = [0.0, float(torch.tensor(2.0).log()), float(torch.tensor(5.0).log())]  # probabilities 1/8, 2/8, 5/8
    images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 2])
    same, targets = asked(Looks(*logits))(images, labels, seed=0)
    assert same is images
    torch.testing.assert_close(targets, torch.tensor([[0.78125, 0.0625, 0.15625], [0.03125, 0.0625, 0.90625]]))
    targets = asked(Looks(*logits), share=1.0, columns=(2, 0, 1))(images, labels, seed=0)[1]  # its classes have another order
    torch.testing.assert_close(targets, torch.tensor([[0.625, 0.125, 0.25]] * 2))
    targets = asked(Looks(*logits), share=0.0, smoothing=0.3)(images, labels, seed=0)[1]
    torch.testing.assert_close(targets, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))


def test_the_gradient_is_that_of_the_label_and_of_the_divergence_from_the_teacher():
    torch.manual_seed(0)
    logits, labels, answers = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 1]), torch.randn(3)
    targets = asked(Looks(*answers.tolist()))(torch.zeros(4, 3, 8, 8), labels, seed=0)[1]
    (found,) = torch.autograd.grad(CrossEntropy()(logits, targets), logits)
    divergence = F.kl_div(logits.log_softmax(1), answers.log_softmax(0).expand(4, -1), reduction="batchmean", log_target=True)
    (wanted,) = torch.autograd.grad(0.75 * F.cross_entropy(logits, labels) + 0.25 * divergence, logits)
    torch.testing.assert_close(found, wanted)


def test_it_looks_at_the_pixels_of_the_model_in_its_own_way():
    model = Looks(0.0, 0.0, 0.0)
    pixels = torch.rand(2, 3, 8, 8)
    images = (pixels - 0.5) / 0.25  # as the model gets them
    asked(model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))(images, torch.tensor([0, 1]), seed=0)
    own = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(model.images, own)
    asked(model, size=4)(images, torch.tensor([0, 1]), seed=0)
    assert model.images.shape == (2, 3, 4, 4)
    mixup = make_mixup(MixupOptions(mixup=0.8), 3, 0.0)
    mixed, targets = asked(model, mixup=mixup, share=0.5)(images, torch.tensor([0, 1]), seed=3)
    wanted, labels = mixup(images, torch.tensor([0, 1]), 3)
    assert torch.equal(mixed, wanted) and torch.allclose(model.images, wanted)
    torch.testing.assert_close(targets, labels / 2 + 1 / 6)


def args(teacher, **others):
    flags = {"teacher": str(teacher), "teacher_share": 0.5, "smoothing": 0.0, "channels_last": False, "in_chans": None}
    return argparse.Namespace(**flags | others)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a tiny teacher of three classes with these names; returns its folder."""

    def save(*names, **more):
        model = timm.create_model("resnet10t", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=3)
        config = {"label_names": list(names)} if names else {}
        timm.models.save_for_hf(model, tmp_path / "t", model_config=config | more, safe_serialization=True,
                                model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})  # fmt: skip
        config = json.loads((tmp_path / "t" / "config.json").read_text())
        (tmp_path / "t" / "config.json").write_text(json.dumps(config | more))
        return tmp_path / "t"

    return save


def test_its_classes_are_those_of_the_data_by_name(saved):
    said = []
    folder = saved("cat", "dog", "eel")
    images = torch.rand(2, 3, 64, 64)
    teach = make_teacher(args(folder, teacher_share=1.0), ["dog", "eel", "cat"], NORM, OnTheCpu(), said.append)(None)
    targets = teach(images, torch.tensor([0, 1]), 0)[1]
    assert targets.shape == (2, 3) and torch.allclose(targets.sum(1), torch.ones(2))
    other = make_teacher(args(folder, teacher_share=1.0), ["cat", "dog", "eel"], NORM, OnTheCpu(), said.append)(None)
    assert torch.equal(other(images, torch.tensor([0, 1]), 0)[1][:, [1, 2, 0]], targets)
    assert said[0].startswith(f"teacher: {folder}, ") and said[0].endswith("176 pixels")
    folder = saved()
    make_teacher(args(folder), ["dog", "eel", "cat"], NORM, OnTheCpu(), said.append)
    assert said[-1].endswith("; its classes have no names: taken in the order of the data")


@pytest.mark.parametrize(
    ("classes", "norm", "more", "message"),
    [
        (["cat", "dog", "fox"], NORM, {}, "it knows no class 'fox'; expected a model of the classes of the data"),
        (
            ["cat", "dog"],
            {"mean": (0.5,), "std": (0.5,)},
            {"in_chans": 3},
            "trained on images of 3 bands; expected one of three",
        ),
        (["cat", "dog"], NORM, {"task": "multilabel"}, "expected the folder of a model that gives an image one class"),
    ],
)
def test_models_that_cannot_teach(saved, classes, norm, more, message):
    folder = saved("cat", "dog", "eel", **more)
    with pytest.raises(InputError, match=f"--teacher {folder}: {message}"):
        make_teacher(args(folder), classes, norm, OnTheCpu(), print)


@pytest.mark.slow
def test_a_run_learns_from_the_best_weights_of_another(tmp_path):
    assert train("--output_dir", tmp_path / "t", "--seed", 7).returncode == 0
    losses = {}
    for share in (None, 0, 1):
        words = ["--teacher", tmp_path / "t" / "best", "--teacher_share", share] if share is not None else []
        done = train(*words, "--output_dir", tmp_path / str(share))
        assert done.returncode == 0, done.stderr
        assert ("teacher: " in done.stdout) == bool(words)
        losses[share] = [record["loss"] for record in lines(tmp_path / str(share) / "updates.txt")]
    assert losses[0] == pytest.approx(losses[None], abs=1e-4) and losses[1] != pytest.approx(losses[None], abs=1e-2)
    done = forked("train_recognition", "--teacher", tmp_path / "nothing")
    assert (
        done.returncode == 1 and done.stderr.startswith("train_recognition.py: error: --teacher ") and "RUN/best" in done.stderr
    )
