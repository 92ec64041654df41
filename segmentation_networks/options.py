"""Checks of a network's options, such as `check_whole(channels=channels, codewords=codewords)` in a head.

Each raises InputError with the option's name, what was found and what was expected.
"""

import inspect

from utils.cli.arguments import check_model_kwargs
from utils.cli.errors import InputError, did_you_mean

MOST = 16_384  # channels; no network has more


def check_whole(most=MOST, **options):
    """Each option is a whole number from 1 to `most`, or None, which stands for the default."""
    _check(options, lambda value: value is None or _is_whole(value, most), f"a whole number, 1 to {most:,}")


def check_list(most=1024, **options):
    """Each option is a list or tuple of one or more whole numbers from 1 to `most`, or None, which stands for the default."""

    def fits(values):
        if not isinstance(values, list | tuple):
            return values is None
        return len(values) > 0 and all(_is_whole(value, most) for value in values)

    _check(options, fits, f"one or more whole numbers, 1 to {most:,}")


def check_probability(**options):
    """Each option is a number from 0 to 1, 1 left out."""
    _check(options, lambda value: isinstance(value, int | float) and 0 <= value < 1, "a probability below 1")


def check_switch(**options):
    """Each option is True or False."""
    _check(options, lambda value: isinstance(value, bool), "true or false")


def _check(options, fits, wanted):
    for name, value in options.items():
        if not fits(value):
            raise InputError(f"{name} {value}: expected {wanted}")


def _is_whole(value, most):
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def keywords(values, name):
    """A dict {keyword: value} of a dict or of pairs, as `--{name} KEY=VALUE …` gives them.

    Raises InputError for anything else, and for values that no model takes.
    """
    try:
        values = dict(values)
    except (TypeError, ValueError):
        raise InputError(f"{name} {values}: expected names and values") from None
    if not all(isinstance(key, str) for key in values):
        raise InputError(f"{name} {values}: expected names and values")
    check_model_kwargs(values, name)
    return values


def head_options(head, values, name, what):
    """`keywords` that are options of the class `head`, whatever their values; an error calls it `what`."""
    values, known = keywords(values, name), options_of(head)
    for key in values:
        if key not in known:
            raise InputError(f"{what} takes {', '.join(known)}; found {key}{did_you_mean(key, known)}")
    return values


def options_of(head):
    """Names of the options of a class of heads: its arguments after the `*`, but for the network's output_stride."""
    arguments = inspect.signature(head).parameters.values()
    names = [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]
    return [name for name in names if name != "output_stride"]
