"""Labels that may be wrong, by confident learning (Northcutt et al. 2021). Standard library only."""

import collections
from typing import NamedTuple


class Doubt(NamedTuple):
    """A label that may be wrong. margin: how much more probable the suggestion is, 0..1."""

    image: str
    given: str
    suggested: str
    margin: float


def doubtful_labels(rows):
    """[Doubt], the most doubtful first, of images that no model was trained on whose answers these are.

    rows: dicts of predictions.csv: image, label, said, probability, label_probability. An answer is sure where it is at least
    as probable as that class is, in the mean, for the images that have its label. The share of them that differs from
    a class's label, times its size, tells how many of its labels are wrong: so many are named, those of the largest margin
    (there: prune by class).
    """
    known = []
    for row in rows:
        try:
            numbers = float(row["probability"]), float(row["label_probability"])
        except (KeyError, TypeError, ValueError):
            continue
        if all(0 <= p <= 1 for p in numbers):  # NaN is not
            known.append((row.get("image", ""), row.get("label", ""), row.get("said", ""), *numbers))
    own = collections.defaultdict(list)
    for _, label, _, _, p in known:
        own[label].append(p)
    usual = {label: sum(values) / len(values) for label, values in own.items()}
    wrong, sure, sizes = collections.Counter(), collections.Counter(), collections.Counter(label for _, label, *_ in known)
    rivals = collections.defaultdict(list)
    for image, label, said, p, p_label in known:
        if p >= usual.get(said, 2.0):
            sure[label] += 1
            wrong[label] += said != label
        if said != label:
            rivals[label].append(Doubt(image, label, said, p - p_label))
    found = []
    for label, doubts in rivals.items():
        most = round(sizes[label] * wrong[label] / max(sure[label], 1))
        found += sorted(doubts, key=lambda doubt: (-doubt.margin, doubt.image))[:most]
    return sorted(found, key=lambda doubt: (-doubt.margin, doubt.image))
