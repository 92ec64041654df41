"""Broken images are replaced in training, the same way everywhere, counted and named; all else that is broken stops the run."""

import io
import os
import pathlib
import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from utils.cli.errors import InputError
from utils.data import bad_samples
from utils.data.bad_samples import BadSamples, check_all, check_data, in_threads
from utils.data.sampling import Key, TrainBatches, replacement
from utils.images import BadImage
from utils.run.log import RunLog
from utils.sources import recognition as recognition_data
from utils.sources import segmentation as segmentation_data
from utils.sources.recognition import RecognitionDataset, scan_folder
from utils.sources.segmentation import SegmentationDataset

KINDS = ("truncated", "empty", "text", "bomb", "directory", "missing")


@pytest.fixture(autouse=True)
def small_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)


def encoded(shade, size=(40, 30)):
    """A PNG whose every pixel has this shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(file, "png")
    return file.getvalue()


def broken_bytes(kind):
    return {
        "truncated": encoded(1)[:60],
        "empty": b"",
        "text": b"not an image",
        "bomb": encoded(1, (300, 300)),
        "directory": None,
        "missing": None,
    }[kind]


def harm(path, kind):
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(broken_bytes(kind))


# --- three kinds of sources, sample i of shade i, in which number 5 can be broken


def folder_source(root, kind=None, count=12):
    """Class folders; the shade of an image is 10 times its place."""
    for i in range(count):
        path = root / "ab"[i >= count // 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(10 * i))
    source = scan_folder(root)  # before the harm, so that a missing file is in the list
    if kind:
        harm(root / "a" / "05.png", kind)
    return source


def table_source(root, kind=None, count=12, columns=("image", "label")):
    images = [{"bytes": encoded(10 * i), "path": None} for i in range(count)]
    if kind:
        images[5] = {"bytes": broken_bytes(kind), "path": {"missing": "none.png", "directory": "."}.get(kind)}
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        table = pyarrow.table({columns[0]: images, columns[1]: [int(i >= count // 2) for i in range(count)]})
        pyarrow.parquet.write_table(table, root / f"{split}.parquet")
    return recognition_data.hub_table(str(root))[0]


def mask_png(values=(0, 1), size=(40, 30)):
    file = io.BytesIO()
    columns = np.repeat(np.array(values, np.uint8), -(-size[0] // len(values)))[: size[0]]
    Image.fromarray(np.tile(columns, (size[1], 1))).save(file, "png")
    return file.getvalue()


def pairs_source(root, kind=None, count=12, masks=()):
    """images/ and masks/; `masks`: content of the mask of number 7."""
    for split in ("train", "val"):
        for what in ("images", "masks"):
            (root / what / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / "images" / split / f"{i:02}.png").write_bytes(encoded(10 * i))
            (root / "masks" / split / f"{i:02}.png").write_bytes(mask_png())
    (root / "classes.txt").write_text("ground\nthing\n")
    source = segmentation_data.folder(root)[0]
    if kind:
        harm(root / "images/train/05.png", kind)
    for content in masks:
        (root / "masks/train/07.png").write_bytes(content)
    return source


def mask_table_source(root, kind=None, count=12, masks=()):
    """As `pairs_source`, in Parquet."""
    images = [{"bytes": encoded(10 * i), "path": None} for i in range(count)]
    labels = [{"bytes": mask_png(), "path": None} for i in range(count)]
    root.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "mask": labels}), root / "val.parquet")
    if kind:
        images[5] = {"bytes": broken_bytes(kind), "path": {"missing": "none.png", "directory": "."}.get(kind)}
    for content in masks:
        labels[7] = {"bytes": content, "path": None}
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "mask": labels}), root / "train.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_data, "SAMPLE", 2)  # the classes are taken from the first and the last mask, which are whole
        return segmentation_data.hub_table(str(root))[0]


def shade(image):
    return float(np.asarray(image)[0, 0, 0])


def shade_and_chance(image, mask=None):
    """A transform that shows which image came and which random numbers: (2,) float64."""
    seen = torch.tensor([shade(image), torch.rand(()).item()], dtype=torch.float64)
    return seen if mask is None else (seen, torch.from_numpy(mask))


RECOGNITION, SEGMENTATION = (folder_source, table_source), (pairs_source, mask_table_source)


def dataset_of(make, source, seed=3):
    return (RecognitionDataset if make in RECOGNITION else SegmentationDataset)(source, shade_and_chance, seed)


# --- replacement


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [*RECOGNITION, *SEGMENTATION])
def test_a_broken_image_is_replaced_in_training_and_raised_in_evaluation(tmp_path, make, kind):
    whole, source = make(tmp_path / "whole"), make(tmp_path / "broken", kind)
    training, before = dataset_of(make, source), dataset_of(make, whole)
    for epoch in range(3):
        stand_in = replacement(3, epoch, 5, 1, 12)
        if stand_in == 5:
            stand_in = replacement(3, epoch, 5, 2, 12)
        for index in range(12):
            (seen, label, replaced), (seen_whole, _, fine) = training[Key(index, epoch)], before[Key(index, epoch)]
            assert (replaced, fine) == (5 if index == 5 else -1, -1)
            assert seen[0] == 10 * (stand_in if index == 5 else index)
            assert seen[1] == seen_whole[1]  # the random numbers are those of the sample asked for
            if make in RECOGNITION:
                assert label == (seen[0] >= 60)  # image and label belong together
            else:
                assert label.shape == (30, 40) and label.dtype == torch.int64
    evaluation = dataset_of(make, source, seed=None)
    assert len(evaluation[Key(4)]) == 2
    with pytest.raises(BadImage) as error:
        evaluation[Key(5)]
    assert ("05.png" if make in (folder_source, pairs_source) else "row 5") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [folder_source, pairs_source])
def test_the_choice_depends_on_nothing_but_seed_epoch_and_index(tmp_path, make):
    source = make(tmp_path, "truncated")
    harm(tmp_path / ("a/02.png" if make is folder_source else "images/train/02.png"), "text")
    expected = {(epoch, i): dataset_of(make, source)[Key(i, epoch)] for epoch in (1, 0) for i in range(11, -1, -1)}
    stand_ins = {epoch: float(expected[epoch, 5][0][0]) for epoch in (0, 1)}
    assert not set(stand_ins.values()) & {20.0, 50.0}  # broken ones are passed over

    def seen(workers, processes):
        rows = {}
        for process in range(processes):
            sampler = TrainBatches(12, 4 // processes, 1, process, processes, seed=9)
            loader = torch.utils.data.DataLoader(dataset_of(make, source), batch_sampler=sampler, num_workers=workers)
            for sampler.epoch in (0, 1):
                for keys, (images, _, replaced) in zip(list(sampler), loader, strict=True):
                    assert replaced.dtype == torch.int64
                    rows |= {(k.epoch, k.index): (i, int(r)) for k, i, r in zip(keys, images, replaced, strict=True)}
        return rows

    for found in (seen(0, 1), seen(2, 1), seen(0, 2)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key][0], expected[key][0]) for key in found)
        assert {key for key in found if found[key][1] >= 0} == {(0, 2), (1, 2), (0, 5), (1, 5)}
        assert all(found[key][1] in (-1, key[1]) for key in found)


def test_other_seeds_and_epochs_choose_others():
    chosen = {replacement(seed, epoch, 7, 1, 1000) for seed in range(5) for epoch in range(5)}
    assert len(chosen) > 20 and max(chosen) < 1000 and min(chosen) >= 0
    assert len({replacement(0, 0, 7, attempt, 1000) for attempt in range(20)}) > 15


def test_a_set_with_nothing_else_to_take_ends_with_the_first_name(tmp_path):
    source = folder_source(tmp_path, count=8)
    for path in tmp_path.glob("*/*.png"):
        harm(path, "text")
    with pytest.raises(InputError, match=r"a/03.png is no image.*\(and 20 others tried in its place are broken too\)") as error:
        dataset_of(folder_source, source)[Key(3)]
    assert not isinstance(error.value, BadImage)


MASKS = {
    "text": (b"not an image", "no image|cannot be read"),
    "empty": (b"", "no image|cannot be read"),
    "truncated": (mask_png()[:50], "no image|cannot be read"),
    "bomb": (mask_png(size=(300, 300)), "cannot be read"),
    "no class": (mask_png((0, 77)), "the mask holds 77, which is no class"),
    "size": (mask_png(size=(41, 30)), "the image has 40 x 30 pixels, its mask 41 x 30"),
}


@pytest.mark.parametrize("wrong", MASKS)
@pytest.mark.parametrize("make", SEGMENTATION)
@pytest.mark.parametrize("seed", [3, None])
def test_a_broken_mask_is_never_replaced(tmp_path, make, wrong, seed):
    content, message = MASKS[wrong]
    dataset = dataset_of(make, make(tmp_path, masks=[content]), seed)
    with pytest.raises(InputError, match=message) as error:
        dataset[Key(7)]
    assert not isinstance(error.value, BadImage)
    assert ("07.png" if make is pairs_source else "row 7") in str(error.value)


def test_a_broken_image_does_not_hide_a_broken_mask(tmp_path):
    source = pairs_source(tmp_path, masks=[b"no"])
    harm(tmp_path / "images/train/07.png", "text")
    with pytest.raises(InputError, match="masks/train/07.png"):
        dataset_of(pairs_source, source)[Key(7)]


def test_paths_in_a_table_stay_in_its_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(200))
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "data" / "more" / "in.png").write_bytes(encoded(90))
    images = [{"bytes": None, "path": path} for path in ("more/in.png", "../secret.png", None)]
    for split in ("train", "val"):
        table = pyarrow.table({"image": images, "label": [0, 0, 1]})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}.parquet")
    train, _ = recognition_data.hub_table(str(tmp_path / "data"))
    assert shade(train.read(0)) == 90
    for index in (1, 2):
        with pytest.raises(BadImage, match=f"row {index}, column 'image'"):
            train.read(index)


# --- the record of a run


def bad(samples=10_000, **more):
    return BadSamples(lambda index: f"images/{index}.jpg", samples, **more)


def test_each_is_counted_once_whatever_process_met_it():
    two = [bad(), bad()]
    two[0].note(torch.tensor([-1, 7, -1, 3]))
    two[0].note([7, -1])
    two[1].note([7, 12])
    assert (two[0].pending, two[1].pending, two[0].total) == ([3, 7], [7, 12], 0)
    lists = [one.pending for one in two]
    lines = [one.merge(lists) for one in two]
    assert lines[0] == lines[1] == [f"broken image, replaced: images/{index}.jpg" for index in (3, 7, 12)]
    assert all((one.total, one.indices, one.pending) == (3, [3, 7, 12], []) for one in two)
    two[1].note([3, -1, 5])
    assert two[1].pending == [5] and two[1].merge([[], [5]]) == ["broken image, replaced: images/5.jpg"]
    assert two[1].merge([[], []]) == [] and two[1].total == 4
    two[1].note([1])
    assert two[1].merge([[9], []]) and two[1].pending == [1]  # what the others were not told yet is kept


def test_ten_are_named_in_a_run_also_after_a_resume():
    run = bad()
    assert len(run.merge([range(8)])) == 8
    resumed = bad(known=pickle.loads(pickle.dumps(run.indices)))
    for one in (run, resumed):
        assert one.total == 8
        lines = one.merge([[20, 21, 22], [23]])
        assert lines[:2] == ["broken image, replaced: images/20.jpg", "broken image, replaced: images/21.jpg"]
        assert len(lines) == 3 and lines[2].startswith("more than 10 broken images")
        assert one.merge([[30]]) == [] and one.total == 13
    assert bad(known=run.indices).merge([[40]]) == []
    exactly = bad()
    assert len(exactly.merge([range(10)])) == 10 and exactly.merge([[10]])[0].startswith("more than 10")


def test_the_limit():
    run = bad(300, limit=0.01)
    run.merge([[1, 2, 3]])
    run.check()  # three of 300 are not above one per cent
    run.merge([[250]])
    with pytest.raises(InputError) as error:
        run.check()
    assert "4 of 300 training images (1.33 %) are broken" in str(error.value) and "more than 1 %" in str(error.value)
    assert "images/1.jpg, images/2.jpg, images/3.jpg, …;" in str(error.value)
    bad(300, limit=1.0, known=range(300)).check()
    with pytest.raises(InputError, match=r"1 of 300 .*more than 0 %: images/7.jpg;"):
        bad(300, limit=0, known=[7]).check()


def test_the_list_of_names_has_a_line_each(tmp_path):
    names = ["plain.jpg", "üñí 中.jpg", "two\nlines\x1b[31m.jpg", "\udcff.jpg"]
    run = BadSamples(names.__getitem__, 400, known=[2, 0])
    path = tmp_path / "broken.txt"
    path.write_text("what was there")
    run.write(path)
    assert path.read_text().splitlines() == ["plain.jpg", r"two\nlines\x1b[31m.jpg"]
    lines = run.merge([[1, 3]])
    assert lines == ["broken image, replaced: üñí 中.jpg", r"broken image, replaced: \udcff.jpg"]
    run.write(path)
    assert path.read_text(encoding="utf-8").splitlines()[3] == r"\udcff.jpg"
    assert [item.name for item in tmp_path.iterdir()] == ["broken.txt"]


# --- reading everything


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_cannot_be_read_is_listed(tmp_path, kind):
    for make in (*RECOGNITION, *SEGMENTATION):
        source = make(tmp_path / make.__name__, kind)
        ((number, index, message, replaceable),) = check_all([make(tmp_path / make.__name__ / "whole"), source])
        assert (number, index, replaceable) == (1, 5, True) and ("05.png" in message or "row 5" in message)


def test_everything_is_read_once_by_any_number_of_processes(tmp_path):
    source = pairs_source(tmp_path / "pairs", "empty", masks=[mask_png((0, 9))])
    images = folder_source(tmp_path / "images", "text", count=15)
    sources = [source, recognition_data.digits()[1], images]
    everything = check_all(sources)
    assert [(*fault[:2], fault[3]) for fault in everything] == [(0, 5, True), (0, 7, False), (2, 5, True)]
    assert "the mask holds 9" in everything[1][2]
    bars, seen = [], 0

    def progress(results, total):
        nonlocal seen
        bars.append(total)
        for result in results:
            seen += 1
            yield result

    shares = [check_all(sources, progress, (rank, 3)) for rank in range(3)]
    assert sorted(fault for share in shares for fault in share) == everything
    assert sum(bars) == seen == 12 + 359 + 15 and max(bars) - min(bars) <= 2


def test_checking_the_data_lists_counts_and_stops(tmp_path):
    alone, log = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1), RunLog(tmp_path / "run")
    train, val = pairs_source(tmp_path / "train", "text"), pairs_source(tmp_path / "val")
    listed = tmp_path / "run" / "check_data.txt"
    bad_samples = BadSamples(train.name, 12, limit=0.1)
    check_data(alone, bad_samples, train, val, log)
    assert bad_samples.indices == [5] and "images/train/05.png is no image" in listed.read_text()
    harm(tmp_path / "train/images/train/06.png", "empty")
    with pytest.raises(InputError, match="2 of 12 training images .*more than 10 %"):
        check_data(alone, bad_samples, train, val, log)
    harm(tmp_path / "val/images/train/03.png", "missing")
    with pytest.raises(InputError, match="03.png cannot be read as an image"):
        check_data(alone, BadSamples(train.name, 12, limit=1), train, val, log)
    assert len(listed.read_text().splitlines()) == 3
    images = folder_source(tmp_path / "images")
    odd = os.fsdecode(os.fsencode(tmp_path / "images" / "a" / "new\nline ") + b"\xff.png")
    pathlib.Path(odd).write_bytes(b"no")
    check_data(alone, BadSamples(images.name, 13, limit=1), scan_folder(tmp_path / "images"), images, log)
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 1 and r"a/new\nline \udcff.png" in listed.read_text()


def test_a_sample_of_the_files_leaves_broken_images_to_training(tmp_path):
    source = pairs_source(tmp_path, "truncated")
    assert segmentation_data.check_files(source, training=True) == 12
    with pytest.raises(InputError, match="1 of 12 samples looked at cannot be used: .*05.png"):
        segmentation_data.check_files(source)
    (tmp_path / "masks/train/07.png").write_bytes(b"no")
    with pytest.raises(InputError, match="1 of 12 samples looked at cannot be used: .*masks/train/07.png"):
        segmentation_data.check_files(source, training=True)
    for path in tmp_path.glob("images/train/*.png"):
        harm(path, "text")
    with pytest.raises(InputError, match="12 of 12 samples looked at cannot be used"):
        segmentation_data.check_files(source, training=True)


def test_threads_keep_the_order_and_do_not_run_ahead(monkeypatch):
    monkeypatch.setattr(bad_samples, "AHEAD", 4)
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    results = in_threads(lambda i: i * i, items())
    assert taken == [] and next(results) == 0 and len(taken) <= 5
    assert list(results) == [i * i for i in range(1, 50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (3 - i), range(10)))
