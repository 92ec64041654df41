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
    as probable as that class is, in the mean, for the images that have its label. The sure answers tell how many images of a class
    are of another (their share of all sure answers to the class, times its size): so many are named, by their margins.
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
    sure, sizes = collections.Counter(), collections.Counter(label for _, label, *_ in known)
    asked, rivals = collections.Counter(), collections.defaultdict(list)
    for image, label, said, p, p_label in known:
        if p >= usual.get(said, 2.0):
            sure[label, said] += 1
            asked[label] += 1
        if said != label:
            rivals[label, said].append(Doubt(image, label, said, p - p_label))
    found = []
    for (label, said), doubts in rivals.items():
        wrong = round(sizes[label] * sure[label, said] / asked[label]) if asked[label] else 0
        found += sorted(doubts, key=lambda doubt: (-doubt.margin, doubt.image))[:wrong]
    return sorted(found, key=lambda doubt: (-doubt.margin, doubt.image))
