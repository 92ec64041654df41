"""How much each class counts: by its share, from a file, as said; and what a weighted loss is."""

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

from utils.cli.errors import InputError
from utils.losses.class_weights import class_weights, count_labels, count_pixels
from utils.losses.recognition import make_loss

CLASSES = ["sound", "cracked", "chipped"]


def weights_of(*words, count=(900, 100, 1)):
    said = []
    return class_weights(words, CLASSES, lambda: np.array(count), said.append), said


def test_weights_by_shares():
    weights, said = weights_of("inv_freq")
    assert weights.mean() == pytest.approx(1) and weights[1] / weights[0] == pytest.approx(9)
    assert said == [f"class weights: {weights[0]:.3g} (sound) to {weights[2]:.3g} (chipped)"]
    weights, _ = weights_of("auto")
    assert weights[1] / weights[0] == pytest.approx(3) and weights.mean() == pytest.approx(1)
    assert weights_of("auto", count=(4, 4, 0))[0][2] == pytest.approx(2 * weights_of("auto", count=(4, 4, 0))[0][0])
    assert weights_of()[0] is None


def test_weights_by_shares_are_timms():
    timms = getattr(pytest.importorskip("timm.loss"), "compute_class_weights", None)
    if timms is None:
        pytest.skip("this timm has no compute_class_weights")
    for method in ("inv_freq", "effective_num"):
        _, expected = timms([900, 100, 0], 1000, method)
        assert weights_of(method, count=(900, 100, 0))[0] == pytest.approx(expected.numpy(), rel=1e-6)


def test_weights_as_said_and_of_a_file(tmp_path):
    assert weights_of("cracked=4.5")[0].tolist() == [1, 4.5, 1]
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"chipped": 2, "sound": 0.5}))
    assert weights_of(str(path))[0].tolist() == [0.5, 1, 2]


@pytest.mark.parametrize(
    "words, message",
    [
        (["craked=2"], "craked is no class of the data, did you mean cracked"),
        (["dust=2"], "dust is no class of the data; the classes are sound, cracked, chipped"),
        (["sound=much"], "found much as the weight of sound; expected a number"),
        (["sound=-1"], "expected numbers of at least 0"),
        (["inv_frq"], "neither a method nor a JSON file .* did you mean inv_freq"),
        (["auto", "sound=2"], "expected auto alone"),
    ],
)
def test_what_is_no_weight_is_said_in_a_line(words, message):
    with pytest.raises(InputError, match=message):
        weights_of(*words)


def test_classes_are_counted_in_labels_and_masks():
    assert count_labels(types.SimpleNamespace(labels=np.array([2, 0, 2, -1]), classes=CLASSES)).tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="a stream tells one by one"):
        count_labels(types.SimpleNamespace(classes=CLASSES))

    class Masks:
        classes = CLASSES

        def __len__(self):
            return 5000

        def name(self, index):
            return str(index)

        def read(self, index):
            return Image.new("RGB", (2, 2)), np.array([[index % 2, index % 2], [-1, 2]])

    assert count_pixels(Masks(), most=10).sum() == 30 and count_pixels(Masks(), most=10)[2] == 10


def test_weighted_losses_of_recognition_by_hand():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([0.5, 2.0, 1.0])
    logs, own = logits.log_softmax(1), weights[labels]
    expected = -(own * logs[range(6), labels]).sum() / own.sum()
    assert make_loss("ce", 0.0, weights)(logits, labels).item() == pytest.approx(expected.item())
    soft = torch.nn.functional.one_hot(labels, 3).float()
    assert make_loss("ce", 0.0, weights)(logits, soft).item() == pytest.approx(expected.item())  # as mixup hands them over
    mixed = 0.7 * soft + 0.3 * soft.flip(0)
    expected = -(mixed * weights * logs).sum() / (mixed * weights).sum()
    assert make_loss("ce", 0.1, weights)(logits, mixed).item() == pytest.approx(expected.item())
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft, weights)
    assert make_loss("bce", 0.0, weights)(logits, labels).item() == pytest.approx(bce.item())


def test_of_several_labels_a_weight_is_by_how_many_lack_each():
    source = types.SimpleNamespace(labels=np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool), classes=CLASSES)
    count = count_labels(source)
    assert count.tolist() == [[3, 1], [1, 3], [0, 4]]
    for method, wanted in (("inv_freq", [1 / 3, 3, 4]), ("auto", [3**-0.5, 3**0.5, 2])):
        assert weights_of(method, count=count)[0] == pytest.approx(wanted)
    assert weights_of("effective_num", count=count)[0] == pytest.approx([1 / 3, 3, 4], rel=0.01)  # few images: nearly the same
