"""Reports of runs: what they say, of whole and broken runs, and in a real browser where the machine has one."""

import html
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from PIL import Image

from utils.cli.errors import InputError
from utils.report import pictures, report

EVIL = "<script>document.title='evil'</script><img src=http://127.0.0.1:1/a.png onerror=alert(1)>\"'&\x00\u202e"


def make_run(folder, *, name="cat", finished=True, segments=False, epochs=3, drawn=True, **changed):
    """The files that a run leaves, with pictures; `name`: of the first class, of the data and of what else is text."""
    folder.mkdir(parents=True)
    args = {"model": "resnet18", "data_path": f"data of {name}", "epochs": 3, "batch_size": 8, "update_freq": 2, "lr": 0.1}
    args.update({"backbone": "resnet10t"} if segments else {}, **changed)
    record = {
        "settings": {"total_batch": 32, "train_images": 1438, "classes": 2}, "args": args, "commit": "abc123+",
        "command": ["train_recognition.py", "--data_path", f"data of {name}", "--output_dir", str(folder)],
        "versions": {"torch": "2.15.0"},
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(record))
    metric = "test_miou" if segments else "test_acc1"
    scores = [50.0, 91.257, 80.0][:epochs]
    lines = [
        {"epoch": i, "train_loss": 2.0 - i / 2, metric: score, f"{metric}_ema": score / 2, "n_parameters": 11_000_000}
        | ({"test_iou": [score, None]} if segments else {"test_acc5": 99.0})
        for i, score in enumerate(scores)
    ]
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "finished.json").write_text(json.dumps({metric: max(scores)}))
    (folder / "best").mkdir()
    (folder / "best" / "model.safetensors").write_bytes(b"")
    (folder / "best" / "config.json").write_text(json.dumps({"classes": [name, "dog"]}))
    if not segments:
        rows = [{"name": name, "accuracy": 9.5, "count": 1000}, {"name": "dog", "accuracy": 100.0, "count": 20}]
        (folder / "classes.json").write_text(json.dumps(rows))
    (folder / "timing.json").write_text(json.dumps({"forward+backward": 0.1, "data": 0.3}))
    (folder / "warnings.txt").write_text(f"broken image, replaced: {name}\n")
    if drawn:
        pictures.confusion(folder / "confusion.png", torch.tensor([[9, 1], [0, 5]]), [name, "dog"])
        updates = [{"update": i, "epoch": i // 20, "loss": 1.0, "lr": 0.1} for i in range(60)]
        pictures.curves(folder / "curves.png", lines, updates, metric)
    return folder


def text_of(path):
    """The words of a page as a reader sees them."""
    page = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", path.read_text(), flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def test_a_report_says_what_was_run_and_begins_with_the_result(tmp_path):
    path = report.write_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page, text = path.read_text(), " ".join(text_of(path).split())
    order = [
        "resnet18, data of cat", "91.26 %", "best top-1 accuracy, in epoch 2", "finished",
        "best of the EMA, in epoch 2 45.63 %",
        "11,000,000", "Pictures", "Classes", "cat 9.50 % 1,000", "Slowest part of an update", "data : 75% of an update",
        "Warnings", "broken image, replaced: cat", "Use the weights", f"'local-dir:{tmp_path}/run/best'", "Repeat the run",
        "accelerate launch train_recognition.py --data_path 'data of cat' --output_dir", "2 x 8 x 2", "abc123 and changes",
        "torch 2.15.0", "All 9 settings",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert page.count("data:image/png;base64,") == 2 and "samples.png" not in page


def test_a_segmentation_has_the_iou_of_its_best_epoch(tmp_path):
    text = text_of(report.write_report(make_run(tmp_path / "run", segments=True, finished=False)))
    assert (
        "resnet18 on resnet10t" in text and "best mean IoU, in epoch 2" in text and "not finished" in text and "3 of 3" in text
    )
    assert re.search(r"cat\s+91.26 %\s+dog\s+none", text) and "open_network(" in text and "--predict PICTURES" in text


def test_no_text_of_a_run_becomes_html(tmp_path):
    page = report.write_report(make_run(tmp_path / "run", name=EVIL, model=EVIL)).read_text()
    assert page.count("<script>") == 1 and "<img src=http" not in page and "\x00" not in page and "\u202e" not in page
    assert html.escape("<script>document.title='evil'</script>") in page
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+';", page)
    assert not re.search(r"<[^>]*\b(?:style|onclick|onerror)=", page)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x00\xff\xfe", b"[" * 100_000, b"null", b"[1, 2]", b'{"a": 1}\n{"epoch": 0, "test_acc1"', b"1" * 5000,
     b'{"epoch": "x"}', b'{"epoch": 1, "test_acc1": "x", "train_loss": NaN, "n_parameters": 1' + b"0" * 400 + b"}",
     b'{"args": 1, "settings": [], "command": {}, "commit": 5, "versions": "x"}',
     b'{"command": ["\\ud800"], "args": {"epochs": "x"}}'],
)  # fmt: skip
def test_broken_files_give_a_report_of_the_rest(tmp_path, damage):
    good = make_run(tmp_path / "good")
    names = [
        "args.json",
        "log.txt",
        "finished.json",
        "classes.json",
        "timing.json",
        "warnings.txt",
        "curves.png",
        "best/config.json",
    ]
    for number, name in enumerate([*names, "all"]):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        for each in names if name == "all" else [name]:
            (folder / each).write_bytes(damage)
        text = text_of(report.write_report(folder))
        assert name in ("args.json", "all") or "resnet18, data of cat" in text
        assert name in ("log.txt", "all") or "91.26 %" in text
        report.write_comparison([good, folder], tmp_path / "c.html")


def test_a_half_written_log_is_read_up_to_there(tmp_path):
    folder = make_run(tmp_path / "run", finished=False, epochs=2)
    log = (folder / "log.txt").read_text()
    (folder / "log.txt").write_text(log + log.splitlines()[1][:40])
    (folder / "curves.png").write_bytes((folder / "curves.png").read_bytes()[:5000])
    path = report.write_report(folder)
    assert "2 of 3" in text_of(path) and path.read_text().count("data:image/png") == 1


def test_only_what_was_not_evaluated_has_no_score(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").write_text('{"epoch": 0, "train_loss": 1.5}\n')
    text = text_of(report.write_report(folder))
    assert "not evaluated yet" in text and "1.5000" in text and "Use the weights" not in text


def test_the_code_for_the_weights_runs(tmp_path, monkeypatch, capsys):
    from utils.model.recognition import build_model, timm_config
    from utils.run.checkpoint import export_weights

    folder = make_run(tmp_path / "it's a run")
    classes, kwargs = ["cat", "dog"], {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    model = build_model(
        "convnextv2_atto", classes, input_size=32, pretrained=False, model_kwargs=tuple(kwargs.items()), drop_path=0.0,
        drop_block=0.0, last_gamma=None, layer_scale_init_value=None, head_init_scale=1.0,
    )  # fmt: skip
    config = timm_config(
        model, "convnextv2_atto", classes, input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, crop_mode="center",
        model_kwargs=tuple(kwargs.items()),
    )  # fmt: skip
    shutil.rmtree(folder / "best")
    export_weights(folder / "best", model.state_dict(), config)
    page = report.write_report(folder).read_text()
    code = html.unescape(re.search(r"<pre>(import timm.*?)</pre>", page, re.S)[1])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("image.jpg")
    exec(code, {})
    assert capsys.readouterr().out.split()[0] in classes


# --- comparison and command line


def test_a_comparison_shows_what_differs(tmp_path):
    runs = [make_run(tmp_path / name / "run", drawn=False, lr=lr, finished=lr > 0.1) for name, lr in (("a", 0.1), ("b", 0.2))]
    report.write_report(runs[0])
    page = report.write_comparison(runs, tmp_path / "out.html").read_text()
    text = " ".join(text_of(tmp_path / "out.html").split())
    assert text.count("91.26 %") == 2 and 'href="a/run/report.html"' in page and 'href="b/run/report.html"' not in page
    differ = text[text.index("Settings that differ") :]
    assert "lr 0.1 0.2" in differ and "batch_size" not in differ
    assert page.count("<polyline") == 2 * (4 + 2)  # two runs and their averages, two losses; each in the legend too
    curve = re.search(r'<polyline class="c0"[^>]*points="([^"]*)"><title>', page)[1]
    x, y = zip(*(map(float, point.split(",")) for point in curve.split()), strict=True)
    assert np.allclose(x[:3], [56 + 650 / 3, 56 + 1300 / 3, 706], atol=0.1) and y[1] < y[2] < y[0]  # 91 is the highest


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0, 5.0], [-1e-9, 1e-9], [1e30, -1e30], list(range(5000))])
def test_curves_of_any_values_stay_in_their_frame(values):
    from utils.report.page import chart

    svg = chart("a", [("b", 9, [(i + 1, value) for i, value in enumerate(values)])])
    x, y = zip(*(map(float, point.split(",")) for point in re.search(r'points="([^"]*)"><t', svg)[1].split()), strict=True)
    assert min(x) >= 56 and max(x) <= 706.1 and min(y) >= 19.9 and max(y) <= 270.1 and len(x) <= 1300


def test_the_command_writes_reports_and_says_what_is_wrong(tmp_path):
    make_run(tmp_path / "a", drawn=False), make_run(tmp_path / "b", drawn=False)
    (tmp_path / "empty").mkdir()
    command = (
        "-c",
        "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('utils.report', run_name='__main__')",
    )
    done = run(*command, ROOT, "a", "b", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["a/report.html", "b/report.html", "comparison.html"]
    assert (tmp_path / "comparison.html").exists() and not list(tmp_path.rglob("tmp-*"))
    for words, code, said in (
        (["empty"], 1, "empty: found neither args.json nor log.txt; expected the --output_dir of a run"),
        (["nowhere"], 1, "nowhere: no such folder"),
        (["a", "--output", "x.html"], 2, "--output names the comparison of several runs"),
        (["a", "b", "--output", "no/x.html"], 1, "cannot be written (No such file or directory)"),
    ):
        done = run(*command, ROOT, *words, cwd=tmp_path)
        assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "tmp-report.html").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        report.write_report(folder)


def test_a_report_starts_without_heavy_libraries():
    code = "import sys, utils.report.report; print({'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


# --- in a browser


@pytest.fixture
def browse():
    """Runs Chromium on a page; returns its text of the page, or makes a screenshot."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine")

    def start(path, *flags):
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--hide-scrollbars",
            *flags,
        ]
        done = subprocess.run([found, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return start


LOOK = """<!doctype html><meta charset=utf-8><body>
<iframe src="PAGE" width=390 height=800></iframe><iframe src="PAGE" width=1280 height=800></iframe>
<script>
const found = [];
const asks = (document, name) => {
  const image = document.createElement("img");
  image.src = "SERVER/" + name;
  document.body.append(image);
};
window.onload = () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const inside = frame.contentDocument, root = inside.documentElement, table = inside.querySelector("table.sort");
    const result = {width: root.scrollWidth, room: root.clientWidth, title: inside.title, broken: 0, orders: []};
    for (const details of inside.querySelectorAll("details")) details.open = true;
    result.open = root.scrollWidth;
    for (const image of inside.images) result.broken += !image.naturalWidth;
    for (const button of table ? [...table.querySelectorAll("button")].flatMap(button => [button, button]) : []) {
      button.click();
      result.orders.push([...table.tBodies[0].rows].map(row => row.cells[1].textContent).join());
    }
    const script = inside.createElement("script");
    script.textContent = "document.title = 'evil'";
    inside.body.append(script);
    result.injected = inside.title;
    asks(inside, "from_the_report");
    found.push(result);
  }
  asks(document, "control");
  setTimeout(() => { document.body.innerHTML = ""; document.body.textContent = JSON.stringify(found) }, 300);
};
</script>"""


@pytest.fixture
def server():
    """A web server on this machine that notes what is asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()


def in_browser(browse, tmp_path, page, server="http://127.0.0.1:1"):
    wrapper = tmp_path / "look.html"
    wrapper.write_text(LOOK.replace("PAGE", pathlib.Path(page).as_uri()).replace("SERVER", server))
    body = re.search(r"<body>(.*)</body>", browse(wrapper, "--virtual-time-budget=4000", "--dump-dom"), re.S)[1]
    return json.loads(html.unescape(body))


def test_in_a_browser_a_report_fits_its_width_sorts_and_asks_no_network(tmp_path, browse, server):
    address, asked = server
    evil = EVIL.replace("http://127.0.0.1:1", address) + "x" * 300
    page = report.write_report(make_run(tmp_path / "run", name=evil, model="m" * 200))
    for result in in_browser(browse, tmp_path, page, address):
        assert result["width"] <= result["room"] and result["open"] <= result["room"]
        assert result["title"] == result["injected"] != "evil" and result["broken"] == 0
        low_first, high_first = "9.50 %,100.00 %", "100.00 %,9.50 %"
        assert result["orders"][2:] == [high_first, low_first, low_first, high_first]  # by score, then by count
        assert set(result["orders"][:2]) == {low_first, high_first}
    assert asked == ["/control"]


def test_in_a_browser_a_comparison_fits_its_width(tmp_path, browse):
    names = [f"a run with quite a long name {i}" for i in range(12)]
    runs = [make_run(tmp_path / name, drawn=False, lr=i / 10, note="y" * 300 + str(i)) for i, name in enumerate(names)]
    report.write_comparison(runs, tmp_path / "comparison.html")
    for result in in_browser(browse, tmp_path, tmp_path / "comparison.html"):
        assert result["width"] <= result["room"]


@pytest.mark.parametrize(("flags", "dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)])
def test_in_a_browser_a_report_follows_light_and_dark(tmp_path, browse, flags, dark):
    page = report.write_report(make_run(tmp_path / "run"))
    browse(page, *flags, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1280,900")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("L")).astype(int)
    corner, title = pixels[2, 2], pixels[30:60, 100:500]
    assert corner < 40 if dark else corner > 240
    assert np.abs(title - corner).max() > 150  # letters can be read on it
