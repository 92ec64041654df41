"""What tests of hostile files share: changed bytes, the time limit, and what counts as a refusal."""

import contextlib
import signal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.cli.errors import InputError

VALUES = (None, True, -1, 0, 1.5, 10**12, float("nan"), float("inf"), "", "x\ny", "../..", [], [[]], {}, {"a": 1}, [10**9] * 9)


class Trap:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *words):
        self.call = (function, words)

    def __reduce__(self):
        return self.call


def fuzz(examples):
    """Calls a test with lists of changes, (what, where, bytes), the same in every run."""
    what = st.sampled_from(["flip", "cut", "insert", "drop", "double", "swap", "zero", "large"])
    edits = st.lists(st.tuples(what, st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=5)
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    usual = settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    return lambda test: usual(given(edits=edits)(test))()


def mutated(data, edits):
    """The bytes after these changes."""
    data = bytearray(data)
    for what, where, some in edits:
        at, size = int(where * len(data)), len(some) * 7
        if what == "flip":
            data[at : at + 1] = bytes([b ^ some[0] for b in data[at : at + 1]])
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = some
        elif what == "drop":
            del data[at : at + size]
        elif what == "double":
            data[at:at] = data[at : at + size]
        elif what == "swap":
            data[at : at + 2 * size] = data[at + size : at + 2 * size] + data[at : at + size]
        else:
            data[at : at + len(some)] = (b"\0" if what == "zero" else b"\xff") * len(some)
    return bytes(data)


@contextlib.contextmanager
def in_time(seconds=20):
    """Fails what takes longer."""

    def stop(*_):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(read, *words):
    """What `read` says in refusing its file; None where it takes it. Anything but an InputError of one line fails."""
    with in_time():
        try:
            read(*words)
        except InputError as error:
            assert str(error).isprintable() and 0 < len(str(error)) < 2100
            return str(error)
    return None


def refused(match, read, *words):
    """`read` refuses its file, with `match` among the words."""
    said = refusal(read, *words)
    assert said is not None and match in said, said
