"""Reports of runs: what they say, of whole and of damaged runs."""

import html
import json
import re
import shutil

import pytest
from made_run import EVIL, make_run, text_of
from PIL import Image

from utils.cli.errors import InputError
from utils.report.comparison import write_comparison
from utils.report.report import write_report


def test_a_report_says_what_was_run_and_begins_with_the_result(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page, text = path.read_text(), " ".join(text_of(path).split())
    order = [
        "resnet18, data of cat", "91.26 %", "best top-1 accuracy, in epoch 2", "finished",
        "best of the EMA, in epoch 2 45.63 %", "top-1 accuracy, last epoch 80.00 %",
        "11,000,000", "Pictures", "Classes", "cat 9.50 % 99.00 % 1,000 dog (90 %)",
        "Slowest part of an update", "data : 75% of an update",
        "Warnings", "broken image, replaced: cat", "Use the weights", f'"local-dir:{tmp_path}/run/best"', "Repeat the run",
        "accelerate launch train_recognition.py --data_path 'data of cat' --output_dir", "2 x 8 x 2", "abc123 and changes",
        "torch 2.15.0", "All 9 settings",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert page.count("data:image/png;base64,") == 2 and "samples.png" not in page


def test_the_page_is_about_the_weights_that_were_evaluated(tmp_path):
    """The highest score, its interval, and the code that opens the weights are of one model."""
    folder = make_run(tmp_path / "run", evaluated=True)
    text = " ".join(text_of(write_report(folder)).split())
    for part in ("91.26 % top-1 accuracy of best/, epoch 2 89.4 to 92.8 % with 95 % confidence", "validation loss 0.2500",
                 "top-1 accuracy, last epoch 80.00 %", '/run/best"'):  # fmt: skip
        assert part in text
    facts = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(facts | {"weights": "best_ema", "epoch": 3}))
    (folder / "best_ema").mkdir()
    (folder / "best_ema" / "model.safetensors").write_bytes(b"")
    text = text_of(write_report(folder))
    assert "of best_ema/, epoch 3" in text and '/run/best_ema"' in text and '/run/best"' not in text


def test_a_segmentation_has_the_iou_of_its_best_epoch(tmp_path):
    text = text_of(write_report(make_run(tmp_path / "run", segments=True, finished=False)))
    assert (
        "resnet18 on resnet10t" in text and "best mean IoU, in epoch 2" in text and "not finished" in text and "3 of 3" in text
    )
    assert re.search(r"cat\s+91.26 %\s+dog\s+none", text) and "open_segmenter(" in text and "--predict PICTURES" in text


def test_no_text_of_a_run_becomes_html(tmp_path):
    page = write_report(make_run(tmp_path / "run", name=EVIL, model=EVIL)).read_text()
    assert page.count("<script>") == 1 and "<img src=http" not in page and "\x00" not in page and "\u202e" not in page
    assert html.escape("<script>document.title='evil'</script>") in page
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+';", page)
    assert not re.search(r"<[^>]*\b(?:style|onclick|onerror)=", page)


@pytest.mark.parametrize(
    "damage",
    [b"\x00\xff\xfe", b"[" * 100_000, b'{"a": 1}\n{"epoch": 0, "test_acc1"',
     b'{"epoch": 1, "test_acc1": "x", "train_loss": NaN, "n_parameters": 1' + b"0" * 400 + b"}",
     b'{"args": {"epochs": "x"}, "settings": [], "command": ["\\ud800"], "commit": 5, "versions": "x"}'],
)  # fmt: skip
def test_damaged_files_give_a_report_of_the_rest(tmp_path, damage):
    good = make_run(tmp_path / "good", evaluated=True)
    names = ["args.json", "log.txt", "finished.json", "classes.json", "timing.json", "warnings.txt", "curves.png"]
    names.append("evaluation.json")
    names.append("best/config.json")
    for number, name in enumerate([*names, "all"]):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        for each in names if name == "all" else [name]:
            (folder / each).write_bytes(damage)
        text = text_of(write_report(folder))
        assert name in ("args.json", "all") or "resnet18, data of cat" in text
        assert name in ("log.txt", "all") or "91.26 %" in text
        assert name not in ("evaluation.json", "all") or "95 % confidence" not in text
    write_comparison([good, folder], tmp_path / "c.html")


def test_a_half_written_log_is_read_up_to_there(tmp_path):
    folder = make_run(tmp_path / "run", finished=False, epochs=2)
    log = (folder / "log.txt").read_text()
    (folder / "log.txt").write_text(log + log.splitlines()[1][:40])
    (folder / "curves.png").write_bytes((folder / "curves.png").read_bytes()[:5000])
    path = write_report(folder)
    assert "2 of 3" in text_of(path) and path.read_text().count("data:image/png") == 1


def test_only_what_was_not_evaluated_has_no_score(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").write_text('{"epoch": 0, "train_loss": 1.5}\n')
    text = text_of(write_report(folder))
    assert "not evaluated yet" in text and "1.5000" in text and "Use the weights" not in text


def test_the_code_for_the_weights_runs(tmp_path, monkeypatch, capsys):
    import timm

    from utils.model.recognition import timm_config
    from utils.run.checkpoint import export_weights

    folder, classes, kwargs = (
        make_run(tmp_path / "it's a run"),
        ["cat", "dog"],
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    )
    model = timm.create_model("convnextv2_atto", num_classes=2, **kwargs)
    view = {"input_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}
    config = timm_config(model, "convnextv2_atto", classes, **view, model_kwargs=tuple(kwargs.items()))
    shutil.rmtree(folder / "best")
    export_weights(folder / "best", model.state_dict(), config)
    code = html.unescape(re.search(r"<pre>(import timm.*?)</pre>", write_report(folder).read_text(), re.S)[1])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("image.jpg")
    exec(code, {})
    assert capsys.readouterr().out.split()[0] in classes


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "tmp-report.html").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_report(folder)
