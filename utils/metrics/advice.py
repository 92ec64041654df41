"""What the numbers of a run say about it, in words, and the flag that helps. Standard library only.

A run says each kind once, when it can first be seen, and keeps it in warnings.txt, which report.html shows. Each rule takes
numbers of log.txt, updates.txt or classes.json, and returns a line or None.
"""

MOVED = 0.02  # the least fraction of itself that a training loss falls by in a tenth of a run that learns
SMALLEST = 16  # images of an update, as batch norm needs them
LOOKED_AT = 5  # updates or epochs whose mean is taken as the loss of a moment


def small_data(images, batch):
    """An update takes most of the data: an epoch is a single update. Smaller ones than of SMALLEST images are noise."""
    if batch * 2 <= images or batch <= SMALLEST:
        return None
    return f"an update takes {batch} of the {images} training images: try --total_batch_size {SMALLEST}, for more updates"


def first_tenth(total_updates):
    """Updates after which `not_moving` can tell."""
    return max(4 * LOOKED_AT, total_updates // 10)


def not_moving(updates, total_updates, lr):
    """After the first tenth of the run the training loss is where it was, or higher: a rate too small, or too large. updates:
    all records of updates.txt; lr: the peak rate."""
    losses, tenth = [record.get("loss") for record in updates], first_tenth(total_updates)
    if len(losses) < tenth or any(not isinstance(loss, int | float) for loss in losses[:tenth]):
        return None
    first, last = sum(losses[:LOOKED_AT]), sum(losses[tenth - LOOKED_AT : tenth])
    if first <= 0 or last < first * (1 - MOVED):
        return None
    rose, changed = last > first, f"{abs(1 - last / first):.0%} in {tenth} updates"
    if last > first * (1 + MOVED):
        return f"the training loss rose by {changed}: try --lr {lr / 10:.1g}"
    return f"the training loss {'rose' if rose else 'fell'} by {changed}: try --lr {lr * 10:.1g}"


def overfits(epochs):
    """The validation loss has been rising for a fifth of the epochs, while the training loss falls. epochs: of log.txt.

    The loss of a moment is the mean of three epochs: a single one may be lucky.
    """
    pairs = [(record.get("train_loss"), record.get("test_loss"), record["epoch"] + 1) for record in epochs]
    pairs = [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)]
    if len(pairs) < 2 * LOOKED_AT:
        return None
    means = [sum(test for _, test, _ in pairs[i : i + 3]) / 3 for i in range(len(pairs) - 2)]
    lowest = means.index(min(means))
    best = min(pairs[lowest : lowest + 3], key=lambda pair: pair[1])
    since, (train, test, _) = pairs[pairs.index(best) + 1 :], pairs[-1]
    if len(since) < max(LOOKED_AT, len(pairs) // 5) or means[-1] < 1.1 * means[lowest] or train > 0.9 * best[0]:
        return None
    flags = "" if "test_miou" in epochs[-1] else "--aa rand-m9-mstd0.5-inc1, --mixup 0.2, or "
    return (
        f"since epoch {best[2]} the validation loss rises, from {best[1]:.3g} to {test:.3g}, while the training loss falls: "
        f"the network learns the images by heart; try {flags}fewer --epochs"
    )


def never_predicted(classes, epochs):
    """Some classes are in the validation data, and in the last epoch no image is taken for them: they have no precision.
    classes: rows of classes.json, which tell names and counts; epochs: records of log.txt so far."""
    if len(epochs) < LOOKED_AT or len(classes) < 2:
        return None
    precision = epochs[-1].get("test_class_precision")
    if not isinstance(precision, list) or len(precision) != len(classes):
        return None
    never = [row.get("name", "") for row, share in zip(classes, precision, strict=True) if row.get("count") and share is None]
    if not never:
        return None
    named = ", ".join(map(str, never[:5])) + f" and {len(never) - 5} more" * (len(never) > 5)
    what = "pixel of the validation images" if "test_miou" in epochs[-1] else "validation image"
    where = f"in epoch {epochs[-1]['epoch'] + 1} no {what} is taken for {named}"
    return f"{where}: look at those images, and at how many there are to learn from"


# --- in words, for the top of report.html

RARE, UNEQUAL, LAGS = 0.01, 4, 10  # share of pixels; how many times larger; points of a score that a class lies below the mean
CONFUSED = 20  # per cent of a class


def in_words(epochs, classes, evaluation, args, segments=False):
    """What a run has reached and what to try next, as sentences, the most important first.

    epochs: records of log.txt; classes: rows of classes.json; evaluation: the content of evaluation.json; args: the flags of
    the run; segments: whether classes are of pixels.
    """
    metric = evaluation.get("metric", "")
    good = _how_good_are_labels(classes, evaluation) if _are_labels(classes) else _how_good(classes, evaluation, segments)
    said = [good, _trend(epochs, metric, evaluation.get("epoch")), _who_suffers(classes)]
    next_steps = [_unequal(classes, args, segments), _small_objects(classes, args, segments), _from_scratch(args)]
    next_steps.append(_alike(classes))
    said += [f"Try next: {line}" for line in next_steps if line]
    return [line for line in said if line]


def _counts(classes):
    return [(row["count"], row) for row in classes if isinstance(row.get("count"), int) and row["count"] > 0]


def _how_good(classes, evaluation, segments):
    """The score, how sure it is, and what always saying the commonest class would reach."""
    scores, counts = evaluation.get("scores", {}), _counts(classes)
    name, words = ("miou", "mean IoU") if segments else ("acc1", "top-1 accuracy")
    if name not in scores or not counts:
        return None
    most, commonest = max(counts, key=lambda pair: pair[0])
    baseline, (low, high) = _always_the_same(counts, segments), _interval(evaluation, name)
    digits = 0 if high - low > 5 else 1
    sure = f" ({low:.{digits}f} to {high:.{digits}f} with 95 % confidence)" if low < high else ""
    found = f"{words} is {scores[name]:.1f} %{sure}"
    alike = sum(count == most for count, _ in counts) > 1
    always = "the same class" if alike else f"{commonest.get('name')}, the commonest class,"
    common = f"always saying {always} would reach {baseline:.1f} %"
    if low <= baseline:
        return f"The {found}; {common}: by this score nothing of use is learned yet. Try next: more --epochs, or another --lr."
    balanced = scores.get("balanced_acc")
    lag = balanced is not None and scores[name] - balanced > LAGS / 2
    mean = f" Over the classes the mean is {balanced:.1f} %: rare ones are found less often." if lag else ""
    return f"The {found}; {common}.{mean}"


def _always_the_same(counts, segments=False):
    """The score in per cent of always saying the commonest class."""
    return 100 * max(count for count, _ in counts) / sum(count for count, _ in counts) / (len(counts) if segments else 1)


def _interval(evaluation, name):
    return evaluation.get("intervals", {}).get(name, (evaluation["scores"][name],) * 2)


def has_learned(classes, evaluation):
    """Whether top-1 accuracy is surely above that of always saying the commonest class; else the model's answers tell nothing
    of the labels. Arguments as of `in_words`; True where they do not tell."""
    counts = _counts(classes)
    known = counts and "acc1" in evaluation.get("scores", {})
    return not known or _interval(evaluation, "acc1")[0] > _always_the_same(counts)


def _are_labels(classes):
    """Whether the classes are labels of which an image may have several."""
    return any("ap" in row for row in classes)


def _how_good_are_labels(classes, evaluation):
    """Mean average precision, and that of chance, which is the mean share of the images that have a label."""
    scores, counts = evaluation.get("scores", {}), _counts(classes)
    if not counts or not scores.get("images") or "map" not in scores:
        return None
    chance = 100 * sum(count for count, _ in counts) / len(counts) / scores["images"]
    low, high = evaluation.get("intervals", {}).get("map", (scores["map"],) * 2)
    sure = f" ({low:.0f} to {high:.0f} with 95 % confidence)" if low < high else ""
    found = f"The mean average precision is {scores['map']:.1f} %{sure}; chance has {chance:.1f} %, the labels' mean share"
    lacking = [str(row.get("name")) for row in classes if row.get("count") == 0]
    names = ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5)
    left_out = f" Left out, since no validation image has them: {names}." * bool(lacking)
    if low <= chance:
        return f"{found}: by this score nothing of use is learned yet. Try next: more --epochs, or another --lr.{left_out}"
    f1 = f" Said from each label's own threshold on, labels have a mean F1 of {scores['f1']:.1f} %." if "f1" in scores else ""
    return f"{found} of the images.{f1}{left_out}"


def _trend(epochs, metric, best_epoch):
    """Whether the run overfits, still improves, or has long reached what it can."""
    if line := overfits(epochs):
        return f"It overfits: {line}."
    scored = [record["epoch"] + 1 for record in epochs if isinstance(record.get(f"test_{metric}"), int | float)]
    if len(scored) < LOOKED_AT or best_epoch not in scored:
        return None
    last, after = scored[-1], len(scored) - 1 - scored.index(best_epoch)
    if after <= len(scored) // 10:
        return f"It still improves: the best epoch, {best_epoch}, is one of the last of {last}. Try next: --epochs {2 * last}."
    if after >= len(scored) // 2:
        return f"Since epoch {best_epoch} of {last} it became no better: --patience {max(3, last // 5)} would end it sooner."
    return None


def _who_suffers(classes):
    """The classes with the lowest scores, and what they are taken for."""
    keys = {"iou": "IoU", "ap": "AP"}
    key = next((key for key in keys if any(key in row for row in classes)), "recall")
    word = keys.get(key, "found")
    known = sorted((row for row in classes if isinstance(row.get(key), int | float)), key=lambda row: row[key])
    parts = []
    for row in [row for row in known if row[key] < 100][:3]:
        share = row.get("taken_for_share")
        taken = f", {share:.0f} % taken for {row.get('taken_for')}" if isinstance(share, int | float) else ""
        parts.append(f"{row.get('name')} ({row[key]:.0f} % {word}{taken})")
    return f"Hardest: {'; '.join(parts)}." if parts and len(known) > 1 else None


def _unequal(classes, args, segments):
    """A class that is rare in the data does worse than the others, and nothing was done about it."""
    counts, several = _counts(classes), _are_labels(classes)
    key = "iou" if segments else "ap" if several else "recall"
    scores = [row[key] for _, row in counts if isinstance(row.get(key), int | float)]
    if len(scores) < 2 or args.get("class_weights") or args.get("sampling", "uniform") != "uniform":
        return None
    (least, rare), (most, _) = (pick(counts, key=lambda pair: pair[0]) for pick in (min, max))
    lags = isinstance(rare.get(key), int | float) and rare[key] < sum(scores) / len(scores) - LAGS
    if most < UNEQUAL * least or not lags:
        return None
    flags = "--class_weights auto"
    if not segments and not several:
        flags = f"--sampling balanced or {flags}, with --best_metric balanced_acc"
    return f"{flags}: {rare.get('name')} is {most / least:.0f} times rarer than the commonest class, and does worse."


def _small_objects(classes, args, segments):
    """Classes of few pixels do worse than the others."""
    counts = _counts(classes)
    if not segments or args.get("loss", "ce") != "ce" or not counts:
        return None
    whole = sum(count for count, _ in counts)
    mean = sum(row.get("iou") or 0 for _, row in counts) / len(counts)
    small = [str(row.get("name")) for count, row in counts if count < RARE * whole and (row.get("iou") or 0) < mean - LAGS]
    if not small:
        return None
    named = ", ".join(small[:3]) + ", …" * (len(small) > 3)
    return f"--loss ce+dice, or a larger --crop_size: {named} take up less than 1 % of the pixels and are found badly."


def _from_scratch(args):
    """Weights from scratch on own images."""
    own = args.get("data_path") or args.get("dataset")
    started = any(args.get(key) for key in ("pretrained", "finetune", "resume"))
    return None if started or not own or args.get("eval") else "--pretrained true: trained weights need far fewer images."


def _alike(classes):
    """Two classes that are taken for each other."""
    by_name = {row.get("name"): row for row in classes}
    for row in classes:
        other = by_name.get(row.get("taken_for"), {})
        shares = [part.get("taken_for_share") for part in (row, other)]
        sure = all(isinstance(share, int | float) and share >= CONFUSED for share in shares)
        if sure and other.get("taken_for") == row.get("name"):
            both = f"{row['name']} and {other['name']}"
            return f"look at {both}, which are taken for each other: wrong labels, or images too small to tell them apart?"
    return None
