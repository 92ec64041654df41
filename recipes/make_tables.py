"""Write the tables of docs/RECIPES.md from the comments at the top of each recipe: python recipes/make_tables.py

A comment's lines: what is trained (model, data, pixels, how), Expected, Measured (where somebody did), Start, Source.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "RECIPES.md"
COLUMNS = ("model", "data", "pixels", "published", "measured", "start", "recipe")


def row(path):
    """The cells of one recipe, in the order of COLUMNS."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = dict(re.findall(r"^# (Expected|Measured|Start): (.*?)\.?$", "\n".join(lines), re.MULTILINE))
    model, data, pixels = re.fullmatch(r"# ([^,]+), (.+), (\d+) pixels, .*", lines[0]).groups()
    score = re.match(r"([\d.]+ %[^,;]*?) on ", fields["Expected"])
    scored_at = re.search(r" at (\d+) pixels", fields["Expected"])
    if scored_at and scored_at[1] != pixels:
        pixels += f", scored at {scored_at[1]}"
    start = fields["Start"]
    return (
        model,
        data.replace(", then ", " → "),
        pixels,
        score[1] if score else "none",
        fields.get("Measured", ""),
        f"[{start.rpartition('/')[2]}]({start})" if start.startswith("http") else start,
        f"[{path.stem}](../{path.relative_to(ROOT).as_posix()})",
    )


def table(folder):
    """Markdown table of the recipes below recipes/`folder`."""
    rows = [row(path) for path in sorted((ROOT / "recipes" / folder).glob("*.args"))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def with_tables(text):
    """The text of the page with each `<!-- recipes: FOLDER -->` … `<!-- end -->` filled in."""
    block = re.compile(r"(<!-- recipes: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}{table(found[2])}\n{found[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
