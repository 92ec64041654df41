"""Errors that a user can put right: one line that says what was found, what was expected and what to do.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""

import contextlib
import difflib
import functools
import itertools
import os
import re
import sys

STOPPED = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again"
# How gloo and NCCL say that another process is gone.
LOST = re.compile(r"closed by peer|reset by peer|broken pipe|remote process exited|watchdog|timed out|timeout", re.I)
NO_DETERMINISTIC = " does not have a deterministic implementation"  # in what torch says of an operation


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
        elif NO_DETERMINISTIC in what:
            line = f"error: --deterministic: {what.split(NO_DETERMINISTIC)[0]} has no deterministic kernel here; leave it out"
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


def did_you_mean(name, options):
    """ ", did you mean NAME?" with the nearest of the `options`, or "" where none is near.

    Among near ones the one with the longest common beginning: for convnextv3, convnextv2 and not test_convnext3.
    """
    near = difflib.get_close_matches(name, list(options), n=5, cutoff=0.5)
    return f", did you mean {max(near, key=functools.partial(_common_letters, name))}?" if near else ""


def _common_letters(a, b):
    """How many letters both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def choose_one(name, options, what):
    """InputError for an unknown `name` among `options`, with the nearest."""
    if name not in options:
        raise InputError(f"unknown {what} '{name}'{did_you_mean(name, options)}")
