"""torchvision's data sets by name: small archives in their place, with checksums to fit."""

import hashlib
import io
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import torchvision
from scipy.io import savemat
from small_sources import SIZE, encoded, shade

from utils.cli.errors import InputError
from utils.sources.torchvision_sets import cifar10, cifar100, flowers, pets, pets_masks


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def md5(path):
    return hashlib.md5(pathlib.Path(path).read_bytes()).hexdigest()


def pack(path, files):
    """A .tar.gz of {name: bytes}; its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return md5(path)


def make_cifar(root, monkeypatch, kind="CIFAR100", unpack=False):
    """CIFAR's archive with 4 training images and 2 of the test, as if it had been downloaded."""
    cls, images = getattr(torchvision.datasets, kind), np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    label, names = ("labels", "label_names") if kind == "CIFAR10" else ("fine_labels", "fine_label_names")
    contents = {
        "train": {"data": images, label: [2, 0, 1, 2]},
        "test": {"data": images[:2], label: [1, 2]},
        "meta": {names: ["cat", "dog", "eel"]},
    }
    files = {f"{cls.base_folder}/{name}": pickle.dumps(content) for name, content in contents.items()}
    sums = {name: hashlib.md5(files[f"{cls.base_folder}/{name}"]).hexdigest() for name in contents}
    monkeypatch.setattr(cls, "tgz_md5", pack(root / cls.filename, files))
    monkeypatch.setattr(cls, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cls, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cls, "meta", {"filename": "meta", "key": names, "md5": sums["meta"]})
    return root / cls.base_folder


@pytest.mark.parametrize(("open_set", "kind"), [(cifar10, "CIFAR10"), (cifar100, "CIFAR100")])
def test_cifar(tmp_path, monkeypatch, open_set, kind):
    make_cifar(tmp_path, monkeypatch, kind)
    for _ in range(2):  # unpacked, then found
        train, val = open_set(tmp_path)
        assert train.labels.tolist() == [2, 0, 1, 2] and val.labels.tolist() == [1, 2] and train.title == kind
        assert train.classes == ["cat", "dog", "eel"] == val.classes and train.labels.dtype == np.int64
        image = train.read(1)
        assert image.mode == "RGB" and np.asarray(image)[0, 1].tolist() == [(3073 + 1024 * i) % 256 for i in range(3)]
        assert train.encoded(0) is None and "image 1" in train.name(1)
        (tmp_path / getattr(torchvision.datasets, kind).filename).unlink(missing_ok=True)


class _Armed:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_no_other_pickle_is_opened(tmp_path, monkeypatch, file):
    folder = make_cifar(tmp_path, monkeypatch)
    cifar100(tmp_path)
    (tmp_path / torchvision.datasets.CIFAR100.filename).unlink()
    (folder / file).write_bytes(pickle.dumps(_Armed()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"CIFAR100 is not in .*or damaged there"):
        cifar100(tmp_path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("open_set", [cifar10, flowers, pets, pets_masks])
def test_without_a_network_and_data(tmp_path, open_set):
    with pytest.raises(InputError, match=r"cannot be downloaded \(OSError: there is no network\)") as error:
        open_set(tmp_path / "new")
    assert "\n" not in str(error.value)


def make_flowers(root, monkeypatch):
    """Eight flowers: 1-3 of train, 4 of val, 5-8 of test."""
    base, cls = root / "flowers-102", torchvision.datasets.Flowers102
    images = pack(base / "102flowers.tgz", {f"jpg/image_{i:05d}.jpg": encoded(20 * i, kind="JPEG") for i in range(1, 9)})
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1, 2, 2, 1, 102]], np.uint8)})
    splits = {"trnid": np.array([[3, 1, 2]], np.uint16), "valid": np.array([[4]], np.uint16)}
    savemat(base / "setid.mat", {**splits, "tstid": np.array([[5, 6, 7, 8]], np.uint16)})
    files = {"image": ("102flowers.tgz", images)}
    files |= {kind: (name, md5(base / name)) for kind, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(cls, "_file_dict", files)
    return base


def test_flowers(tmp_path, monkeypatch):
    base = make_flowers(tmp_path, monkeypatch)
    train, val = flowers(tmp_path)
    assert train.labels.tolist() == [101, 0, 1, 0] and val.labels.tolist() == [1, 1, 0, 101]
    assert len(train.classes) == 102 and train.classes[0] == "pink primrose"
    assert abs(shade(train.read(0)) - 60) < 5 and train.encoded(0)[:2] == b"\xff\xd8"
    (base / "jpg" / "image_00008.jpg").unlink()
    with pytest.raises(InputError, match=r"image_00008.jpg is missing; remove .*flowers-102 and run"):
        flowers(tmp_path)


def make_pets(root, monkeypatch):
    base, lists = root / "oxford-iiit-pet", {"trainval": ["Big_Cat_1 1 1 1", "pug_7 2 2 1"], "test": ["pug_8 2 2 1"]}
    names = [line.split()[0] for lines in lists.values() for line in lines]
    images = {f"images/{name}.jpg": encoded(90, kind="JPEG") for name in names}
    notes = {f"annotations/{split}.txt": "\n".join(lines).encode() for split, lines in lists.items()}
    notes |= {f"annotations/trimaps/{name}.png": encoded(i % 3 + 1, "L") for i, name in enumerate(names)}
    archives = [("images.tar.gz", images), ("annotations.tar.gz", notes)]
    sums = [(f"https://example.org/{name}", pack(base / name, files)) for name, files in archives]
    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_RESOURCES", tuple(sums))
    return base


def test_pets(tmp_path, monkeypatch):
    base = make_pets(tmp_path, monkeypatch)
    train, val = pets(tmp_path)
    assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1] and train.classes == ["Big Cat", "pug"]
    assert train.read(1).size == SIZE and val.name(0).endswith("images/pug_8.jpg")
    (base / "annotations" / "test.txt").write_text("pug_8 zwei")
    with pytest.raises(InputError, match=r"test.txt cannot be read .*; remove .*oxford-iiit-pet and run"):
        pets(tmp_path)


def test_masks_of_pets(tmp_path, monkeypatch):
    make_pets(tmp_path, monkeypatch)
    train, val = pets_masks(tmp_path)
    assert train.classes == ["pet", "background", "border"] and train.palette.shape == (3, 3)
    assert [int(train.read(i)[1].max()) for i in range(2)] == [0, 1] and int(val.read(0)[1].min()) == 2
    assert val.read(0)[0].size == SIZE
    both, _ = pets_masks(tmp_path, "trainval")  # all images to train on
    assert [both.name(i).rpartition("/")[2] for i in range(len(both))] == ["Big_Cat_1.jpg", "pug_7.jpg", "pug_8.jpg"]
