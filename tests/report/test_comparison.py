"""Comparisons of runs, their charts, and the command line that writes both kinds of page."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run
from made_run import make_run, text_of
from PIL import Image

from utils.cli.errors import InputError
from utils.report.comparison import write_comparison
from utils.report.page import chart
from utils.report.report import write_report


def test_a_comparison_shows_what_differs(tmp_path):
    runs = [make_run(tmp_path / name / "run", drawn=False, lr=lr, finished=lr > 0.1) for name, lr in (("a", 0.1), ("b", 0.2))]
    write_report(runs[0])
    page = write_comparison(runs, tmp_path / "out.html").read_text()
    text = " ".join(text_of(tmp_path / "out.html").split())
    assert text.count("91.26 %") == 2 and 'href="a/run/report.html"' in page and 'href="b/run/report.html"' not in page
    differ = text[text.index("Settings that differ") :]
    assert "lr 0.1 0.2" in differ and "batch_size" not in differ
    assert page.count("<polyline") == 2 * (4 + 2)  # two runs and their averages, two losses; each in the legend too
    curve = re.search(r'<polyline class="c0"[^>]*points="([^"]*)"><title>', page)[1]
    x, y = zip(*(map(float, point.split(",")) for point in curve.split()), strict=True)
    assert np.allclose(x[:3], [56 + 650 / 3, 56 + 1300 / 3, 706], atol=0.1) and y[1] < y[2] < y[0]  # 91 is the highest


def test_folds_have_a_mean_and_the_answers_to_all_images(tmp_path, monkeypatch):
    """Two folds of three: each image by the run that was not trained on it, and the label that both sides doubt."""
    monkeypatch.chdir(tmp_path)  # the paths of images are those that the run had
    head = "image,label,said,probability,label_probability\n"
    for fold, score in ((1, 90.0), (3, 94.0)):
        run = make_run(tmp_path / str(fold), drawn=False, folds=3, fold=fold)
        (run / "log.txt").write_text(json.dumps({"epoch": 0, "test_acc1": score}) + "\n")
        (run / "finished.json").write_text(json.dumps({"test_acc1": score}))
        rows = [f"{fold}/{number}.png,cat,cat,0.9,0.9\n" for number in range(9)] + [f"{fold}/x.png,cat,dog,0.9,0.1\n"]
        (run / "predictions.csv").write_text(head + "".join(rows) + f"{fold}/y.png,dog,dog,0.9,0.9\n")
    Image.new("RGB", (400, 200), (250, 10, 10)).save(tmp_path / "1" / "x.png")
    page = write_comparison([tmp_path / "3", tmp_path / "1"], tmp_path / "c.html")
    (shown,) = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page.read_text())  # 3/x.png is not there
    picture = Image.open(io.BytesIO(base64.b64decode(shown)))
    assert picture.size == (96, 48) and np.allclose(picture.getpixel((50, 20)), (250, 10, 10), atol=8)
    text = " ".join(text_of(page).split())
    assert "Mean 92.00, standard deviation 2.83 over 2 folds, 90.00 to 94.00. Missing: fold 2 of 3." in text
    assert "2 of 22 labels may be wrong" in text and "1/x.png cat dog 0.8000" in text
    assert len((tmp_path / "out_of_fold.csv").read_text().splitlines()) == 23
    assert (tmp_path / "doubtful.csv").read_text().splitlines()[1:] == [f"{n}/x.png,cat,dog,0.8000" for n in (1, 3)]
    assert "Cross-validation" not in text_of(write_comparison([tmp_path / "1", tmp_path / "1"], tmp_path / "c.html"))
    with pytest.raises(InputError, match="out_of_fold.csv cannot be written"):
        write_comparison([tmp_path / "3", tmp_path / "1"], tmp_path / "no" / "c.html")


def fold_of(path, fold, columns, rows, *, finished=True, **changed):
    run = make_run(path, drawn=False, finished=finished, folds=2, fold=fold, **changed)
    record = json.loads((run / "args.json").read_text())
    record["settings"] |= {name: record["args"][name] for name in ("fold", "lr", "batch_size")}
    (run / "args.json").write_text(json.dumps(record))
    (run / "predictions.csv").write_text("\n".join([f"image,label,{columns}", *rows]) + "\n")
    return run


def test_folds_with_their_classes_in_another_order_meet_by_name_and_other_classes_are_refused(tmp_path):
    one = fold_of(tmp_path / "1", 1, "p_cat,p_dog", ["a.png,cat,0.9,0.1"])
    two = fold_of(tmp_path / "2", 2, "p_dog,p_cat", ["b.png,dog,0.8,0.2"], finished=False, lr=0.5)
    text = " ".join(text_of(write_comparison([two, one], tmp_path / "c.html")).split())
    assert "Not finished: fold 2. Trained with other settings, which are below: lr. The answers" in text
    lines = (tmp_path / "out_of_fold.csv").read_text().splitlines()
    assert lines == ["image,label,p_cat,p_dog", "a.png,cat,0.9,0.1", "b.png,dog,0.2,0.8"]
    short = fold_of(tmp_path / "3", 2, "said", ["b.png,dog,dog"])  # of too many images for all probabilities
    write_comparison([one, short], tmp_path / "c.html")
    assert (tmp_path / "out_of_fold.csv").read_text().splitlines()[2] == "b.png,dog,,,dog"
    other = fold_of(tmp_path / "4", 2, "p_cat,p_fox", ["b.png,fox,0.8,0.2"])
    with pytest.raises(InputError, match="4: its classes are not those of .*1, such as dog; expected folds of the same"):
        write_comparison([one, other], tmp_path / "c.html")


def test_where_less_is_better_the_least_comes_first(tmp_path):
    for name, loss in (("a", 0.9), ("b", 0.1), ("c", 0.5), ("none", None)):
        run = make_run(tmp_path / name, drawn=False, finished=False, best_metric="loss")
        (run / "log.txt").write_text("" if loss is None else json.dumps({"epoch": 0, "test_loss": loss}) + "\n")
    text = text_of(write_comparison([tmp_path / name for name in ("none", "a", "b", "c")], tmp_path / "out.html"))
    results = text[text.index("Results") : text.index("Settings that differ")]
    assert re.findall(r"(\w+)\s+resnet18,", results) == ["b", "c", "a", "none"]


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [-1e-9, 1e-9], [1e30, -1e30], list(range(5000))])
def test_curves_of_any_values_stay_in_their_frame(values):
    svg = chart("a", [("b", 9, [(i + 1, value) for i, value in enumerate(values)])])
    x, y = zip(*(map(float, point.split(",")) for point in re.search(r'points="([^"]*)"><t', svg)[1].split()), strict=True)
    assert min(x) >= 56 and max(x) <= 706.1 and min(y) >= 19.9 and max(y) <= 270.1 and len(x) <= 1300


def test_the_command_writes_reports_and_says_what_is_wrong(tmp_path):
    make_run(tmp_path / "a", drawn=False), make_run(tmp_path / "b", drawn=False)
    (tmp_path / "empty").mkdir()
    command, here = ("-m", "utils.report"), {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}}
    done = run(*command, "a", "b", **here)
    assert done.returncode == 0 and done.stdout.split() == ["a/report.html", "b/report.html", "comparison.html"]
    assert (tmp_path / "comparison.html").exists() and not list(tmp_path.rglob("tmp-*"))
    for words, code, said in (
        (["empty"], 1, "empty: found neither args.json nor log.txt; expected the --output_dir of a run"),
        (["nowhere"], 1, "nowhere: no such folder"),
        (["a", "--output", "x.html"], 2, "--output names the comparison of several runs"),
        (["a", "b", "--output", "no/x.html"], 1, "cannot be written (No such file or directory)"),
    ):
        done = run(*command, *words, **here)
        assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1


def test_a_comparison_replaces_earlier_comparisons_only(tmp_path):
    runs = [make_run(tmp_path / name, drawn=False) for name in "ab"]
    page = write_comparison(runs, tmp_path / "out.html")
    assert write_comparison(runs, page) == page
    (tmp_path / "notes.html").write_text("<title>Notes</title>")
    (tmp_path / "link.html").symlink_to(page)
    (tmp_path / "broken.html").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.html")
    others = [tmp_path / f"{name}.html" for name in ("notes", "link", "broken", "pipe")]
    for path in (*others, "/dev/null", tmp_path):
        with pytest.raises(InputError, match="expected the name of a new page|no earlier comparison"):
            write_comparison(runs, path)
    assert (tmp_path / "notes.html").read_text() == "<title>Notes</title>" and (tmp_path / "link.html").is_symlink()


def test_a_report_starts_without_heavy_libraries():
    code = "import sys, utils.report.__main__; print({'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
