"""Errors that a user can put right: one line that says what was found, what was expected and what to do.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""

import contextlib
import difflib
import functools
import itertools
import os
import signal
import sys

LEAVING = ("SIGTERM", "SIGUSR1", "SIGINT")
STOPPED = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again"


class InputError(ValueError):
    """Something the user can put right: shown as one line, without a traceback.

    The names in it may be anybody's: what would break the line or steer the terminal is shown as \\n, \\x1b and so on.
    """

    def __str__(self):
        return one_line(_of_worker(super().__str__()))


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


def fail(message):
    """Raise InputError."""
    raise InputError(message)


def leave_on_signals(script):
    """While libraries are imported, and before and after training, a signal ends the process at once, in one line and with its
    exit code.

    Those that whoever started the process has it ignore are ignored.
    """

    def leave(number, _frame):
        line = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name} outside of training"
        with contextlib.suppress(OSError):
            os.write(2, f"{script}: {line}; what was saved is whole\n".encode())
        os._exit(130 if number == signal.SIGINT else STOPPED)

    for number in [getattr(signal, name) for name in LEAVING if hasattr(signal, name)]:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)


def _after_the_imports():
    """What `leave_on_signals` set stays for SIGTERM and SIGUSR1 of a process that is alone.

    Ctrl-C raises KeyboardInterrupt again, which tidies up. And one of several processes waits for the others in C code, where
    it hears no handler of Python's: a launcher that has lost another one would wait for it in vain.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    for number in [getattr(signal, name) for name in LEAVING if hasattr(signal, name)]:
        if callable(signal.getsignal(number)) and (number == signal.SIGINT or not alone):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def run_script(script, main, args):
    """main(args); what a user can put right ends the process with one line and exit code 1, a signal with code STOPPED."""
    ready_output()
    _after_the_imports()
    sys.unraisablehook = _unraisable
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
    except Exception as error:
        from utils.cli.explain import explain

        code, line = 1, explain(error, args)
        if line is None:
            raise
        line = f"error: {one_line(line)}"
    else:
        if loaders := sys.modules.get("utils.data.loaders"):
            loaders.end_workers()  # torch, where it has pinned memory, would wait five seconds for each of them
        _flush()
        return
    with contextlib.suppress(OSError):
        print(f"{script}: {line}", file=sys.stderr, flush=True)
    _leave(code)


def _unraisable(found):
    """A lost loader worker is noticed wherever Python is; where that can raise nothing, it is raised a moment later."""
    if "DataLoader worker" not in str(found.exc_value):
        sys.__unraisablehook__(found)


def ready_output():
    """Print whatever names hold: what an encoding has no letter for is escaped. What is closed takes output and loses it.

    A file that is opened would get the number of a closed output, and what libraries print there.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, for as long as the process lives
        if number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _flush():
    """Print what waits; where that cannot be done, drop it, or Python would end with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _leave(code):
    """End at once, without the seconds that loader workers and other processes are waited for on the ordinary way out."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def last_words(error):
    """What an exception says, on one line; of one that a loader worker raised, without the way it took."""
    return first_line(_of_worker(str(error)).strip() or type(error).__name__)


def _of_worker(text):
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:  # raised in a loader worker
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text


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
