"""WebDataset's shards: what is a sample, labels of all kinds, masks, and archives that are damaged or hostile."""

import json
import pickle
import tarfile

import numpy as np
import pytest
from small_sources import encoded, encoded_mask, shade, write_tar

from utils.cli.errors import InputError
from utils.images.read import BadImage
from utils.sources.mask_tables import tables_of_masks
from utils.sources.tables import stream_of_images, tables_of_images

NAMES = ("eel", "cat", "dög")
LABELS = {
    "numbers": lambda i: ("cls", b"%d\n" % (i % 3)),
    "names": lambda i: ("cls", NAMES[i % 3].encode()),
    "numbers in JSON": lambda i: ("json", json.dumps({"id": i, "label": i % 3}).encode()),
    "names in JSON": lambda i: ("json", json.dumps({"label": NAMES[i % 3]}).encode()),
}


def samples(count, kind="numbers", start=0):
    """(name, bytes) of `count` images, the shade of each its number, and of their labels."""
    for i in range(start, start + count):
        ending, label = LABELS[kind](i)
        yield f"{i:04}.png", encoded(i)
        yield f"{i:04}.{ending}", label


@pytest.mark.parametrize("kind", LABELS)
def test_labels_and_layouts(tmp_path, kind):
    for number, layout in enumerate([("train-{}.tar", "val-0.tar"), ("train/{}.tar", "validation/a.tar")]):
        for shard, count in enumerate((3, 4)):
            write_tar(tmp_path / str(number) / layout[0].format(shard), samples(count, kind, start=3 * shard))
        write_tar(tmp_path / str(number) / layout[1], samples(2, kind))
        train, val = tables_of_images(str(tmp_path / str(number)))
        names = NAMES if "names" in kind else ("0", "1", "2")
        assert train.classes == sorted(names)
        assert [train.classes[label] for label in train.labels] == [names[i % 3] for i in range(7)]
        assert [val.classes[label] for label in val.labels] == list(names[:2])
        assert [shade(train.read(i)) for i in range(7)] == list(range(7))


def test_other_members_and_names(tmp_path):
    def members():
        for i in range(2):
            yield f"a/b.c/{i}.JPG", encoded(200 * i, kind="JPEG")
            yield f"a/b.c/{i}.txt", b"a caption"
            yield f"a/b.c/{i}.CLS", b"%d" % i
        yield "a/._hidden.jpg", b""
        yield "a/README", b""

    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}.tar", members())
    (tmp_path / "classes.txt").write_text("night\nday\n")
    train, val = tables_of_images(str(tmp_path))
    assert train.classes == ["night", "day"] and train.labels.tolist() == [0, 1] == val.labels.tolist()
    assert shade(train.read(1)) > 190


@pytest.mark.parametrize("ending", ["png", "mask.png", "seg.png"])
def test_masks(tmp_path, ending):
    for split, count in (("train", 3), ("val", 2)):
        pairs = [((f"{i}.jpg", encoded(i, kind="JPEG")), (f"{i}.{ending}", encoded_mask(i))) for i in range(count)]
        write_tar(tmp_path / f"{split}.tar", [member for pair in pairs for member in pair])
    train, val = tables_of_masks(str(tmp_path))
    assert len(train) == 3 and len(val) == 2 and len(train.classes) == 3
    assert [np.unique(train.read(i)[1]).tolist() for i in range(3)] == [[0], [1], [2]]


class Armed:
    def __reduce__(self):
        return open, ("unpickled", "w")


GOOD = [("0.png", encoded()), ("0.cls", b"0")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, ("0.pyd", pickle.dumps(Armed()))], "train.tar: 0.pyd may hold code"),
        ([*GOOD, ("v.1.png", encoded()), ("v.2.png", encoded()), ("v.1.cls", b"1")], "v has 2 images, v.1.png and v.2.png"),
        ([*GOOD, ("1.png", encoded())], "1 has no label; expected 1.cls"),
        ([*GOOD, ("1.png", encoded()), ("1.cls", b"cat")], "1.cls: found no label; expected a whole number"),
        ([*GOOD, ("1.png", encoded()), ("1.json", b"{")], "1.json: found no label"),
        ([*GOOD, ("1.png", encoded()), ("1.cls", b"0" * (1 << 21))], "1.cls has 2,097,152 bytes; expected a label"),
        ([("0.png", encoded()), ("0.cls", b"\xff")], "--dataset"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, members, message):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "val.tar", members[:2])
    for open_data in (tables_of_images, stream_of_images):
        with pytest.raises(InputError) as error:
            open_data(str(tmp_path))
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "unpickled").exists()


def test_a_shard_that_breaks_off(tmp_path):
    write_tar(tmp_path / "train.tar", samples(20))
    write_tar(tmp_path / "val.tar", samples(3))
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(whole[: 10 * 2048 + 600])
    with pytest.raises(InputError, match=r"train.tar|--dataset"):
        tables_of_images(str(tmp_path))


def test_links_are_not_followed_outside(tmp_path):
    write_tar(tmp_path / "elsewhere" / "train.tar", samples(3))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.tar").symlink_to(tmp_path / "elsewhere" / "train.tar")
    write_tar(folder / "val.tar", samples(1))
    with pytest.raises(InputError, match="outside of it; nothing of that was opened"):
        tables_of_images(str(folder))
    (folder / "train.tar").unlink()
    write_tar(folder / "train.tar", [("0.cls", b"0"), ("1.cls", b"0")])
    with tarfile.open(folder / "train.tar", "a") as tar:  # a link in an archive is no member
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
    (tmp_path / "secret.png").write_bytes(encoded(9))
    train, _ = tables_of_images(str(folder))
    for index in range(2):
        with pytest.raises(BadImage, match=f"row {index}, column 'image' is no image"):
            train.read(index)


def test_many_classes(tmp_path):
    names = [f"n{i:08}" for i in range(21_841)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for split in ("train", "val"):
        members = [((f"{i}.png", encoded()), (f"{i}.cls", names[7_000 * i].encode())) for i in range(3)]
        write_tar(tmp_path / f"{split}.tar", [member for pair in members for member in pair])
    for open_data in (stream_of_images, tables_of_images):
        train, val = open_data(str(tmp_path))
        assert train.classes == names and val.labels.tolist() == [0, 7_000, 14_000]
