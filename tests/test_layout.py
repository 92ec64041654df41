"""The layout: a folder is a subject, imports go one way, and the scripts stay short enough to be read."""

import ast
import pathlib

import pytest
from conftest import ROOT

# What the files of a folder may import, besides those of their own.
LEAVES = {"cli", "files", "images", "machine", "versions", "optim_factory", "lr_sched"}
MAY_IMPORT = {
    "cli": {"registries", "lr_sched"},
    "files": {"cli"},
    "images": {"cli"},
    "machine": set(),
    "versions": set(),
    "doctor": LEAVES | {"data", "model"},
    "augment": LEAVES,
    "data": LEAVES,
    "check": LEAVES | {"data", "folders"},
    "folders": LEAVES | {"data"},
    "mask_folders": LEAVES | {"data", "folders"},
    "losses": LEAVES,
    "metrics": LEAVES,
    "recognition_networks": LEAVES,
    "segmentation_networks": LEAVES,
    "model": LEAVES | {"recognition_networks", "segmentation_networks"},
    "sources": LEAVES | {"data", "folders", "mask_folders"},
    "report": LEAVES | {"metrics"},
    "pictures": LEAVES | {"metrics", "report"},
    "plan": LEAVES | {"model"},
    "result": LEAVES | {"augment", "data", "metrics", "model", "pictures", "report"},
    "run": LEAVES | {"data", "metrics", "model", "pictures", "report", "result"},
    "optim_factory": set(),
    "lr_sched": set(),
}
# Names that lead to what people add; their files import nothing.
REGISTRIES = {"segmentation_networks/__init__.py", "utils/sources/__init__.py", "utils/losses/__init__.py"}
FOLDERS = ("*.py", "utils/**/*.py", "recognition_networks/*.py", "segmentation_networks/*.py")
FILES = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
SCRIPTS = ("train_recognition", "train_segmentation")


def room(parts):
    """The folder, or the file that stands alone, which a dotted name's parts or a path's lead to."""
    parts = [part.removesuffix(".py") for part in parts]
    return parts[1] if parts[0] == "utils" and len(parts) > 1 else parts[0]


def imported(path):
    """Dotted names of the project's modules that the file at `path` imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module == "utils" else node.module for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in (
                "utils",
                "recognition_networks",
                "segmentation_networks",
                "optim_factory",
                "lr_sched",
                *SCRIPTS,
            ):
                yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    place = path.relative_to(ROOT)
    if place.stem in SCRIPTS:
        return
    if str(place) in REGISTRIES or place.name == "__init__.py":
        assert not list(imported(path)), "a registry and an __init__ import nothing"
        return
    own, allowed = room(place.parts), MAY_IMPORT[room(place.parts)]
    for name in imported(path):
        is_registry = f"{name.replace('.', '/')}/__init__.py" in REGISTRIES
        assert room(name.split(".")) in allowed | {own} or is_registry, f"{place} imports {name}"


def test_no_file_is_longer_than_350_lines_and_no_folder_holds_more_than_twelve():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in FILES if path.stem != "optim_factory"}
    assert {str(path): lines for path, lines in lengths.items() if lines > 350} == {}
    folders = {path.parent for path in FILES if path.parent != ROOT}
    counts = {folder.name: len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 12} == {}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reads_top_to_bottom(script):
    tree = ast.parse((ROOT / f"{script}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    lines = {name: node.end_lineno - node.lineno + 1 for name, node in functions.items()}
    assert list(functions)[:4] == ["parse_args", "main", "train_one_epoch", "evaluate"]
    assert lines["parse_args"] <= 50 and lines["main"] <= 100 and lines["train_one_epoch"] <= 40
    assert len(functions["train_one_epoch"].args.args) <= 9 and not functions["train_one_epoch"].args.kwonlyargs
    imports = [i for i, node in enumerate(tree.body) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == list(range(imports[0], imports[-1] + 1)), "imports stand together, at the top"


def test_each_folder_of_utils_has_a_line_in_the_architecture():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    folders = [path.name for path in (ROOT / "utils").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [name for name in folders if f"utils/{name}" not in text] == []


def test_this_table_knows_every_room():
    assert {room(path.relative_to(ROOT).parts) for path in FILES} - {*SCRIPTS, "__init__"} == set(MAY_IMPORT) - {
        name for name in ("versions",) if not pathlib.Path(ROOT, "utils", f"{name}.py").exists()
    }
