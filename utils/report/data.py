"""The section of report.html about the data, from data_report.json: standard library only."""

from utils.report.page import bar, cell, escaped, section, table
from utils.report.run_files import number, of_type, read_json

PAIRS = {
    "equal_pairs": "validation images that are training images, byte by byte",
    "near_pairs": "validation images that look like a training image", "conflict_pairs": "images that are in two classes",
}  # fmt: skip
NAMED = 3  # pairs that a warning names
MOST_BARS = 1000  # classes up to which each has a bar


def data_section(folder):
    """HTML of what data_report.json in the `folder` of a run says, what is wrong first; "" where there is none."""
    report = read_json(folder / "data_report.json", dict)
    warnings, lines = (of_type(report.get(name), list) for name in ("warnings", "lines"))
    text = _items([f"warning: {line}" for line in warnings]) + _items(lines) + _classes(report)
    copies = of_type(report.get("copies"), dict)
    for name, what in PAIRS.items():
        pairs = [" = ".join(map(str, pair)) for pair in of_type(copies.get(name), list) if isinstance(pair, list)]
        if len(pairs) > NAMED:
            text += f"<details><summary>{escaped(what)}</summary>{_items(pairs)}</details>"
    return section("Data", text)


def _items(lines):
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f'<ul class="small">{items}</ul>' if items else ""


def _classes(report):
    """The number of images of each class to train on and to validate on."""
    names = of_type(report.get("classes"), list)
    train, val = (of_type(of_type(report.get(split), dict).get("per_class"), list) for split in ("train", "val"))
    if not train or len(train) != len(names) or any(number(count) is None for count in train + val):
        return ""
    val = val if len(val) == len(train) else [0] * len(train)
    most, rows = max(*train, 1), []
    for name, trained, held_out in zip(names, train, val, strict=True):
        drawn = bar(trained / most) if len(names) <= MOST_BARS else ""
        rows.append(cell(name) + f'<td class="n" data-v="{trained}">{trained:,}</td><td>{drawn}</td>'
                    f'<td class="n" data-v="{held_out}">{held_out:,}</td>')  # fmt: skip
    heads = [f'<th class="{kind}"><button aria-label="sort by {name}">{name}</button></th>' for name, kind in
             (("class", ""), ("to train on", "n"), ("to validate on", "n"))]  # fmt: skip
    return table(rows, "".join([*heads[:2], "<th></th>", heads[2]]), sortable=True)
