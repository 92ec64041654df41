"""One self-contained page of HTML: its style for light, dark and phones, tables that sort, bars and curves as SVG.

Standard library only. The page asks no network: its policy allows nothing but its own style and script, by their hashes,
and pictures inside it. Every text goes through `escaped`.
"""

import base64
import hashlib
import html
import math

from utils.cli.errors import InputError
from utils.files import replace

COLOURS = 8  # of curves; then they are dashed
DASHES = ("", "7 4", "2 3", "9 3 2 3")

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2329; --faint: #5d6975; --page: #fff; --box: #f4f6f8; --line: #d9dfe5; --blue: #0072b2;
  --c0: #0072b2; --c1: #e69f00; --c2: #009e73; --c3: #d55e00; --c4: #cc79a7; --c5: #56b4e9; --c6: #1d2329; --c7: #8a8a8a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ec; --faint: #9aa6b2; --page: #14181c; --box: #1e242a; --line: #353d46; --blue: #56b4e9;
    --c0: #56b4e9; --c2: #22c397; --c3: #ff8a3d; --c5: #f0e442; --c6: #fff;
  }
  img { filter: brightness(.92) }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; padding: 28px 20px 60px; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px }
h2, summary { font-size: 1.15rem; font-weight: 650; margin: 44px 0 12px }
summary { cursor: pointer }
p { margin: 8px 0 }
a { color: var(--blue) }
ul { padding-left: 20px; margin: 8px 0 }
.faint, figcaption, dt { color: var(--faint) }
figcaption, .small { font-size: .9rem }
.result {
  display: flex; flex-wrap: wrap; gap: 16px 44px; align-items: center; margin-top: 20px; padding: 20px 24px;
  background: var(--box); border-radius: 12px;
}
.big { font-size: 3.4rem; line-height: 1.05; font-weight: 650; color: var(--blue); font-variant-numeric: tabular-nums }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 12px 20px; margin: 0; flex: 1 1 280px;
}
dt { font-size: .82rem; line-height: 1.3 }
dd { margin: 0; font-variant-numeric: tabular-nums }
figure { margin: 0 0 28px }
figcaption { margin-top: 6px }
label { display: block; position: relative; cursor: zoom-in }
label input { position: absolute; opacity: 0 }
label img { display: block; max-width: 100%; height: auto; background: #fff }
label input:checked + .box img { max-width: none; cursor: zoom-out }
label input:focus-visible + .box { outline: 3px solid var(--blue) }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--page) }
.tall { max-height: 480px; overflow-y: auto }
.tall th { position: sticky; top: 0; z-index: 1 }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { text-align: left; padding: 6px 14px; border-top: 1px solid var(--line); vertical-align: top }
tr:first-child > th, table > tbody:first-child > tr:first-child > td { border-top: 0 }
th { background: var(--box); font-weight: 600; white-space: nowrap }
.n { text-align: right; white-space: nowrap }
.v { overflow-wrap: anywhere; min-width: 130px }
th button { all: unset; cursor: pointer }
th button:focus-visible { outline: 2px solid var(--blue) }
th button::after { content: " \\2195"; color: var(--faint) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
pre {
  margin: 8px 0; padding: 14px 16px; background: var(--box); border-radius: 10px; overflow-x: auto; overflow-wrap: normal;
  font: .88rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
svg { display: block }
.bar, .legend svg { display: inline-block; vertical-align: middle }
.bar rect { fill: var(--line) }
.bar rect + rect { fill: var(--blue) }
.chart { min-width: 560px; max-width: 860px; width: 100%; height: auto; margin: 0 auto }
.chart text { fill: var(--faint); font-size: 12px }
.chart line { stroke: var(--line) }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 0; list-style: none }
.legend svg { margin-right: 8px }
polyline { stroke-width: 2; stroke-linejoin: round }
""" + "\n".join(f".c{i} {{ stroke: var(--c{i}); fill: none }}" for i in range(COLOURS))

SCRIPT = """
for (const table of document.querySelectorAll("table.sort")) {
  const buttons = [...table.querySelectorAll("th button")];
  buttons.forEach(button => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, up = head.getAttribute("aria-sort") === "descending";
    buttons.forEach(other => other.parentElement.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const numeric = row => row.cells[column].dataset.v !== undefined;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return (numeric(a) ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def html_page(title, body):
    """The HTML of a whole page around `body` (HTML)."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n<script>{SCRIPT}</script></body></html>\n"
    )


def write(path, text):
    """Replace the file in one step; returns its path. Raises InputError where it cannot be written."""
    try:
        with replace(path) as aside:
            aside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); expected a folder to write in") from None
    return path


def escaped(value):
    """Text for HTML; what no browser should see, such as control characters, is replaced."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value)))


def section(title, content):
    """`content` (HTML) below its title; "" without content."""
    return f"<section><h2>{escaped(title)}</h2>{content}</section>\n" if content else ""


def table(rows, head="", sortable=False):
    """A table that scrolls inside its own box. rows, head: HTML of their cells; sortable: buttons in `head` sort it."""
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    box, kind = ("box tall", ' class="sort"') if sortable else ("box", "")
    return f'<div class="{box}"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def cell(text, kind=""):
    """A cell of a table; kind: n for a number, v for a value of any length."""
    return f'<td class="{kind}">{escaped(text)}</td>' if kind else f"<td>{escaped(text)}</td>"


def bar(fraction):
    """A bar that is filled up to `fraction`, 0..1."""
    width = 120 * min(max(fraction, 0), 1)
    both = "".join(f'<rect width="{pixels:.1f}" height="10" rx="3"/>' for pixels in (120, width))
    return f'<svg class="bar" width="120" height="10" aria-hidden="true">{both}</svg>'


def chart(title, lines):
    """Curves over epochs and their legend; "" without lines.

    lines: [(label, style, [(epoch from 1, value), …])], finite numbers. style: 0, 1, 2, … a colour each; after COLOURS of
    them the same colours come again in another dash.
    """
    if not lines:
        return ""
    values = [value for _, _, line in lines for _, value in line]
    last = max(epoch for _, _, line in lines for epoch, _ in line)
    step = _step((max(values) - min(values)) or abs(max(values)) or 1)
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step)  # in steps
    high += low == high

    def place(epoch, value):
        return f"{56 + 650 * epoch / last:.1f},{270 - 250 * (value / step - low) / (high - low):.1f}"

    drawn = []
    for mark in range(low, high + 1):
        y = place(0, mark * step).split(",")[1]
        drawn.append(f'<line x1="56" x2="706" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text x="48" y="{y}" dy="4" text-anchor="end">{mark * step:g}</text>')
    for epoch in range(0, last + 1, max(1, round(_step(last)))):
        drawn.append(f'<text x="{place(epoch, 0).split(",")[0]}" y="290" text-anchor="middle">{epoch}</text>')
    drawn.append('<text x="706" y="310" text-anchor="end">epoch</text>')
    legend = []
    for label, style, line in lines:
        colour = style % COLOURS
        stroke = f'class="c{colour}" stroke-dasharray="{DASHES[style // COLOURS % len(DASHES)]}"'
        points = " ".join(place(*point) for point in line[:: max(1, len(line) // 600)] + line[-1:])
        drawn.append(f'<polyline {stroke} points="{points}"><title>{escaped(label)}</title></polyline>')
        x, y = place(*line[-1]).split(",")
        drawn.append(f'<circle class="c{colour}" cx="{x}" cy="{y}" r="3"/>')
        legend.append(f'<li><svg width="30" height="10"><polyline {stroke} points="0,5 30,5"/></svg>{escaped(label)}</li>')
    head = f'<svg class="chart" viewBox="0 0 720 316" role="img" aria-label="{escaped(title)}">'
    names = f'<ul class="legend small">{"".join(legend)}</ul>'
    return section(title, f'<div class="box">{head}{"".join(drawn)}</svg></div>{names}')


def _step(span):
    """A round number, 1, 2 or 5 times a power of ten, about a fifth of `span`."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5.01)
