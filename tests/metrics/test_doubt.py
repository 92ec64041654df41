"""Labels that may be wrong are found among answers of models that were not trained on the images."""

import numpy as np

from utils.metrics.doubt import doubtful_labels


def row(image, label, said, probability, label_probability):
    return {"image": image, "label": label, "said": said, "probability": f"{probability:.4f}",
            "label_probability": f"{label_probability:.4f}"}  # fmt: skip


def test_an_answer_counts_where_it_is_as_sure_as_of_its_own_class():
    rows = [row("a", "cat", "cat", 0.9, 0.9), row("b", "cat", "cat", 0.7, 0.7), row("c", "dog", "dog", 0.6, 0.6)]
    rows += [row("d", "dog", "cat", 0.85, 0.1), row("e", "dog", "cat", 0.75, 0.2), row("f", "cat", "dog", 0.5, 0.4)]
    # Of cats the mean is (0.9 + 0.7 + 0.4) / 3 = 0.667, of dogs (0.6 + 0.1 + 0.2) / 3 = 0.3.
    assert [(doubt.image, doubt.given, doubt.suggested) for doubt in doubtful_labels(rows)] == [
        ("d", "dog", "cat"), ("e", "dog", "cat"), ("f", "cat", "dog"),
    ]  # fmt: skip
    rows += [row("g", "cat", "cat", 0.99, 0.99)] * 20
    assert [doubt.image for doubt in doubtful_labels(rows)] == ["f"]  # such cats are sure ones: 0.85 is not sure


def test_flipped_labels_are_found():
    """Of 2,000 images 5 % are flipped; a model is right and sure of most, as one that was trained on the others is."""
    rng, classes = np.random.default_rng(0), 10
    truth = rng.integers(0, classes, 2000)
    flipped = rng.random(2000) < 0.05
    given = np.where(flipped, (truth + rng.integers(1, classes, 2000)) % classes, truth)
    logits = rng.normal(0, 1, (2000, classes))
    logits[np.arange(2000), truth] += 5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = p.argmax(1)
    found = doubtful_labels([row(str(i), str(given[i]), str(said[i]), p[i].max(), p[i, given[i]]) for i in range(2000)])
    right = sum(flipped[int(doubt.image)] for doubt in found)
    assert right / len(found) >= 0.8 and right / flipped.sum() >= 0.8
    assert [doubt.margin for doubt in found] == sorted((doubt.margin for doubt in found), reverse=True)


def test_damaged_rows_are_left_out():
    rows = [{}, {"image": "a", "label": "x", "said": "y", "probability": "nan", "label_probability": "0.1"},
            {"image": "b", "probability": "0.5"}, {None: ["more"], "probability": "2", "label_probability": "0"}]  # fmt: skip
    assert doubtful_labels(rows) == []
