"""The kept list of a folder: used while it is true, and ignored, without a word, when it is anything else."""

import os
import pathlib
import time

import numpy as np
import pytest

from utils.cli.errors import InputError
from utils.data.string_list import StringList
from utils.folders import index as folder_index
from utils.folders.class_folders import scan_folder
from utils.folders.index import index_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "WORTH", 1)
    return tmp_path / "cache" / "strata"


@pytest.fixture
def tree(tmp_path):
    """Images of three classes, one below a folder of its class, in folders that nobody touched for a minute."""
    root = tmp_path / "data"
    for name in ("b/2.jpg", "b/10.PNG", "b/notes.txt", "b/.hidden.jpg", "a/1.jpg", "c/more/deep/x.webp", ".git/1.jpg", "1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    rest(root)
    return root


ALL = ["a/1.jpg", "b/10.PNG", "b/2.jpg", "c/more/deep/x.webp"]


def rest(root):
    """Set the times of all folders a minute back."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(time.time_ns() - 60_000_000_000,) * 2)


def kept_file(cache):
    (file,) = cache.iterdir()
    return file


def listed(root, monkeypatch):
    """(images, whether folders were listed for it)."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(folder_index.os, "scandir", lambda path, scan=os.scandir: calls.append(path) or scan(path))
        images = list(index_folder(root).images)
    return images, bool(calls)


def test_second_start_lists_nothing_and_says_the_same(cache, tree, monkeypatch):
    first, second = index_folder(tree), index_folder(tree)
    assert list(first.images) == list(second.images) == ALL
    assert first.classes == second.classes == ["a", "b", "c"] and first.counts.tolist() == second.counts.tolist() == [1, 2, 1]
    assert listed(tree, monkeypatch) == (ALL, False)
    assert scan_folder(tree).labels.tolist() == [0, 1, 1, 2] and scan_folder(tree).name(3) == str(tree / ALL[3])
    assert not [path for path in tree.rglob("*") if path.suffix == ".npz"]


def test_links_and_names_of_any_bytes(cache, tree, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y\udcff \n.png").write_bytes(b"")
    rest(tmp_path / "elsewhere")
    (tree / "d").symlink_to(tmp_path / "elsewhere")
    (tree / "a" / "circle").symlink_to(tree / "a")
    rest(tree)
    assert listed(tree, monkeypatch) == ([*ALL, "d/y\udcff \n.png"], True)
    assert listed(tree, monkeypatch) == ([*ALL, "d/y\udcff \n.png"], False)
    (tmp_path / "elsewhere" / "z.png").write_bytes(b"")
    assert listed(tree, monkeypatch) == ([*ALL, "d/y\udcff \n.png", "d/z.png"], True)


CHANGES = {
    "added": lambda root: (root / "b" / "3.jpg").write_bytes(b""),
    "added deep down": lambda root: (root / "c" / "more" / "deep" / "y.jpg").write_bytes(b""),
    "removed": lambda root: (root / "b" / "2.jpg").unlink(),
    "renamed": lambda root: (root / "a" / "1.jpg").rename(root / "a" / "2.jpg"),
    "new class": lambda root: (root / "b").rename(root / "d"),
    "folder in a class": lambda root: (root / "a").rename(root / "b" / "a"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_also_where_times_are_set_back(cache, tree, monkeypatch, change):
    times = {folder: os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(tree)}
    index_folder(tree)
    CHANGES[change](tree)
    for folder, mtime in times.items():  # as by a copy that keeps them
        if os.path.isdir(folder):
            os.utime(folder, ns=(mtime, mtime))
    images, again = listed(tree, monkeypatch)
    fresh = sorted(str(p.relative_to(tree)) for p in tree.rglob("[!.]*") if p.suffix.lower() in (".jpg", ".png", ".webp"))
    assert again and images == [name for name in fresh if name[0] != "." and "/" in name]


def arrays(file):
    with np.load(file) as kept:
        return dict(kept)


def rewrite(file, **changed):
    np.savez(file.with_suffix(""), **{**arrays(file), **changed})


def names(*strings):
    kept = StringList(strings)
    return {"images": kept.data, "image_ends": kept.ends}


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    data = bytearray(file.read_bytes())
    place = data.index(b"x.webp")
    data[place] ^= 1
    file.write_bytes(data)


def folder_elsewhere(file):
    folders, times = StringList(["a", "b", "c", "/etc"]), [*arrays(file)["times"][:4], folder_index._times("/etc")]
    rewrite(file, folders=folders.data, folder_ends=folders.ends, times=np.array(times))


HARM = {
    "cut": cut,
    "one bit": flip,
    "empty": lambda file: file.write_bytes(b""),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "other version": lambda file: rewrite(file, key=np.array(str(arrays(file)["key"]).replace("[2,", "[1,", 1))),
    "other folder": lambda file: rewrite(file, key=np.array(str(arrays(file)["key"]).replace("data", "date"))),
    "no times": lambda file: rewrite(file, times=arrays(file)["times"][:-1]),
    "counts": lambda file: rewrite(file, counts=np.array([4, -1, 1])),
    "counts of more images": lambda file: rewrite(file, counts=np.array([2, 2, 1])),
    "no numbers": lambda file: rewrite(file, counts=np.array(["1", "2", "1"])),
    "ends": lambda file: rewrite(file, image_ends=arrays(file)["image_ends"][::-1].copy()),
    "ends beyond": lambda file: rewrite(file, image_ends=arrays(file)["image_ends"] + 5),
    "empty name": lambda file: rewrite(file, **names("a/1.jpg", "", "b/2.jpg", "c/3.jpg")),
    "parent": lambda file: rewrite(file, **names("a/1.jpg", "b/2.jpg", "b/../../3.jpg", "c/3.jpg")),
    "absolute": lambda file: rewrite(file, **names("a/1.jpg", "b/2.jpg", "b/3.jpg", "/etc/hostname")),
    "zero byte": lambda file: rewrite(file, **names("a/1.jpg", "b/2.jpg", "b/3\0.jpg", "c/3.jpg")),
    "folder elsewhere": folder_elsewhere,
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_ours_is_ignored_and_replaced(cache, tree, monkeypatch, harm):
    index_folder(tree)
    HARM[harm](kept_file(cache))
    assert listed(tree, monkeypatch) == (ALL, True)
    assert listed(tree, monkeypatch) == (ALL, harm == "a folder")  # which a file cannot take the place of
    assert len(list(cache.iterdir())) == 1  # nothing left lying about


def test_no_pickle_is_run(cache, tree, monkeypatch):
    index_folder(tree)
    with monkeypatch.context() as patch:
        patch.setattr("pickle.load", lambda *a, **k: pytest.fail("ran a pickle"))
        rewrite(kept_file(cache), key=np.array([None], dtype=object))
        assert listed(tree, monkeypatch) == (ALL, True)


@pytest.mark.parametrize("reason", ["fresh", "no times", "made-up times", "few", "link to nothing", "in the data", "no home"])
def test_not_kept_where_it_could_not_be_trusted(cache, tree, monkeypatch, reason):
    if reason == "fresh":
        (tree / "a" / "2.jpg").write_bytes(b"")
    elif reason == "no times":
        os.utime(tree / "a", (0, 0))
    elif reason == "made-up times":
        monkeypatch.setattr(folder_index, "_times", lambda path: (10**18, 10**18))
    elif reason == "few":
        monkeypatch.setattr(folder_index, "WORTH", 5)
    elif reason == "link to nothing":
        (tree / "d").symlink_to(tree.parent / "drive")
        rest(tree)
    elif reason == "in the data":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "a"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", "nowhere")
        monkeypatch.chdir(tree.parent)
    assert all(listed(tree, monkeypatch)[1] for _ in range(2))
    assert not list(tree.parent.rglob("*.npz"))


def test_a_cache_that_cannot_be_written_is_no_error(cache, tree, monkeypatch):
    cache.parent.write_text("a file in the way")
    assert listed(tree, monkeypatch) == (ALL, True)
    cache.parent.unlink()
    monkeypatch.setattr(folder_index.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    assert listed(tree, monkeypatch) == (ALL, True)
    assert not list(cache.iterdir())


def test_a_new_kind_of_image_asks_for_a_new_list(cache, tree, monkeypatch):
    index_folder(tree)
    monkeypatch.setattr(folder_index.formats, "endings", lambda: {".jpg", ".png"})
    assert listed(tree, monkeypatch) == (ALL[:3], True)


def test_a_folder_that_cannot_be_listed_is_named(cache, tree, monkeypatch):
    def refuse(path, scan=os.scandir):
        if pathlib.Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folder_index.os, "scandir", refuse)
    with pytest.raises(InputError, match="c/more/deep cannot be listed .Permission denied.: make it readable, or remove it"):
        index_folder(tree)
    (tree / "a" / "1.jpg").unlink()
    (tree / "a" / "1.jpg").symlink_to(tree / "a" / "1.jpg")
    with pytest.raises(InputError, match="a cannot be listed .Too many levels of symbolic links"):
        index_folder(tree)
