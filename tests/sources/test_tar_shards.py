"""WebDataset's shards: what is a sample, labels of all kinds, masks, and archives that are damaged or hostile."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from utils.cli.errors import InputError
from utils.images import BadImage
from utils.sources import recognition as recognition_data
from utils.sources import segmentation as segmentation_data


def encoded(color, mode="RGB", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, (8, 6), color).save(file, kind)
    return file.getvalue()


def write(path, members):
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def samples(count, label, start=0, ending="png"):
    """(name, bytes) of `count` images, the red of each its number; label: number -> (ending, bytes)"""
    for i in range(start, start + count):
        yield f"{i:04}.{ending}", encoded((i, 0, 0))
        yield f"{i:04}.{label(i)[0]}", label(i)[1]


LABELS = {
    "numbers": lambda i: ("cls", b"%d\n" % (i % 3)),
    "text": lambda i: ("cls", ("eel", "cat", "dög")[i % 3].encode()),
    "number in JSON": lambda i: ("json", json.dumps({"id": i, "label": i % 3}).encode()),
    "text in JSON": lambda i: ("json", json.dumps({"label": ("eel", "cat", "dög")[i % 3]}).encode()),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("layout", [("train-{}.tar", "val-0.tar"), ("train/{}.tar", "validation/a.tar")])
def test_labels_and_layouts(tmp_path, kind, layout):
    for shard, count in enumerate((3, 4)):
        write(tmp_path / layout[0].format(shard), samples(count, LABELS[kind], start=3 * shard))
    write(tmp_path / layout[1], samples(2, LABELS[kind]))
    train, val = recognition_data.hub_table(str(tmp_path))
    names = ["eel", "cat", "dög"] if "text" in kind else ["0", "1", "2"]
    assert sorted(train.classes) == sorted(names) and train.classes == sorted(names)
    assert [train.classes[label] for label in train.labels] == [names[i % 3] for i in range(7)]
    assert [val.classes[label] for label in val.labels] == names[:2]
    assert [np.asarray(train.read(i))[0, 0, 0] for i in range(7)] == list(range(7))


def test_other_members_and_names(tmp_path):
    def members():
        for i in range(2):
            yield f"a/b.c/{i}.JPG", encoded((200 * i, 0, 0), kind="JPEG")
            yield f"a/b.c/{i}.txt", b"a caption"
            yield f"a/b.c/{i}.CLS", b"%d" % i
        yield "a/._hidden.jpg", b""
        yield "a/README", b""

    for split in ("train", "test"):
        write(tmp_path / f"{split}.tar", members())
    (tmp_path / "classes.txt").write_text("night\nday\n")
    train, val = recognition_data.hub_table(str(tmp_path))
    assert train.classes == ["night", "day"] and train.labels.tolist() == [0, 1] == val.labels.tolist()
    assert train.read(1).getpixel((0, 0))[0] > 190


@pytest.mark.parametrize("ending", ["png", "mask.png", "seg.png"])
def test_masks(tmp_path, ending):
    for split, count in (("train", 3), ("val", 2)):
        pairs = ((f"{i}.jpg", encoded((i, 0, 0), kind="JPEG"), encoded(i, "L")) for i in range(count))
        write(
            tmp_path / f"{split}.tar",
            [x for name, image, mask in pairs for x in ((name, image), (f"{name[:-3]}{ending}", mask))],
        )
    train, val = segmentation_data.hub_table(str(tmp_path))
    assert len(train) == 3 and len(val) == 2 and len(train.classes) == 3
    assert [int(train.read(i)[1].max()) for i in range(3)] == [0, 1, 2] and train.read(0)[0].mode == "RGB"


class _Armed:
    def __reduce__(self):
        return open, ("unpickled", "w")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", encoded(0)), ("0.cls", b"0"), ("0.pyd", pickle.dumps(_Armed()))], "train.tar: 0.pyd may hold code"),
        ([("0.png", encoded(0)), ("0.cls", b"0"), ("1.png", encoded(0))], "1 has no label; expected 1.cls"),
        (
            [("0.png", encoded(0)), ("0.cls", b"0"), ("1.png", encoded(0)), ("1.cls", b"cat")],
            "1.cls: found no label; expected a who",
        ),
        ([("0.png", encoded(0)), ("0.cls", b"0"), ("1.png", encoded(0)), ("1.json", b"{")], "1.json: found no label"),
        ([("0.png", encoded(0)), ("0.cls", b"\xff")], "--dataset"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, members, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.tar", members)
    write(tmp_path / "val.tar", members[:2])
    for open_data in (recognition_data.hub_table, recognition_data.hub_stream):
        with pytest.raises(InputError) as error:
            open_data(str(tmp_path))
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "unpickled").exists()


def test_a_shard_that_breaks_off(tmp_path):
    write(tmp_path / "train.tar", samples(20, LABELS["numbers"]))
    write(tmp_path / "val.tar", samples(3, LABELS["numbers"]))
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(whole[: 10 * 2048 + 600])
    with pytest.raises(InputError, match=r"train.tar|--dataset"):
        recognition_data.hub_table(str(tmp_path))


def test_nothing_outside_is_followed(tmp_path):
    write(tmp_path / "elsewhere" / "train.tar", samples(3, LABELS["numbers"]))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.tar").symlink_to(tmp_path / "elsewhere" / "train.tar")
    write(folder / "val.tar", samples(3, LABELS["numbers"]))
    with pytest.raises(InputError, match="outside of it; nothing of that was opened"):
        recognition_data.hub_table(str(folder))
    (folder / "train.tar").unlink()
    write(folder / "val.tar", samples(1, LABELS["numbers"]))
    with tarfile.open(folder / "train.tar", "w") as tar:  # links in an archive are no members
        for i in range(2):
            entry = tarfile.TarInfo(f"{i}.png")
            entry.type, entry.linkname = (tarfile.SYMTYPE, str(tmp_path / "secret.png"))
            tar.addfile(entry)
            label = tarfile.TarInfo(f"{i}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"0"))
    (tmp_path / "secret.png").write_bytes(encoded((9, 9, 9)))
    train, _ = recognition_data.hub_table(str(folder))
    with pytest.raises(BadImage, match="row 0, column 'image' is no image"):
        train.read(0)
