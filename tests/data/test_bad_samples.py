"""Broken samples: which one replaces them, how many a run has met, and the search for all of them beforehand."""

import os
import pathlib
import pickle
from types import SimpleNamespace

import pytest
import torch

from utils.cli.errors import InputError
from utils.data import bad_samples
from utils.data.bad_samples import BadSamples, check_all, check_data, in_threads, read_or_replace
from utils.data.sampling import Key
from utils.images.read import BadImage


class Source:
    """Samples of which some are broken images and some have broken masks."""

    def __init__(self, count, broken=(), bad_masks=()):
        self.count, self.broken, self.bad_masks = count, broken, bad_masks

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.broken:
            raise BadImage(f"{self.name(index)} is no image")
        if index in self.bad_masks:
            raise InputError(f"mask of {self.name(index)} holds 9")
        return index

    def name(self, index):
        return f"images/{index}.jpg"


def test_what_replaces_a_broken_image():
    source = Source(12, broken=(5, 2))
    chosen = {epoch: read_or_replace(source.read, Key(5, epoch), 3, 12) for epoch in range(20)}
    assert all(read == index and index not in (5, 2) for read, index in chosen.values())
    assert len({index for _, index in chosen.values()}) > 5
    assert read_or_replace(source.read, Key(4), 3, 12) == (4, 4)
    with pytest.raises(BadImage, match=r"images/5.jpg is no image"):
        read_or_replace(source.read, Key(5), None, 12)
    with pytest.raises(InputError, match=r"mask of images/7.jpg"):
        read_or_replace(Source(12, bad_masks=(7,)).read, Key(7), 3, 12)


def test_a_set_with_nothing_else_to_take_ends_with_the_first_name():
    message = r"^images/3.jpg is no image \(and 20 others tried in its place are broken too\)"
    with pytest.raises(InputError, match=message) as error:
        read_or_replace(Source(8, broken=range(8)).read, Key(3), 3, 8)
    assert not isinstance(error.value, BadImage)


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
    exactly = bad()
    assert len(exactly.merge([range(10)])) == 10 and exactly.merge([[10]])[0].startswith("more than 10")


def test_numbers_beyond_the_images_that_are_left_are_no_broken_images(tmp_path):
    """Of a state that goes on with fewer images, which is one from the end of an epoch."""
    names = [f"images/{index}.jpg" for index in range(3)]
    run = BadSamples(names.__getitem__, 3, 0.5, known=[1, 900])
    run.check()
    run.write(tmp_path / "bad_samples.txt")
    assert run.indices == [1] and (tmp_path / "bad_samples.txt").read_text() == "images/1.jpg\n"


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


def test_everything_is_read_once_by_any_number_of_processes():
    sources = [Source(12, broken=(5,), bad_masks=(7,)), Source(35), Source(15, broken=(5,))]
    everything = check_all(sources)
    assert [(*fault[:2], fault[3]) for fault in everything] == [(0, 5, True), (0, 7, False), (2, 5, True)]
    assert "holds 9" in everything[1][2]
    totals, seen = [], 0

    def progress(faults, total):
        nonlocal seen
        totals.append(total)
        for fault in faults:
            seen += 1
            yield fault

    parts = [check_all(sources, process, 3, progress) for process in range(3)]
    assert sorted(fault for part in parts for fault in part) == everything
    assert sum(totals) == seen == 12 + 35 + 15 and max(totals) - min(totals) <= 2


class Log:
    def __init__(self, folder):
        self.folder, self.warned = pathlib.Path(folder), []

    def say(self, line):
        pass

    def warn(self, line):
        self.warned.append(line)


def test_checking_the_data_lists_counts_and_stops(tmp_path):
    alone = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
    log, listed = Log(tmp_path), tmp_path / "check_data.txt"
    whole, train = Source(12), Source(12, broken=(5,))
    check_data(alone, BadSamples(whole.name, 12), whole, whole, log)
    assert not listed.exists()
    found = BadSamples(train.name, 12, limit=0.1)
    check_data(alone, found, train, whole, log)
    assert found.indices == [5] and log.warned == ["broken image, replaced: images/5.jpg"]
    assert listed.read_text() == "images/5.jpg is no image\n"
    train.broken = (5, 6)
    with pytest.raises(InputError, match=r"2 of 12 training images .*more than 10 %"):
        check_data(alone, found, train, whole, log)
    tested = Source(12)
    tested.test = Source(4, broken=(3,))
    for source, val in ((train, Source(12, broken=(3,))), (train, tested), (Source(12, broken=(5, 6), bad_masks=(3,)), whole)):
        with pytest.raises(InputError, match=r"1 samples to validate or test on, or masks, cannot be read: .*images/3.jpg"):
            check_data(alone, BadSamples(train.name, 12, limit=1), source, val, log)
        assert len(listed.read_text().splitlines()) == 3
    train.name = lambda index: os.fsdecode(b"new\nline \xff.png")
    check_data(alone, BadSamples(train.name, 12, limit=1), train, whole, log)
    assert listed.read_text(encoding="utf-8").splitlines() == [r"new\nline \udcff.png is no image"] * 2


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
