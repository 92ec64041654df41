"""Streams: every sample once on any number of processes and workers, resumed at any batch, from data of each kind."""

import io
import itertools
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import make_folder
from PIL import Image
from test_tar_shards import LABELS, encoded, samples, write

from utils.cli.errors import InputError
from utils.data.streaming import StreamLoader, place_of
from utils.images import BadImage
from utils.sources import recognition as recognition_data
from utils.sources import segmentation as segmentation_data
from utils.sources.recognition import RecognitionStream
from utils.sources.segmentation import SegmentationStream

SHARDS = (7, 31, 22)  # rows: uneven, and fewer shards than processes x workers


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 numbered rows in three Parquet files of small row groups."""
    folder, start = tmp_path_factory.mktemp("numbers"), 0
    for shard, rows in enumerate(SHARDS):
        numbers = pa.table({"x": list(range(start, start + rows))})
        pa.parquet.write_table(numbers, folder / f"train-{shard}.parquet", row_group_size=5)
        start += rows
    return datasets.load_dataset(str(folder), split="train", streaming=True)


def number_of(example, number, epoch):
    """A sample that tells what it is made from, and with."""
    return example["x"], number, epoch


def loader(table, batch_size=5, make=number_of, **kwargs):
    return StreamLoader(table, make, 60, batch_size, **({"seed": 3, "buffer_size": 8, "collate": list} | kwargs))


def batches(loader, epoch=0, first_update=0, last_update=None):
    loader.epoch, loader.first_update = epoch, first_update
    loader.last_update = loader.updates if last_update is None else last_update
    return list(loader)


def rows(batches):
    return [sample[0] for batch in batches for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_once(table, processes, workers):
    of_one = batches(loader(table, 5 * 6))
    parts = [batches(loader(table, 30 // processes, process=p, processes=processes, workers=workers)) for p in range(processes)]
    assert [len(part) for part in parts] == [2] * processes
    assert sorted(row for part in parts for row in rows(part)) == list(range(60))
    # the same order whatever the processes and workers, and the same number for the same sample
    assert [[sample for batch in turn for sample in batch] for turn in zip(*parts, strict=True)] == of_one


def test_order_and_numbers(table):
    stream = loader(table, 60)
    first, second, again = (batches(stream, epoch)[0] for epoch in (0, 1, 0))
    other = batches(loader(table, 60, seed=4))[0]
    orders = [[row for row, *_ in batch] for batch in (first, second, other)]
    assert first == again and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(60)) for order in orders)
    shards = [np.searchsorted(np.cumsum(SHARDS), order, side="right") for order in orders]  # which each row is of
    assert len({tuple(dict.fromkeys(shard)) for shard in shards}) > 1
    numbers = [{row: number for row, number, *_ in batch} for batch in (first, second)]
    assert numbers[0] == numbers[1] and len(set(numbers[0].values())) == 60
    assert [place_of(numbers[0][row]) for row in (0, 6, 7, 59)] == [(0, 0), (0, 6), (1, 0), (2, 21)]
    assert [epoch for _, _, epoch, _ in second] == [1] * 60


def test_blocks_are_permuted_in_themselves(table):
    numbers = [number for _, number, *_ in batches(loader(table, 60))[0]]
    shard_order = list(dict.fromkeys(place_of(number)[0] for number in sorted(numbers, key=numbers.index)))
    for start in range(0, 60, 8):
        block = sorted(numbers[start : start + 8], key=lambda number: (shard_order.index(place_of(number)[0]), number))
        places = [place_of(number) for number in block]
        for (shard, row), (next_shard, next_row) in itertools.pairwise(places):
            assert (next_shard, next_row) == (shard, row + 1) or next_row == 0  # what came out of the shards together
    assert numbers[:8] != sorted(numbers[:8])


@pytest.mark.parametrize(("workers", "together"), [(0, 64), (0, 3), (2, 4), (0, 1)])
def test_goes_on_where_it_stopped(table, monkeypatch, workers, together):
    monkeypatch.setattr("utils.data.streaming.TOGETHER", together)
    kwargs = {"process": 1, "processes": 2, "update_freq": 2, "workers": workers, "buffer_size": 11}
    whole = [batches(loader(table, 3, **kwargs), epoch) for epoch in (0, 1)]
    assert [len(epoch) for epoch in whole] == [10, 10]
    for stop in (1, 2, 4):
        stream = loader(table, 3, **kwargs)
        stream.epoch, got = 1, []
        for batch in stream:
            got.append(batch)
            if len(got) == 2 * stop:
                state = json.loads(json.dumps(stream.state_dict()))
                break
        assert len(json.dumps(state)) < 1000 and state["block"] == 2 * stop * 6 // 11  # what is under way does not count
        resumed = loader(table, 3, **kwargs)
        resumed.load_state_dict(state)
        assert got + batches(resumed, 1, stop) == whole[1]
        assert batches(loader(table, 3, **kwargs), 1, stop) == whole[1][2 * stop :]  # without a state, only later
        assert batches(resumed, 0) == whole[0]  # a state is for its own epoch
        kwargs_of_one = kwargs | {"process": 0, "processes": 1, "update_freq": 4}
        alone = loader(table, 3, **kwargs_of_one)
        alone.load_state_dict(state)
        assert batches(alone, 1, stop)[1::2] == whole[1][2 * stop :]


def test_resuming_reads_no_shard_that_is_done(tmp_path):
    def generate(shards):
        for shard in shards:
            with open(tmp_path / "opened", "a") as file:
                file.write(f"{shard}\n")
            yield from ({"x": 10 * shard + i} for i in range(10))

    table = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": list(range(6))})
    stream = loader(table, 5, buffer_size=10)
    for count, _ in enumerate(stream):
        if count == 8:
            state = stream.state_dict()
    (tmp_path / "opened").unlink()
    resumed = loader(table, 5, buffer_size=10)
    resumed.load_state_dict(state)
    assert len(batches(resumed, 0, 9)) == 3
    assert len(set((tmp_path / "opened").read_text().split())) <= 3


def test_an_epoch_that_is_cut_and_whole_updates(table):
    stream = loader(table, 7, processes=2, update_freq=2)  # 60 // 14 // 2
    assert stream.updates == 2 and len(stream) == 4 and len(batches(stream)) == 4
    assert batches(stream, 0, 1, 2) == batches(stream)[2:] and len(batches(stream, 0, 0, 1)) == 2
    few = StreamLoader(table, number_of, 12, 4, buffer_size=100, collate=list)  # of more than there are asked for
    assert len(rows(batches(few))) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_too_few_samples_end_all_processes(table, workers):
    for process in range(2):
        stream = StreamLoader(
            table, number_of, 70, 5, workers=workers, process=process, processes=2, buffer_size=8, collate=list
        )
        got = []
        with pytest.raises(InputError, match="ended after 60 training images; expected 70: give --train_images 60"):
            for batch in stream:
                got.append(batch)
        assert len(got) == 5  # all that the whole blocks, of 56, are enough for


@pytest.mark.parametrize("state", [None, [], {"epoch": 0}, {"epoch": -1}, {"epoch": "0"}])
def test_a_damaged_state(table, state):
    with pytest.raises(InputError, match="the state of the stream is damaged"):
        loader(table).load_state_dict(state)


def test_a_library_state_that_does_not_fit(table):
    stream = loader(table)
    next(iter(stream))
    assert json.loads(json.dumps(stream.state_dict()))["seed"] == 3
    state = {**stream.state_dict(), "block": 1, "stream": {"epoch": 0, "examples_iterable": {"no": "such"}}}
    stream.load_state_dict(state)
    with pytest.raises(InputError, match=r"shard \d of the training data cannot be read"):
        batches(stream, 0, 3)


def broken(example, number, epoch):
    if example["x"] % 10 < 3:
        raise BadImage(f"row {example['x']} is no image")
    return example["x"], number, epoch


@pytest.mark.parametrize("batch_size", [1, 6])
def test_broken_images_are_replaced(table, batch_size):
    got = [sample for batch in batches(loader(table, batch_size, broken)) for sample in batch]
    wanted = [sample for batch in batches(loader(table, batch_size)) for sample in batch]
    assert len(got) == 60 and got == [
        sample for batch in batches(loader(table, batch_size, broken, workers=2)) for sample in batch
    ]
    for (row, number, _, replaced), (true_row, true_number, *_) in zip(got, wanted, strict=True):
        assert number == true_number  # the random numbers are those of the sample's own place
        assert (row == true_row and replaced == -1) if true_row % 10 >= 3 else (row % 10 >= 3 and replaced == number)
    if batch_size == 6:
        for start in range(0, 60, 6):
            for i in range(start + 1, start + 6):  # by the last whole one before it, where there is one in the batch
                before = [row for row, *_ in wanted[start:i] if row % 10 >= 3]
                assert wanted[i][0] % 10 >= 3 or not before or got[i][0] == before[-1]


def all_broken(example, number, epoch):
    raise BadImage("it is no image")


def test_iterated_anew_before_the_end(table):
    stream = loader(table)
    first, second = iter(stream), iter(stream)
    one = next(first)
    assert next(second) == one
    first.close()
    assert len(list(second)) == 11


def test_a_transform_that_decodes_by_itself():
    def halves(data):
        return (torch.tensor(data[0]), torch.tensor(data[1])) if data != b"bad" else data["no"]

    halves.takes_bytes = True
    source = recognition_data.StreamOfImages(
        datasets.Dataset.from_dict({"image": [b"ab"], "label": [1]}).to_iterable_dataset(),
        1,
        "image",
        "label",
        ["x", "y"],
        "",
        None,
    )
    make = RecognitionStream(source, halves, 0)
    assert [int(part) for part in make({"image": {"bytes": b"ab"}, "label": 1}, 0, 0)] == [97, 98, 1]
    with pytest.raises(BadImage, match="row 0 of shard 0"):
        make({"image": {"bytes": b"bad"}, "label": 1}, 0, 0)


def test_nothing_but_broken_images(table):
    with pytest.raises(InputError, match=r"it is no image \(and 7 others tried in its place are broken too\)"):
        batches(loader(table, 2, all_broken))


# --- from data of each kind -----------------------------------------------------------------------------------------


def red(image):
    return torch.tensor(np.asarray(image)[0, 0, 0])


def epoch_of(train, transform, kind, batch_size, **kwargs):
    """(reds, labels or masks) of an epoch on two processes."""
    found = []
    for process in range(2):
        stream = StreamLoader(
            train.table, kind(train, transform, 0), train.samples, batch_size, process=process, processes=2, **kwargs
        )
        found += [tuple(map(int, sample)) for batch in stream for sample in zip(*batch, strict=True)]
    return sorted(found)


def parquet(folder, split, count, label, feature, files=2):
    for part in np.array_split(np.arange(count), files):
        images = [{"bytes": encoded((int(i), 0, 0)), "path": None} for i in part]
        features = datasets.Features(image=datasets.Image(), label=feature)
        columns = {"image": images, "label": [label(int(i)) for i in part]}
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{split}-{part[0]}.parquet")


COLUMNS = {
    "classes": (lambda i: i % 3, datasets.ClassLabel(names=["cat", "dog", "eel"]), ["cat", "dog", "eel"]),
    "numbers": (lambda i: i % 3, datasets.Value("int64"), ["0", "1", "2"]),
    "text": (lambda i: ("cat", "dog", "eel")[i % 3], datasets.Value("string"), ["cat", "dog", "eel"]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet(tmp_path, kind):
    label, feature, names = COLUMNS[kind]
    parquet(tmp_path, "train", 24, label, feature, files=3)
    parquet(tmp_path, "validation", 5, label, feature)
    train, val = recognition_data.hub_stream(str(tmp_path))
    assert train.samples == 24 and train.classes == names == val.classes and val.labels.tolist() == [0, 1, 2, 0, 1]
    for workers in (0, 2):
        got = epoch_of(train, red, RecognitionStream, 4, workers=workers, buffer_size=6)
        assert got == [(i, i % 3, -1) for i in range(24)]
    assert val.read(3).getpixel((0, 0)) == (3, 0, 0) and str(tmp_path) in train.title


CARD = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {"0": cat, "1": dog, "2": eel}}}}
---
"""


def test_classes_of_a_card(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        images = [{"bytes": encoded((i, 0, 0)), "path": None} for i in range(count)]
        columns = {"image": images, "label": [i % 3 for i in range(count)]}
        pa.parquet.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    (tmp_path / "README.md").write_text(CARD)
    train, val = recognition_data.hub_stream(str(tmp_path))
    assert train.classes == ["cat", "dog", "eel"] == val.classes and val.labels.tolist() == [0, 1]
    assert epoch_of(train, red, RecognitionStream, 3) == [(i, i % 3, -1) for i in range(6)]


def test_images_in_class_folders(tmp_path):
    for split in ("train", "test"):
        make_folder(tmp_path / split, ("a", "b"), 3)
    train, val = recognition_data.hub_stream(str(tmp_path))
    assert train.samples == 6 and train.classes == ["a", "b"] and val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    got = epoch_of(train, lambda image: torch.tensor(0), RecognitionStream, 3, buffer_size=4)
    assert [label for _, label, _ in got] == [0] * 3 + [1] * 3 and {replaced for *_, replaced in got} == {-1}


def test_webdataset(tmp_path):
    for shard, (start, count) in enumerate(((0, 5), (5, 12), (17, 3))):
        write(tmp_path / f"train-{shard}.tar", samples(count, LABELS["text"], start))
    write(tmp_path / "val-0.tar", samples(4, LABELS["text"]))
    train, val = recognition_data.hub_stream(str(tmp_path))
    assert train.samples == 20 and train.classes == ["cat", "dög", "eel"] and val.labels.tolist() == [2, 0, 1, 2]
    for workers in (0, 2):
        got = epoch_of(train, red, RecognitionStream, 5, workers=workers, buffer_size=7)
        assert got == [(i, (2, 0, 1)[i % 3], -1) for i in range(20)]
    (tmp_path / "classes.txt").write_text("eel\ncat\ndög\n")
    train, val = recognition_data.hub_stream(str(tmp_path), train_images=16)
    assert (train.samples, train.classes, val.labels.tolist()) == (16, ["eel", "cat", "dög"], [0, 1, 2, 0])


def test_saved_to_disk(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    images = [{"bytes": encoded((i, 0, 0)), "path": None} for i in range(12)]
    table = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(12)]}, features)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "saved")
    train, val = recognition_data.hub_stream(str(tmp_path / "saved"))
    assert epoch_of(train, red, RecognitionStream, 3, buffer_size=5) == [(i, i % 2, -1) for i in range(12)]
    assert len(val.labels) == 12


def test_masks(tmp_path):
    for split, count in (("train", 12), ("val", 3)):
        pairs = [(f"{i}.jpg", encoded((i, 0, 0)), f"{i}.png", encoded(i % 3, "L")) for i in range(count)]
        write(tmp_path / f"{split}-0.tar", [x for pair in pairs for x in (pair[:2], pair[2:])])
    train, val = segmentation_data.hub_stream(str(tmp_path))
    assert train.classes == ["class 0", "class 1", "class 2"] == val.classes and (train.samples, len(val)) == (12, 3)

    def corner(image, mask):
        return red(image), torch.tensor(mask[0, 0])

    for workers in (0, 2):
        got = epoch_of(train, corner, SegmentationStream, 3, workers=workers, buffer_size=5)
        assert got == [(i, i % 3, -1) for i in range(12)]
    (tmp_path / "classes.txt").write_text("ground\nsky\n")
    train, _ = segmentation_data.hub_stream(str(tmp_path))
    with pytest.raises(InputError, match="row 2 of shard 0.*the mask holds 2, which is no class"):
        epoch_of(train, corner, SegmentationStream, 6)


def test_augmentation_is_keyed_by_seed_epoch_and_sample(tmp_path):
    label, feature, _ = COLUMNS["classes"]
    parquet(tmp_path, "train", 12, label, feature)
    parquet(tmp_path, "validation", 3, label, feature)
    train, _ = recognition_data.hub_stream(str(tmp_path))

    def noise(image):
        return red(image), torch.rand(())

    def run(seed=0, epoch=0, workers=0):
        stream = StreamLoader(train.table, RecognitionStream(train, noise, seed), 12, 4, workers=workers, buffer_size=5)
        drawn = [(batch[0].tolist(), batch[1].tolist()) for batch in batches(stream, epoch)]
        return {r: x for reds, numbers in drawn for r, x in zip(reds, numbers, strict=True)}

    assert run() == run(workers=2) and len(set(run().values())) == 12
    assert not set(run().values()) & (set(run(seed=1).values()) | set(run(epoch=1).values()))


def test_broken_images_and_labels_of_a_stream(tmp_path):
    good, bad = encoded((9, 0, 0)), b"\x89PNG broken"
    members = [(f"{i}.png", bad if i == 2 else good) for i in range(4)]
    write(tmp_path / "train.tar", [x for i, member in enumerate(members) for x in (member, (f"{i}.cls", b"%d" % (i % 2)))])
    write(tmp_path / "val.tar", [("0.png", good), ("0.cls", b"1")])
    train, _ = recognition_data.hub_stream(str(tmp_path))
    got = epoch_of(train, red, RecognitionStream, 2)
    assert [place_of(replaced) for *_, replaced in got if replaced >= 0] == [(0, 2)] and len(got) == 4
    assert train.name(2) == "row 2 of shard 0, column 'image'"
    (tmp_path / "classes.txt").write_text("x\ny\n")
    write(tmp_path / "train.tar", [("0.png", good), ("0.cls", b"0"), ("1.png", good), ("1.cls", b"7")])
    train, _ = recognition_data.hub_stream(str(tmp_path), train_images=2)
    with pytest.raises(
        InputError, match=r"row 1 of shard 0, column 'image' has the label 7; expected one of 2 classes \(x, y\)"
    ):
        epoch_of(train, red, RecognitionStream, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root, *_: None, "cannot load it"),
        (
            lambda root, label, feature: parquet(root, "train", 4, label, feature),
            "found only the split train; expected one named",
        ),
        (lambda root, label, feature: [arrow(root, split, label) for split in ("train", "test")], "give --train_images N"),
    ],
)
def test_what_is_missing(tmp_path, make, message):
    make(tmp_path, *COLUMNS["numbers"][:2])
    with pytest.raises(InputError, match=message) as error:
        recognition_data.hub_stream(str(tmp_path))
    assert "\n" not in str(error.value)


def arrow(root, split, label):
    """Arrow's stream format, which does not tell how many rows it has."""
    images = [{"bytes": encoded((i, 0, 0)), "path": None} for i in range(6)]
    table = pa.table({"image": images, "label": [label(i) for i in range(6)]})
    with pa.OSFile(str(root / f"{split}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def test_a_number_and_names_that_are_given(tmp_path):
    for split in ("train", "test"):
        arrow(tmp_path, split, lambda i: i % 2)
    with pytest.raises(InputError, match=r"what classes column 'label' has is not known .*put classes.txt"):
        recognition_data.hub_stream(str(tmp_path), train_images=6)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    train, val = recognition_data.hub_stream(str(tmp_path), train_images=6)
    assert train.classes == ["x", "y"] and val.labels.tolist() == [0, 1] * 3
    assert epoch_of(train, red, RecognitionStream, 3, buffer_size=4) == [(i, i % 2, -1) for i in range(6)]


def test_a_path_that_leads_outside(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded((1, 2, 3)))
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        images = [{"bytes": None, "path": str(secret)}, {"bytes": encoded(0), "path": None}]
        pa.parquet.write_table(pa.table({"image": images, "label": [0, 1]}), folder / f"{split}.parquet")
    train, _ = recognition_data.hub_stream(str(folder))
    with pytest.raises(BadImage, match=r"row 0 of shard 0.*leads outside"):
        train.read(next(iter(train.table)), 0)


def test_many_classes(tmp_path):
    names = [f"n{i:08}" for i in range(21_841)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for split in ("train", "val"):
        write(tmp_path / f"{split}.tar", samples(3, lambda i: ("cls", names[7_000 * i].encode())))
    for open_data in (recognition_data.hub_stream, recognition_data.hub_table):
        train, val = open_data(str(tmp_path))
        assert train.classes == names and val.labels.tolist() == [0, 7_000, 14_000]
    with pytest.raises(InputError, match=r"expected one of 21841 classes \(n00000000, n00000001, .*, …\)") as error:
        recognition_data.hub_stream(str(tmp_path))[0].label({"label": "n9"}, 0)
    assert len(str(error.value)) < 300


def test_images_of_another_size_and_kind(tmp_path):
    """Grey, palette and 16-bit images come out as RGB, as everywhere."""
    files = [Image.new(mode, (5, 4)) for mode in ("L", "P", "I;16", "RGBA")]
    members = []
    for i, image in enumerate(files):
        file = io.BytesIO()
        image.save(file, "PNG")
        members += [(f"{i}.png", file.getvalue()), (f"{i}.cls", b"%d" % (i % 2))]
    for split in ("train", "val"):
        write(tmp_path / f"{split}.tar", members)
    train, _ = recognition_data.hub_stream(str(tmp_path))
    assert [train.read(example, i).mode for i, example in enumerate(train.table)] == ["RGB"] * 4
