"""docs/FIDELITY.md names tests and flags that there are."""

import re

from conftest import ROOT

from utils.cli import recognition_flags, segmentation_flags
from utils.cli.arguments import Parser


def test_the_tests_and_flags_of_the_page_are_there():
    page = (ROOT / "docs" / "FIDELITY.md").read_text()
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", page)
    assert len(named) > 25
    assert [(path, test) for path, test in named if f"def {test}(" not in (ROOT / path).read_text()] == []
    known = set()
    for flags in (recognition_flags, segmentation_flags):
        parser = Parser("", "")
        flags.add_flags(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"--\w+", page)) - known - {"--last"} == set()  # --last-gamma is PyTorch-Encoding's
