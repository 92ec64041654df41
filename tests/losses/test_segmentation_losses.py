"""The loss of semantic segmentation against the published code's numbers, and by hand."""

import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from utils.cli.errors import InputError
from utils.cli.segmentation_flags import LossOptions
from utils.images.read import IGNORE
from utils.losses.segmentation import SegmentationLoss, make_segmentation_loss, present_classes
from utils.metrics.segmentation import confusion_matrices, scores

OUTPUTS = {"pred": "logits", "aux_pred": "aux", "se_pred": "se"}


@pytest.fixture(scope="module")
def published(golden):
    return golden("5_losses_metrics/losses_metrics.json"), load_file(GOLDEN / "5_losses_metrics/losses_metrics.safetensors")


def compare(case, tensors, loss, gradients):
    """loss and gradients {published input name: tensor} with those of a golden case; NaN there is 0 here."""
    if case["loss"] == "nan":
        assert loss.item() == 0
        assert all(not gradient.any() for gradient in gradients.values())
        return
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    for name in case["grads_stored_for"]:
        torch.testing.assert_close(gradients[name], tensors[f"{case['id']}.grad_{name}"], rtol=1e-5, atol=1e-8)


def test_segmentation_losses_as_published(published):
    losses, tensors = published
    cases = [case for case in losses["losses"] if case["kind"] == "SegmentationLosses"]
    assert len(cases) == 9 and sum(case["config"]["weight_given"] for case in cases) == 2
    for case in cases:
        config, names = case["config"], [name for name in case["inputs"] if name != "target"]
        inputs = {name: tensors[f"{case['id']}.{name}"].requires_grad_() for name in names}
        target = tensors[f"{case['id']}.target"]
        loss = SegmentationLoss(
            config["nclass"],
            aux_weight=config["aux_weight"] if config["aux"] else 0,
            se_weight=config["se_weight"] if config["se_loss"] else 0,
            weights=tensors[f"{case['id']}.weight"] if config["weight_given"] else None,
        )({OUTPUTS[name]: tensor for name, tensor in inputs.items()}, target.where(target != config["ignore_index"], IGNORE))
        loss.backward()
        compare(case, tensors, loss, {name: tensor.grad for name, tensor in inputs.items()})


def test_present_classes_as_published(published):
    metrics, tensors = published
    cases = [case for case in metrics["metrics"] if case["kind"] == "get_selabel_vector"]
    assert cases
    for case in cases:
        assert present_classes(tensors[f"{case['id']}.target"], case["config"]["nclass"]).tolist() == case["output"]


def of_probabilities(probabilities):
    """Two-class logits (1, 2, 1, n) and target (1, 1, n) in which the true class, 1, has these probabilities; None: ignored."""
    p = torch.tensor([0.01 if value is None else value for value in probabilities])
    target = torch.tensor([-1 if value is None else 1 for value in probabilities])
    return torch.stack([1 - p, p]).log()[None, :, None], target[None, None]


@pytest.mark.parametrize(
    "ohem, kept",
    [
        (None, [0.9, 0.8, 0.3, 0.6]),
        ((0.7, 1), [0.3, 0.6]),  # below the threshold
        ((0.5, 3), [0.3, 0.6, 0.8]),  # too few below it: the least probable
        ((0.0, 1), [0.3]),
        ((0.0, 100), [0.9, 0.8, 0.3, 0.6]),  # more asked for than there are
        ((1.0, 1), [0.9, 0.8, 0.3, 0.6]),
    ],
)
def test_ohem_by_hand(ohem, kept):
    logits, target = of_probabilities([0.9, None, 0.8, 0.3, None, 0.6])
    loss = SegmentationLoss(2, ohem=ohem)({"logits": logits}, target)
    assert loss.item() == pytest.approx(np.mean([-math.log(p) for p in kept]), rel=1e-5)


def test_ohem_chooses_for_cross_entropy_and_not_for_dice():
    logits, target = of_probabilities([0.9, None, 0.3])
    options = LossOptions(loss="ce+dice", ohem=(0.7, 1))
    loss = make_segmentation_loss(options, 2, aux=False)({"logits": logits}, target)
    dice = 1 - 2 * (0.9 + 0.3) / ((0.9 + 0.3) + 2)  # of the class that is there, over both labelled pixels
    assert loss.item() == pytest.approx(-math.log(0.3) + dice, rel=1e-5)


@pytest.mark.parametrize("ohem, kept", [(None, [0.9, 0.8, 0.3]), ((0.85, 1), [0.8, 0.3])])
def test_the_mean_over_all_pixels_by_hand(ohem, kept):
    """mmsegmentation's: the pixels' losses, 0 where the label is ignored or OHEM leaves it out, over the number of pixels."""
    logits, target = of_probabilities([0.9, None, 0.8, 0.3, None, None, None, None])
    options = LossOptions(loss_mean="all", ohem=ohem, aux_weight=0.4)
    loss = make_segmentation_loss(options, 2, aux=True)({"logits": logits, "aux": 0 * logits}, target)
    expected = sum(-math.log(p) for p in kept) / 8
    auxiliary = (len(kept) if ohem is None else 3) * math.log(2) / 8  # probabilities 0.5: all labelled ones are hard
    assert loss.item() == pytest.approx(expected + 0.4 * auxiliary, rel=1e-5)
    labelled = make_segmentation_loss(options._replace(loss_mean="labelled", ohem=None), 2, aux=False)
    assert labelled({"logits": logits}, target).item() == pytest.approx(-math.log(0.9 * 0.8 * 0.3) / 3, rel=1e-5)


def test_ohem_keeps_the_pixels_of_mmsegmentation():
    """Its rule: of B images, probability < max(threshold, the one after the min_kept x B smallest)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, 7, generator=generator, requires_grad=True)
    target = torch.randint(-1, 5, (2, 9, 7), generator=generator)
    labelled = target >= 0
    own = logits.detach().softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    for threshold, min_kept in ((0.1, 30), (0.6, 30), (0.0, 1), (0.2, 5)):
        logits.grad = None
        SegmentationLoss(5, ohem=(threshold, min_kept))({"logits": logits}, target).backward()
        limit = max(threshold, np.sort(own[labelled].numpy())[2 * min_kept])
        assert torch.equal(logits.grad.abs().sum(1) > 0, labelled & (own < limit))


def test_ohem_of_both_heads():
    logits, target = of_probabilities([0.9, 0.3])
    loss = SegmentationLoss(2, ohem=(0.5, 1), aux_weight=0.5)
    assert loss({"logits": logits, "aux": logits}, target).item() == pytest.approx(1.5 * -math.log(0.3), rel=1e-5)


@pytest.mark.parametrize("mean", ["labelled", "all"])
@pytest.mark.parametrize("ohem", [None, (0.7, 3)])
def test_nothing_labelled_is_zero(ohem, mean):
    outputs = {"logits": torch.randn(2, 3, 4, 5), "aux": torch.randn(2, 3, 4, 5), "se": torch.randn(2, 3)}
    outputs = {name: output.requires_grad_() for name, output in outputs.items()}
    criterion = SegmentationLoss(3, aux_weight=0.4, se_weight=0.2, ohem=ohem, mean=mean)
    loss = criterion(outputs, torch.full((2, 4, 5), -1))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(output.grad, torch.zeros_like(output)) for output in outputs.values())


KINDS = [{"kind": "ce+dice"}, {"kind": "focal"}, {"kind": "lovasz"}, {"weights": torch.tensor([0.5, 2.0, 1.0])}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_ignored_pixels_are_in_neither_value_nor_gradient(options):
    """Whatever the logits of ignored pixels are, and with more of them, all is as if they were not there."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 6, generator=generator), torch.randint(0, 3, (2, 4, 6), generator=generator)
    found = []
    for columns in (0, 2, 5):  # that are put aside of the image, ignored
        more = 9 * torch.randn(2, 3, 4, columns, generator=generator)
        wide = torch.cat([logits, more], 3).requires_grad_()
        loss = SegmentationLoss(3, **options)({"logits": wide}, torch.nn.functional.pad(target, (0, columns), value=IGNORE))
        loss.backward()
        assert not wide.grad[..., 6:].any() and wide.grad[..., :6].any()
        found.append(torch.cat([loss.detach()[None], wide.grad[..., :6].flatten()]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    empty = SegmentationLoss(3, **options)({"logits": logits.requires_grad_()}, torch.full_like(target, IGNORE))
    assert empty.item() == 0 and not torch.autograd.grad(empty, logits)[0].any()


def test_dice_and_focal_and_lovasz_by_hand():
    logits, target = of_probabilities([0.9, None, 0.2, 0.6])  # the truth is class 1 throughout
    ce = -np.log([0.9, 0.2, 0.6])
    dice = 1 - 2 * 1.7 / (1.7 + 3)
    focal = np.mean(np.array([0.1, 0.8, 0.4]) ** 2 * ce)
    lovasz = (0.8 + 0.4 + 0.1) / 3  # of one class alone, each error counts a third
    for kind, expected in (("ce+dice", ce.mean() + dice), ("focal", focal), ("lovasz", lovasz)):
        assert SegmentationLoss(2, kind=kind)({"logits": logits}, target).item() == pytest.approx(expected, rel=1e-5)
    halves = torch.tensor([[[[0.7, 0.4]], [[0.3, 0.6]]]]).log()  # two pixels of the classes 0 and 1
    both = SegmentationLoss(2, kind="lovasz")({"logits": halves}, torch.tensor([[[0, 1]]]))
    # Class 0: errors 0.3 inside, 0.4 outside; the larger one alone makes IoU 1/2, both make it 0. Class 1: 0.4 inside, 0.3
    # outside; the first alone makes it 0.
    assert both.item() == pytest.approx((0.4 * 0.5 + 0.3 * 0.5 + 0.4 * 1.0) / 2, rel=1e-5)


def test_lovasz_of_sure_answers_is_one_minus_the_iou():
    generator = torch.Generator().manual_seed(1)
    target, said = (torch.randint(0, 4, (1, 9, 9), generator=generator) for _ in range(2))
    target[0, :2] = IGNORE
    logits = 200.0 * torch.nn.functional.one_hot(said, 4).movedim(-1, 1)
    iou = scores(confusion_matrices(said, target, 4)[0])["iou"]
    assert SegmentationLoss(4, kind="lovasz")({"logits": logits}, target).item() == pytest.approx(1 - np.mean(iou) / 100)


def test_half_precision_sums_in_float32():
    logits = torch.zeros(1, 4, 300, 300, dtype=torch.float16)  # 90000 pixels x log 4 is beyond float16
    assert SegmentationLoss(4)({"logits": logits}, torch.zeros(1, 300, 300, dtype=torch.int64)).item() == pytest.approx(
        math.log(4)
    )


def test_missing_outputs():
    outputs, target = {"logits": torch.zeros(1, 3, 2, 2)}, torch.zeros(1, 2, 2, dtype=torch.int64)
    for weights in ({"aux_weight": 0.4}, {"se_weight": 0.2}):
        criterion = SegmentationLoss(3, **weights)
        with pytest.raises(InputError, match="no '(aux|se)' output"):
            criterion(outputs, target)
        assert criterion.eval()(outputs, target).item() == pytest.approx(math.log(3))


def test_wrong_input():
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    for ohem in ((1.5, 10), (0.7, 0)):
        with pytest.raises(InputError, match="expected"):
            SegmentationLoss(3, ohem=ohem)
    for shape in ((1, 4, 2, 2), (1, 3, 4, 4)):
        with pytest.raises(InputError, match="logits"):
            SegmentationLoss(3)({"logits": torch.zeros(shape)}, target)


def test_never_waits_for_the_device():
    """On the meta device nothing has a value: reading one back raises."""
    outputs = {"logits": torch.zeros(2, 3, 8, 8), "aux": torch.zeros(2, 3, 8, 8), "se": torch.zeros(2, 3)}
    outputs = {name: output.to("meta").requires_grad_() for name, output in outputs.items()}
    for options in ({"ohem": (0.7, 9)}, {"kind": "ce+dice"}, {"kind": "lovasz"}, {"weights": [1.0, 2.0, 3.0]}):
        criterion = SegmentationLoss(3, aux_weight=0.4, se_weight=0.2, **options).to("meta")
        criterion(outputs, torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")).backward()
        assert all(output.grad is not None for output in outputs.values())
