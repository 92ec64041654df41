"""A data set that somebody else made names files in its own folder only, and no code of it is run."""

import json
import os
import shutil
import struct
import zipfile

import pytest
from small_sources import encoded, write_parquet

from utils.cli.errors import InputError
from utils.sources.hub import load_splits
from utils.sources.hub_files import encoded_image


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder with x.parquet, and beside it secret.parquet and secret.png."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for path in (tmp_path / "table" / "x.parquet", tmp_path / "secret.parquet"):
        write_parquet(path, image=[encoded()] * 4, label=[0, 1, 0, 1])
    (tmp_path / "secret.png").write_bytes(encoded(9))
    return tmp_path / "table"


def train(folder):
    return load_splits(str(folder), val_split=0.5)[0]["train"]


def refused(match, function, *arguments):
    with pytest.raises(InputError, match=match) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ("data_files: ../secret.parquet", "outside of it"),
        ("data_files: [{split: train, path: [HERE/../secret.parquet]}]", "outside of it"),
        ("data_files: http://127.0.0.1:9/x.parquet", "outside of it"),
        ("data_files: 'zip://x.parquet::../secret.parquet'", "outside of it"),
        ("data_files: ~/x.parquet", "outside of it"),
        ("data_dir: ..", "outside of it"),
        ("data_files: 3", "cannot load it"),
        ("data_files: !!python/object/apply:os.system ['touch HERE/ran']", "cannot load it"),
    ],
)
def test_cards_that_lead_elsewhere(table, files, match):
    text = "configs:\n- config_name: default\n  " + files.replace("HERE", str(table)) + "\n"
    for file, content in (("README.md", f"---\n{text}---\n"), (".huggingface.yaml", text)):
        (table / file).write_text(content)
        refused(match, train, table)
        (table / file).unlink()
    assert not (table / "ran").exists()


def test_a_card_within_the_folder_is_followed(table):
    (table / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: x*.parquet\n---\n")
    assert len(train(table)) == 4


def test_scripts_and_links_of_a_data_set(table, tmp_path):
    (table / "y.parquet").symlink_to(tmp_path / "secret.parquet")
    refused("outside of it", train, table)
    (table / "y.parquet").unlink()
    (table / "table.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (table / "x.parquet").unlink()
    refused("cannot load it", train, table)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../secret.png", "HERE/secret.png", "http://127.0.0.1:9/x.png"])
def test_image_folders_with_paths_that_lead_elsewhere(tmp_path, table, name):
    import datasets

    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "x.png").write_bytes(encoded())
    name = name.replace("HERE", str(tmp_path))
    (folder / "train" / "metadata.csv").write_text(f"file_name,label\nx.png,0\n{name},1\n")

    def read():
        for row in train(folder).cast_column("image", datasets.Image(decode=False)):
            encoded_image(row["image"], str(folder), "row")

    refused("outside of|cannot load it|no file", read)


def test_saved_data_sets_that_lead_elsewhere(table, tmp_path):
    saved = tmp_path / "saved"
    train(table).save_to_disk(saved)
    assert len(train(saved)) == 4
    state = json.loads((saved / "state.json").read_text())
    inside = saved / state["_data_files"][0]["filename"]
    shutil.copy(inside, tmp_path / "out.arrow")
    for name, match in (("../out.arrow", "outside of it"), (str(tmp_path / "out.arrow"), "outside of it"), (3, "--dataset")):
        (saved / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        refused(match, train, saved)
    (saved / "state.json").write_text(json.dumps(state))
    inside.unlink()
    inside.symlink_to(tmp_path / "out.arrow")
    refused("outside of it", train, saved)
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["../saved"]}))
    refused("outside of it", train, tmp_path / "dict")


@pytest.fixture
def files(table, tmp_path):
    """The folder `table` with x.png, links, a pipe, and in.zip, in which bomb.png claims to have 2 GiB."""
    (table / "x.png").write_bytes(encoded(5))
    (table / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(table / "pipe.png")
    for path in (table / "in.zip", tmp_path / "secret.zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.png", encoded(6))
            archive.writestr("bomb.png", b"small")
    data = bytearray((table / "in.zip").read_bytes())
    at = data.rindex(b"PK\1\2")  # the record of bomb.png: its size unpacked
    data[at + 24 : at + 28] = struct.pack("<I", 2**31)
    (table / "in.zip").write_bytes(data)
    return table


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "neither bytes nor a path"), (3, "neither bytes nor a path"), ({"path": 3}, "neither bytes nor a path"),
        ({"bytes": "text", "path": None}, "neither bytes nor a path"), ({"path": "/etc/hostname"}, "leads outside"),
        ({"path": "../secret.png"}, "leads outside"), ({"path": "link.png"}, "leads outside"), ({"path": "a\0b"}, "outside"),
        ({"path": "zip://x.png::/etc/hostname"}, "leads outside"), ({"path": "zip://x.png::../secret.zip"}, "leads outside"),
        ({"path": "zip://none.png::in.zip"}, "cannot be read"), ({"path": "zip://bomb.png::in.zip"}, "2,147,483,648 bytes"),
        ({"path": "zip://x.png::x.png"}, "cannot be read"), ({"path": "pipe.png"}, "no file"), ({"path": "."}, "no file"),
        ({"path": "http://127.0.0.1:9/x.png"}, "no file"), ({"path": "hf://datasets/a/b@main/x.png"}, "no file"),
        ({"path": "x" * 9999}, "no file"), ({"path": "none\n.png"}, "no file"),
    ],
)  # fmt: skip
def test_images_stay_in_the_data_set(files, value, match):
    refused(f"row 3: .*{match}", encoded_image, value, str(files), "row 3")


def test_images_of_a_data_set(files, tmp_path):
    for root in (str(files), str(tmp_path)):
        path = os.path.relpath(files / "x.png", root)
        assert encoded_image({"path": path, "bytes": None}, root, "row 3") == encoded(5)
    assert encoded_image({"path": f"zip://x.png::{files / 'in.zip'}"}, str(files), "row 3") == encoded(6)
    assert encoded_image({"path": "/etc/hostname", "bytes": b"abc"}, str(files), "row 3") == b"abc"
    refused("outside of the data set", encoded_image, {"path": str(files / "x.png")}, None, "row 3")
