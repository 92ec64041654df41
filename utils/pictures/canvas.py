"""A canvas of pixels for the pictures of a run: texts, boxes and axes stand where they are put, and the PNG is whole.

Texts are cut to the room they have, so that any class name is harmless. Colours are Okabe and Ito's, for any kind of
colour vision.
"""

import bisect
import contextlib
import os
import pathlib
import tempfile
import unicodedata
import warnings

import numpy as np
from PIL import Image

from utils.files import replace

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
INK, FAINT, NOTHING = "#222222", "#767676", "#dddddd"
TITLE, TEXT, SMALL = 17, 13, 11  # heights of letters in pixels
MARGIN, GAP, LINE = 20, 10, 18  # pixels
OTHER_SCRIPTS = (  # fonts for what DejaVu Sans has no glyphs of, where the machine has them
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans",
    "Noto Sans Devanagari", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip


def _settle_matplotlib():
    """Give matplotlib a folder for its list of fonts where the home is not to be written: it would warn, and list them anew."""
    home = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config")
    there = next((path for path in (home / "matplotlib", home, *home.parents) if path.exists()), home)
    if "MPLCONFIGDIR" not in os.environ and not (there.is_dir() and os.access(there, os.W_OK)):
        user = os.getuid() if hasattr(os, "getuid") else ""
        folder = pathlib.Path(tempfile.gettempdir(), f"strata-matplotlib-{user}")
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_uid == user or not user:  # not another user's
                os.environ["MPLCONFIGDIR"] = str(folder)


@contextlib.contextmanager
def png(path, width, height, scale=1.0):
    """A Canvas to draw on; when the block ends, the PNG at `path` is replaced by it in one step.

    The user's settings of matplotlib have no effect. Raises OSError where the file cannot be
    written; an older one stays then.
    """
    _settle_matplotlib()
    import matplotlib.font_manager
    import matplotlib.style

    installed = set(matplotlib.font_manager.get_font_names())
    style = {
        "font.family": ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)],
        "text.parse_math": False,  # a $ in a name is a $
        "font.size": points(TEXT),
        "axes.titlesize": points(TEXT),
        "legend.fontsize": points(TEXT),
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "hatch.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.titlepad": 8,
    }
    with warnings.catch_warnings(), matplotlib.style.context(["default", style]):
        warnings.filterwarnings("ignore", message="Glyph")  # a box stands for what no font has
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        canvas = Canvas(width, height, scale)
        yield canvas
        canvas.save(path)


class Canvas:
    """A white figure of `width` x `height` pixels, times `scale`; places on it are pixels from the top left corner."""

    def __init__(self, width, height, scale=1.0):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height, self.scale = width, height, scale
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100 * scale, facecolor="white")
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()

    def axes(self, x, y, width, height):
        """Axes of matplotlib whose frame has its top left corner at (x, y)."""
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))

    def image(self, x, y, width, height, pixels):
        """Put an image, (H, W, 3) uint8, into the room with its top left corner at (x, y). Enlarged pixels stay squares.

        Axes of matplotlib would do it too, and take thirty times as long.
        """
        left, right, top, bottom = (round(place * self.scale) for place in (x, x + width, y, y + height))
        fitted = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.BOX)
        self.figure.figimage(np.asarray(fitted), left, round(self.height * self.scale) - bottom)

    def box(self, x, y, width, height, **style):
        """Draw a rectangle with its top left corner at (x, y); style: of matplotlib's Rectangle."""
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        self.figure.add_artist(Rectangle(corner, width / self.width, height / self.height, **style))

    def text(self, x, y, name, width=None, size=TEXT, before="", after="", ha="left", va="top", **style):
        """Write `before`, `name` and `after` on one line; the name is cut with … where they are wider than `width` pixels.

        size: height of the letters in pixels; ha, va, style: of matplotlib's text.
        """
        if va != "baseline" and not style.get("rotation"):  # by the baseline, so that neighbours stand on one line
            y, va = y + size * {"top": 0.95, "center": 0.36}[va], "baseline"
        place = (x / self.width, 1 - y / self.height)
        text = self._cut(before, printable(name), after, width, size)
        self.figure.text(*place, text, size=points(size), ha=ha, va=va, **style)

    def _cut(self, before, name, after, width, size):
        if width is None or self._measure(before + name + after, size) <= width:
            return before + name + after
        kept = bisect.bisect_right(range(len(name)), width, key=lambda n: self._measure(f"{before}{name[:n]}…{after}", size))
        return f"{before}{name[: max(kept - 1, 0)].rstrip()}…{after}"

    def _measure(self, text, size):
        """Width of `text` in pixels."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=points(size))
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0] / self.scale

    def save(self, path):
        """Replace the PNG at `path` in one step."""
        with replace(path) as aside:
            self.figure.savefig(aside, format="png", metadata={"Software": None})


def points(pixels):
    """Size of a font, in points, whose letters are `pixels` high on a canvas of scale 1."""
    return 0.72 * pixels


def printable(name):
    """`name` on one line, without what no font shows, such as control characters and halves of characters."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(name)[:300])
    text = " ".join(text.split()) or "(no name)"
    from_the_right = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"\u200e{text}\u200e" if from_the_right else text  # what stands beside it keeps its side


def short(number):
    """`number` with three digits and a unit: 12, 4.56k, 789M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size and number >= 1000:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
