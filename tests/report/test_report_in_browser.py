"""Reports and comparisons in a real browser, where the machine has one: widths, sorting, colours, and no network."""

import html
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
from made_run import EVIL, make_run
from PIL import Image

from utils.report.comparison import write_comparison
from utils.report.report import write_report

pytestmark = pytest.mark.slow


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
    page = write_report(make_run(tmp_path / "run", name=evil, model="m" * 200))
    for result in in_browser(browse, tmp_path, page, address):
        assert result["width"] <= result["room"] and result["open"] <= result["room"]
        assert result["title"] == result["injected"] != "evil" and result["broken"] == 0
        low_first, high_first = "9.50 %,100.00 %", "100.00 %,9.50 %"
        by_score, by_others = [high_first, low_first], [low_first, high_first]
        assert result["orders"][2:-2] == [*by_score, *by_others, *by_others]  # recall, precision, count
        assert set(result["orders"][:2]) == {low_first, high_first}
    assert asked == ["/control"]


def test_in_a_browser_a_comparison_fits_its_width(tmp_path, browse):
    names = [f"a run with quite a long name {i}" for i in range(12)]
    runs = [make_run(tmp_path / name, drawn=False, lr=i / 10, note="y" * 300 + str(i)) for i, name in enumerate(names)]
    write_comparison(runs, tmp_path / "comparison.html")
    for result in in_browser(browse, tmp_path, tmp_path / "comparison.html"):
        assert result["width"] <= result["room"]


@pytest.mark.parametrize(("flags", "dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)])
def test_in_a_browser_a_report_follows_light_and_dark(tmp_path, browse, flags, dark):
    page = write_report(make_run(tmp_path / "run"))
    browse(page, *flags, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1280,900")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("L")).astype(int)
    corner, title = pixels[2, 2], pixels[30:60, 100:500]
    assert corner < 40 if dark else corner > 240
    assert np.abs(title - corner).max() > 150  # letters can be read on it
