"""What the pages and the scripts' own first lines tell people to type is understood."""

import re
import shlex

import pytest
from conftest import ROOT

from utils.cli.elsewhere import ELSEWHERE, LAUNCHER, as_table
from utils.cli.first import parse

# Without ADDING.md, whose commands need what its diffs add; tests/test_adding.py runs them.
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/*.md") if path.stem != "ADDING")]
# Of accelerate, torchrun and Slurm.
OTHERS = {"config_file", "cpu", "mixed_precision", "nodes", "num_processes", "nproc_per_node"}


def commands(text):
    """(script, its words) of each line that starts one, lines that go on with a backslash joined."""
    for line in text.replace("\\\\\n", " ").replace("\\\n", " ").splitlines():
        if found := re.match(r"\s*(?:python|accelerate launch|torchrun) .*?(train_\w+\.py)(.*)", line):
            yield found[1], shlex.split(found[2], comments=True)


def test_every_command_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the recipes are
    read = [
        parse(script, "", words) for page in [*PAGES, *ROOT.glob("train_*.py")] for script, words in commands(page.read_text())
    ]
    assert len(read) > 20


def test_what_a_flag_of_another_project_is_called_here_exists():
    known = {name for script in ("recognition", "segmentation") for name in vars(parse(f"train_{script}.py", "", []))}
    rows = [line.split("|") for line in (ROOT / "docs" / "COMING_FROM.md").read_text().splitlines() if line.startswith("| ")]
    here = {flag for row in rows for flag in re.findall(r"--(\w+)", row[2])}
    assert len(here) > 50 and here - known <= OTHERS


def test_flags_of_other_systems_are_answered_and_listed(capsys):
    known = {script: set(vars(parse(f"train_{script}.py", "", []))) for script in ("recognition", "segmentation")}
    assert as_table() in (ROOT / "docs" / "COMING_FROM.md").read_text()
    names = [name for group in ELSEWHERE for name in group.split()]
    assert len(names) == len(set(names)) > 100 and not set(names) & known["recognition"]
    for ours in ELSEWHERE.values():
        assert ours.startswith(LAUNCHER) or all(flag[2:] in set.union(*known.values()) for flag in ours.split())
    for script, line, answer in (
        ("recognition", "--img-size 3", "unknown flag --img_size: here it is --input_size\n"),
        ("segmentation", "--imgsz=3", "unknown flag --imgsz: here it is --crop_size\n"),
        ("segmentation", "--csv x", "unknown flag --csv"),
        ("recognition", "--fp16", "here it is accelerate launch --mixed_precision bf16"),
    ):
        with pytest.raises(SystemExit):
            parse(f"train_{script}.py", "", line.split())
        assert answer in capsys.readouterr().err
