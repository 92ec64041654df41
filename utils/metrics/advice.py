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


def not_moving(updates, total_updates):
    """After the first tenth of the run the training loss is where it was. updates: all records of updates.txt."""
    losses, rates = ([record.get(key) for record in updates] for key in ("loss", "lr"))
    tenth = first_tenth(total_updates)
    if len(losses) < tenth or any(not isinstance(loss, int | float) for loss in losses[:tenth] + rates[:tenth]):
        return None
    first, last = sum(losses[:LOOKED_AT]), sum(losses[tenth - LOOKED_AT : tenth])
    if first <= 0 or last < first * (1 - MOVED):
        return None
    rate = max(rates[:tenth]) * 10
    change = "rose" if last > first else "fell"
    return f"the training loss {change} by {abs(1 - last / first):.0%} in {tenth} updates: try --lr {rate:.1g}"


def overfits(epochs):
    """The validation loss has been rising for a fifth of the epochs, while the training loss falls. epochs: of log.txt."""
    pairs = [(record.get("train_loss"), record.get("test_loss"), record["epoch"] + 1) for record in epochs]
    pairs = [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)]
    if len(pairs) < 2 * LOOKED_AT:
        return None
    best = min(pairs, key=lambda pair: pair[1])
    since, (train, test, _) = pairs[pairs.index(best) + 1 :], pairs[-1]
    if len(since) < max(LOOKED_AT, len(pairs) // 5) or test < 1.1 * best[1] or train > 0.9 * best[0]:
        return None
    return (
        f"since epoch {best[2]} the validation loss rises, from {best[1]:.3g} to {test:.3g}, while the training loss falls: "
        "the network learns the images by heart; try --aa rand-m9-mstd0.5-inc1, --mixup 0.2, or fewer --epochs"
    )


def never_predicted(classes, epochs):
    """Some classes are in the validation data, and no image is taken for them. classes: of classes.json; epochs: so far."""
    never = [row.get("name", "") for row in classes if row.get("count") and row.get("predicted") == 0]
    if not never or epochs < LOOKED_AT or len(classes) < 2:
        return None
    named = ", ".join(map(str, never[:5])) + f" and {len(never) - 5} more" * (len(never) > 5)
    return f"no validation image is taken for {named}: look at those images, and at how many there are to learn from"
