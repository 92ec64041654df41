"""The command line: flags with underscores, recipes by @file, and errors of one line that name the nearest flag.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""

import argparse
import ast
import collections
import math
import os
import pathlib
import re
import shlex
import sys
from typing import NamedTuple

from utils.cli.elsewhere import called_here
from utils.cli.errors import InputError, did_you_mean, one_line
from utils.cli.urls import hide_secrets

RECIPE_BYTES = 100_000
MODEL_SIZE = 20_000  # pixels, widths and depths in one option of a model, added up: more would take hours to build
_UNSET = object()  # of a flag that is not on the line


class Parser(argparse.ArgumentParser):
    """ArgumentParser in which hyphens are underscores, `@file` reads a recipe and errors are one line."""

    def __init__(self, prog, description, epilog=None):
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=_Help)

    def topic(self, title):
        """A group of flags under this title of the help."""
        return Topic(self.add_argument_group(title))

    def parse_args(self, argv=None, defaults_for=None, check=None):
        """`Arguments` of the command line, sys.argv without `argv`. A mistake ends the process with code 2 and one line.

        defaults_for: a function of the arguments that gives {flag: default} in place of the ordinary ones, such as those
        of the built-in data; what is on the line wins. check: a function (args, error) that calls error(message) for
        flags that contradict each other.
        """
        sys.argv[1:] = map(hide_secrets, sys.argv[1:])  # which runs keep for the record
        line = [_underscores(hide_secrets(word)) for word in (sys.argv[1:] if argv is None else argv)]
        words = expand_recipes(line, self.error)
        flags = [action for action in self._actions if action.dest != "help"]
        args = Arguments(**{action.dest: _UNSET for action in flags})
        _, unknown = self.parse_known_args([_underscores(hide_secrets(word)) for word in words], args)
        if unknown:
            self.error(_explain_unknown(unknown, [flag for action in flags for flag in action.option_strings]))
        args.given = frozenset(name for name, value in vars(args).items() if value is not _UNSET)
        args.typed = args.given & {word.partition("=")[0].removeprefix("--") for word in line if word.startswith("--")}
        args.planned, args.others = {}, []
        args.free = frozenset(action.dest for action in flags if getattr(action, "free", False))
        _fill(args, {action.dest: action.default for action in flags})
        if defaults_for is not None:
            _fill(args, defaults_for(args))
        if check is not None:
            check(args, self.error)
        return args

    def error(self, message):
        if os.environ.get("RANK", "0") == "0":  # every process reads the same line; one answers
            print(f"{self.prog}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


class Arguments(argparse.Namespace):
    """The flags of a run by name. Beside them, and not in vars(args):

    given: names of the flags that stand on the line or in a recipe; typed: of those that stand on the line itself, and
    free: of those that may change between a run and its resumption, since the result stays the same. planned: {flag: value}
    of what the run set by itself, see utils/plan/. others: further weights of --finetune, whose answers are averaged.
    """

    __slots__ = ("free", "given", "others", "planned", "typed")

    def decisive(self):
        """{flag: value} of what decides the result."""
        return {name: value for name, value in vars(self).items() if name not in self.free}


class Topic:
    """The flags of one topic. `free=True` marks a flag that may change between a run and its resumption."""

    def __init__(self, group):
        self.group = group

    def add(self, flag, *, free=False, **options):
        """One flag; `options` as of argparse's add_argument."""
        limits = getattr(options.get("type"), "range", None)
        if limits and options.get("help"):
            options["help"] += f" [{limits}]"
        self.group.add_argument(flag, **options).free = free

    def switch(self, flag, default, help, free=False):
        """A boolean flag as published: `--model_ema true`, `--model_ema false`, or alone for true."""
        self.add(flag, free=free, type=boolean, nargs="?", const=True, default=default, metavar="BOOL", help=help)


def settings_of(name, add_flags, *more):
    """A NamedTuple class with a field for each flag that `add_flags(parser)` and `more` add, its default being the flag's.

    `of(args)` of the class takes the values out of the arguments of a run. So a flag is written once, and whatever takes
    the settings of its topic has it.
    """
    parser = Parser(name, "")
    for add in (add_flags, *more):
        add(parser)
    flags = [action for action in parser._actions if action.dest != "help"]
    fields = [action.dest for action in flags]
    defaults = [action.default for action in flags]
    settings = collections.namedtuple(name, fields, defaults=defaults, module=add_flags.__module__)  # where pickle finds it
    settings.of = classmethod(lambda cls, args: cls(**{field: getattr(args, field) for field in fields}))
    return settings


def refuse_idle(args, error, *rules):
    """error(message) for a flag that would do nothing. What a recipe says and the line overrules is no mistake.

    rules: (names of flags, whether they take effect, when they do, in words).
    """
    for names, effective, when in rules:
        idle = [name for name in names.split() if name in args.typed]
        if idle and not effective:
            error(f"--{idle[0]} {_text(getattr(args, idle[0]))} would do nothing: it takes effect {when}; leave it out")


def flags_text(flags):
    """{flag: value} as words for a shell. Flags that are open (None, "", none of several) are left out."""
    return " ".join(f"--{flag} {_text(value)}" for flag, value in flags.items() if value not in (None, "", [], ()))


def _text(value):
    if isinstance(value, list | tuple):  # a key and its value, as of --model_kwargs, make one word
        return " ".join(_text("=".join(map(str, item)) if isinstance(item, list | tuple) else item) for item in value)
    return str(value).lower() if isinstance(value, bool) else shlex.quote(str(value))


def _fill(args, defaults):
    for name, value in defaults.items():
        if name not in args.given:
            setattr(args, name, value)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):  # "(default: None)" tells nobody anything
        return action.help if action.default is None else super()._get_help_string(action)


def expand_recipes(words, error):
    """Replace each `@file` by the shell words of that file, `#` comments left out. Later flags win, as in argparse."""
    opened = 0

    def expand(words, depth):
        nonlocal opened
        for word in words:
            if not word.startswith("@"):
                yield word
                continue
            path = pathlib.Path(word[1:])
            opened += 1
            if depth == 8 or opened > 100:
                most = "8 recipes deep" if depth == 8 else "100 recipes"
                error(f"recipe {path}: more than {most}; does a recipe name itself?")
            yield from expand(_recipe_words(path, error), depth + 1)

    return list(expand(words, 0))


def _recipe_words(path, error):
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            error(f"recipe {path}: no file; expected a text file of flags")
        if path.stat().st_size > RECIPE_BYTES:
            error(f"recipe {path}: {path.stat().st_size:,} bytes; expected a text file of flags, {RECIPE_BYTES:,} at most")
        return shlex.split(path.read_text(encoding="utf-8-sig"), comments=True)
    except (OSError, UnicodeDecodeError) as failure:
        reason = getattr(failure, "strerror", None) or "no text file"
        error(f"recipe {path}: {reason}{did_you_mean(path.name, [p.name for p in path.parent.glob('*.args')])}")
    except ValueError as failure:
        error(f"recipe {path}: {failure}; expected shell words, such as --drop_path 0.1")


def _underscores(word):
    flag, equals, value = word.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _explain_unknown(unknown, flags):
    parts = []
    for word in unknown:
        name = word.partition("=")[0]
        if not name.startswith("--"):
            continue  # most likely the value of an unknown flag
        here = called_here(name.removeprefix("--"), flags)
        parts.append(f"unknown flag {name}" + (f": here it is {here}" if here else did_you_mean(name, flags)))
    return "; ".join(parts) or f"unexpected '{unknown[0]}': every value belongs to a --flag before it"


def boolean(text):
    if text.lower() in ("true", "1", "yes", "y", "on"):
        return True
    if text.lower() in ("false", "0", "no", "n", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, found '{text}'")


MOST, LARGEST, SMALLEST = 10**9, 1e6, 1e-30  # where a flag says nothing else: a whole number, a number, and next to 0


def whole(minimum, maximum=MOST):
    """Type of a whole number in minimum..maximum, in the digits 0 to 9."""
    limits = f"{minimum} to {maximum:,}"

    def parse(text):
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text.strip()) else None
        if value is None or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"expected a whole number of {limits}, found '{text}'")
        return value

    parse.range = limits
    return parse


def number(minimum=None, maximum=LARGEST, above=None):
    """Type of a number in minimum..maximum, or greater than `above`. What is not 0 is no nearer to it than SMALLEST."""
    low = -maximum if minimum is None else minimum
    limits = f"above {above:g}, to {maximum:,.12g}" if above is not None else f"{low:,.12g} to {maximum:,.12g}"

    def parse(text):
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not (low <= value <= maximum) or (above is not None and value <= above) or 0 < abs(value) < SMALLEST:
            raise argparse.ArgumentTypeError(f"expected a number {'of ' * (above is None)}{limits}, found '{text}'")
        return value

    parse.range = limits
    return parse


def key_value(text):
    """`conv_mlp=True` -> ("conv_mlp", True); a value that is no Python literal stays text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected key=value, found '{text}'")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # the last two: deep nesting
        return key, value


def value_name(text):
    """`255=crack` -> (255, "crack")"""
    value, _, name = text.partition("=")
    if not name.strip() or not value.isdigit() or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"expected value=name, such as 255=crack, found '{text}'")
    return int(value), name.strip()


# What makes timm.create_model read a file or the network, or is asked for by other flags.
_NOT_OF_A_MODEL = frozenset(
    "checkpoint_path pretrained pretrained_cfg pretrained_cfg_overlay pretrained_filter_fn pretrained_model_args "
    "pretrained_strict cache_dir custom_load features_only feature_cls out_indices model_cfg device dtype".split()
)


def check_model_kwargs(kwargs, flag):
    """InputError for keywords that would make timm load something, and for sizes that no model has."""
    if wrong := sorted(_NOT_OF_A_MODEL & set(kwargs)):
        raise InputError(f"{flag} {wrong[0]}: not an option of a model; weights come by --pretrained or --finetune")

    def total(value, depth=0):
        if isinstance(value, dict | list | tuple) and depth < 8:
            return sum(total(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
        if value is None or isinstance(value, bool | str):
            return 0
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{flag}: found {value}; expected numbers, words, and lists of them")
        return abs(value)

    for key, value in kwargs.items():
        if total(value) > MODEL_SIZE:
            raise InputError(f"{flag} {key}={value}: larger than any model; expected numbers that add up to {MODEL_SIZE:,}")


class Fold(float):
    """A --val_split: fold number `fold`, from 1, of `folds` that are about equal; as a number, the share of one."""

    def __new__(cls, fold, folds):
        self = super().__new__(cls, 1 / folds)
        self.fold, self.folds = fold, folds
        return self

    def __reduce__(self):
        return Fold, (self.fold, self.folds)

    def __str__(self):
        return f"fold {self.fold} of {self.folds}"


def split_flag(val_split):
    """The flag that asked for a --val_split, in words."""
    return f"--folds {val_split.folds}" if isinstance(val_split, Fold) else f"--val_split {val_split:g}"


class Batch(NamedTuple):
    """How an update is shared out: images per process and micro-batch, micro-batches per update, processes, and which one
    this is."""

    size: int
    update_freq: int = 1
    processes: int = 1
    process: int = 0

    @property
    def total(self):
        """Images per update."""
        return self.size * self.update_freq * self.processes

    def __str__(self):
        return f"batch size {self.size} x update_freq {self.update_freq} x {self.processes} processes"


def derive_batch(batch_size, update_freq, total_batch_size, processes, default_batch_size, process=0):
    """The Batch whose total is `total_batch_size`, if that is given.

    batch_size and update_freq are None where the user left them open. Then the default batch is made smaller where the total
    asks for less per process; with an update_freq the batch is what the total asks for. Raises InputError where the numbers do
    not divide.
    """
    if total_batch_size is None:
        return Batch(batch_size or default_batch_size, update_freq or 1, processes, process)
    per_update, rest = divmod(total_batch_size, processes * (update_freq or 1))
    if batch_size is None:
        fits = per_update and (update_freq is not None or per_update <= default_batch_size)
        batch_size = per_update if rest == 0 and fits else default_batch_size
    freq, rest = divmod(total_batch_size, processes * batch_size)
    if rest or not freq or update_freq not in (None, freq):
        asked = f" x --update_freq {update_freq}" if update_freq is not None else ""
        raise InputError(
            f"--total_batch_size {total_batch_size} cannot be made of {processes} process{'es' * (processes > 1)} x "
            f"--batch_size {batch_size}{asked}: choose numbers that divide it"
        )
    return Batch(batch_size, freq, processes, process)
