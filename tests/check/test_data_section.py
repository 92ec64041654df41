"""The section of report.html about the data."""

import json

from utils.report.data import data_section

REPORT = {
    "classes": ["cat", "<dog>"], "lines": ["left out: 2 .heic"], "warnings": ["1 of 6 validation images are <copies>"],
    "train": {"per_class": [1200, 3]}, "val": {"per_class": [2, 0]},
    "copies": {"equal_pairs": [[f"a ({i}).jpg", "a.jpg"] for i in range(4)], "near_pairs": [["b.jpg", "c.jpg"]]},
}  # fmt: skip


def test_the_data_has_a_section(tmp_path):
    (tmp_path / "data_report.json").write_text(json.dumps(REPORT))
    html = data_section(tmp_path)
    for words in ("<h2>Data</h2>", "warning: 1 of 6 validation images are &lt;copies&gt;", "2 .heic", "&lt;dog&gt;", "1,200",
                  "a (1).jpg = a.jpg"):  # fmt: skip
        assert words in html, words
    assert html.index("warning:") < html.index("2 .heic") and "look like" not in html and "<dog>" not in html


def test_a_damaged_file_is_no_section(tmp_path):
    assert data_section(tmp_path) == ""
    for content in ("[", "[1]", '{"lines": 3, "classes": ["a"], "train": {"per_class": ["x"]}, "copies": []}'):
        (tmp_path / "data_report.json").write_text(content)
        assert data_section(tmp_path) == ""
