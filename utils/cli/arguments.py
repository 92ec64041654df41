"""The command line: flags with underscores, recipes by @file, and errors of one line that name the nearest flag.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""

import argparse
import ast
import contextlib
import difflib
import math
import os
import pathlib
import re
import shlex
import sys


class InputError(ValueError):
    """Something the user can put right: shown as one line, without a traceback.

    The names in it may be anybody's: what would break the line or steer the terminal is shown as \\n, \\x1b and so on.
    """

    def __str__(self):
        text = super().__str__()
        if text.startswith("Caught ") and "\nOriginal Traceback" in text:  # raised in a loader worker
            text = text.strip().splitlines()[-1].partition(": ")[2]
        return one_line(text)


class Stopped(Exception):
    """A signal ended the run; the same command goes on with it."""


RECIPE_BYTES = 100_000
MODEL_SIZE = 20_000  # pixels, widths and depths in one option of a model, added up: more would take hours to build
STOPPED = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again"
# How gloo and NCCL say that another process is gone.
LOST = re.compile(r"closed by peer|reset by peer|broken pipe|remote process exited|watchdog|timed out|timeout", re.I)


@contextlib.contextmanager
def input_errors(flag=""):
    """Within this, a ValueError of a library is the user's to put right, and shown as one line."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{flag}{first_line(error)}") from None


def run_script(script, main, args):
    """main(args); what a user can put right ends the process with one line and exit code 1, a signal with code STOPPED."""
    try:
        main(args)
    except InputError as error:
        code, line = 1, f"error: {error}"
    except Stopped as stop:
        code, line = STOPPED, str(stop)
        if os.environ.get("RANK", "0") != "0":  # all processes stop together; one says so
            _leave(code)
    except KeyboardInterrupt:
        code, line = 130, "interrupted; what was saved is whole"
    except RuntimeError as error:
        code, what = 1, first_line(error)
        if "DataLoader worker" in what and "killed by signal" in what:
            line = f"error: {what.strip()} Memory is the usual reason: try fewer --num_workers. The same command goes on"
        elif "WORLD_SIZE" in os.environ and LOST.search(str(error)):
            line = f"error: a process of this run was lost ({what}); the same command goes on from the last state"
        else:
            raise
    else:
        return
    print(f"{script}: {line}", file=sys.stderr, flush=True)
    _leave(code)


def _leave(code):
    """End at once, without the seconds that loader workers and other processes are waited for on the ordinary way out."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def first_line(error):
    """What an exception says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(text, longest=2000):
    """`text` with everything that does not print escaped, and its middle left out where it is longer than that."""
    text = text.strip()
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Parser(argparse.ArgumentParser):
    """ArgumentParser in which hyphens are underscores, `@file` reads a recipe and errors are one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **kwargs)

    def parse_args(self, argv=None):
        words = expand_recipes(sys.argv[1:] if argv is None else argv, self.error)
        args, unknown = self.parse_known_args([_underscores(word) for word in words])
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            self.error(_explain_unknown(unknown, flags))
        return args

    def error(self, message):
        if os.environ.get("RANK", "0") == "0":  # every process reads the same line; one answers
            print(f"{self.prog}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


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
        return shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except (OSError, UnicodeDecodeError) as failure:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.args")], n=3, cutoff=0.5)
        reason = getattr(failure, "strerror", None) or "no text file"
        error(f"recipe {path}: {reason}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
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
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.5)
        parts.append(f"unknown flag {name}" + (f", did you mean {near[0]}?" if near else ""))
    return "; ".join(parts) or f"unexpected '{unknown[0]}': every value belongs to a --flag before it"


def add_switch(group, flag, default, help):
    """A boolean flag as published: `--model_ema true`, `--model_ema false`, or alone for true."""
    group.add_argument(flag, type=boolean, nargs="?", const=True, default=default, metavar="BOOL", help=help)


def boolean(text):
    if text.lower() in ("true", "1", "yes", "y", "on"):
        return True
    if text.lower() in ("false", "0", "no", "n", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, found '{text}'")


def whole(minimum):
    """Type of a whole number of at least `minimum`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found '{text}'")
        return value

    return parse


def number(minimum=None, maximum=None, above=None):
    """Type of a finite number in minimum..maximum, or greater than `above`."""
    limits = [f"at least {minimum}"] * (minimum is not None) + [f"above {above}"] * (above is not None)
    limits += [f"at most {maximum}"] * (maximum is not None)

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low = (minimum is not None and value < minimum) or (above is not None and value <= above)
        if not math.isfinite(value) or low or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"expected a number {' and '.join(limits)}, found '{text}'".replace("  ", " "))
        return value

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


# What makes timm.create_model read a file or the network, or is asked for by other flags.
_NOT_OF_A_MODEL = frozenset(
    "checkpoint_path pretrained pretrained_cfg pretrained_cfg_overlay pretrained_filter_fn pretrained_model_args "
    "pretrained_strict cache_dir custom_load features_only feature_cls out_indices model_cfg".split()
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


def derive_batch(batch_size, update_freq, total_batch_size, processes, default_batch_size):
    """(batch_size, update_freq) so that batch_size * update_freq * processes is `total_batch_size`, if that is given.

    batch_size and update_freq are None where the user left them open; the default batch is made smaller where the
    total asks for less per process. Raises InputError where the numbers do not divide.
    """
    if total_batch_size is None:
        return batch_size or default_batch_size, update_freq or 1
    per_update, rest = divmod(total_batch_size, processes * (update_freq or 1))
    if batch_size is None:
        batch_size = per_update if rest == 0 and per_update <= default_batch_size else default_batch_size
    freq, rest = divmod(total_batch_size, processes * batch_size)
    if rest or not freq or update_freq not in (None, freq):
        asked = f" x --update_freq {update_freq}" if update_freq is not None else ""
        raise InputError(
            f"--total_batch_size {total_batch_size} cannot be made of {processes} process{'es' * (processes > 1)} x "
            f"--batch_size {batch_size}{asked}: choose numbers that divide it"
        )
    return batch_size, freq


def choose_one(name, options, what):
    """InputError for an unknown `name` among `options`, with the nearest."""
    if name in options:
        return
    near = difflib.get_close_matches(name, options, n=3)
    raise InputError(f"unknown {what} '{name}'" + (f": did you mean {' or '.join(near)}?" if near else ""))
