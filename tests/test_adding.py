"""The diffs of docs/ADDING.md apply to this code, and the commands below them run."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image

PAGE = ROOT / "docs" / "ADDING.md"
TINY = {  # flags that make a run of a few seconds of it; they come last and win
    "train_recognition.py": "--model_kwargs depths=(1,1,2,1) dims=(8,8,16,16) --input_size 32 --epochs 1 --warmup_epochs 0 "
    "--batch_size 718 --total_batch_size 718 --num_workers 0",
    "train_segmentation.py": "--backbone resnet10t --channels 8 --crop_size 32 --max_updates 1 --warmup_epochs 0 "
    "--batch_size 2 --num_workers 0",
    "recipes/make_tables.py": "",
}


def sections():
    """[(title, [diffs], [commands])] of the page."""
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        diffs = re.findall(r"^```diff\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        commands = [line.removeprefix("python ") for line in section.splitlines() if line.startswith("python ")]
        yield section.partition("\n")[0], diffs, commands


SECTIONS = {title: (diffs, commands) for title, diffs, commands in sections() if diffs}


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A copy of the repository with everything added that the page adds."""
    copy = tmp_path_factory.mktemp("adding") / "strata"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "output", "tests", "*.png")
    shutil.copytree(ROOT, copy, ignore=hidden)
    for title, (diffs, _) in SECTIONS.items():
        for diff in diffs:
            environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)}
            words = ["git", "apply", "--whitespace=nowarn", "-"]
            done = subprocess.run(words, cwd=copy, env=environment, input=diff, capture_output=True, text=True)
            assert done.returncode == 0, f"make the diff of '{title}' again: {done.stderr}"
    make_camvid(copy / "CamVid")
    return copy


def make_camvid(root):
    """Two images and masks of random blocks for each split, as the SegNet tutorial lays CamVid out."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            mask = np.kron(rng.integers(0, 12, (2, 2)), np.ones((32, 32))).astype(np.uint8)
            for folder, image in ((split, np.stack([20 * mask] * 3, 2)), (f"{split}annot", mask)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / folder / f"{number}.png")


def test_what_is_added_is_understood(added):
    """Before torch is imported, as all flags are."""
    lines = [shlex.split(command) for _, commands in SECTIONS.values() for command in commands if command.startswith("train_")]
    code = f"from utils.cli.first import parse\nfor script, *words in {lines}: parse(script, '', words)"
    done = subprocess.run([sys.executable, "-c", code], cwd=added, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(SECTIONS) == 7 and len(lines) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_run(added, title):
    for script, *words in map(shlex.split, SECTIONS[title][1]):
        done = run(script, *words, *TINY[script].split(), cwd=added)
        assert done.returncode == 0, done.stderr
    if title == "A metric":
        assert re.search(r"kappa [\d.]+ %", done.stdout)
    if title == "A tracker":
        assert re.search(r"^1,loss,[\d.]+$", (added / "run_csv" / "points.csv").read_text(), re.MULTILINE)
    if title == "A recipe":
        assert "[convnextv2_atto_digits](" in (added / "docs" / "RECIPES.md").read_text()
