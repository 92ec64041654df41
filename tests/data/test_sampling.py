"""Order and random numbers are pure functions: the same for any number of processes, and after a resume."""

import numpy as np
import pytest
import torch

from utils.cli.errors import InputError
from utils.data.sampling import (
    AUGMENT,
    EvalBatches,
    Sampling,
    TrainBatches,
    epoch_order,
    fold_numbers,
    image_numbers,
    replacement,
    spread,
    stratified_split,
)  # fmt: skip
from utils.data.sampling import stream_seed as seed_of


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    order = epoch_order(100, 3, 5)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, 3, 5))
    assert not torch.equal(order, epoch_order(100, 3, 6)) and not torch.equal(order, epoch_order(100, 4, 5))


def test_every_use_of_random_numbers_has_a_seed_of_its_own():
    seeds = {seed_of(seed, purpose, a, b) for seed in range(3) for purpose in range(6) for a in range(5) for b in range(5)}
    assert len(seeds) == 450
    chosen = {replacement(seed, epoch, 7, attempt, 1000) for seed in range(3) for epoch in range(3) for attempt in range(5)}
    assert len(chosen) > 40 and chosen < set(range(1000))


def test_val_split_is_stratified_and_fixed_by_the_seed():
    labels = [0] * 20 + [1] * 20
    (train, val), (_, same), (_, other) = (stratified_split(labels, 0.1, seed) for seed in (0, 0, 1))
    assert sorted([*train, *val]) == list(range(40)) and np.bincount(np.array(labels)[val]).tolist() == [2, 2]
    assert val.tolist() == same.tolist() != other.tolist()
    train, val = stratified_split([0] * 10 + [1] * 1 + [2] * 2, 0.5, 0)
    assert sorted([*train, *val]) == list(range(13)) and 10 in train and len(val) == 6  # the only one of a class trains
    with pytest.raises(InputError, match="--val_split 0.5: 2 images leave none for validation"):
        stratified_split([0, 1], 0.5, 0)


def test_samples_that_are_looked_at_are_evenly_spread():
    assert spread(9, 3) == [0, 4, 8] and spread(2, 5) == [0, 1] and spread(1, 5) == [0] and spread(0, 5) == []


@pytest.mark.parametrize(("samples", "batch", "freq"), [(100, 8, 1), (103, 8, 3), (7, 8, 1)])
def test_updates_hold_the_same_samples_on_any_number_of_processes(samples, batch, freq):
    def by_update(processes, update_freq):
        size = batch * freq // (processes * update_freq)
        parts = [list(TrainBatches(samples, size, update_freq, p, processes)) for p in range(processes)]
        updates = len(parts[0]) // update_freq
        return [
            sorted(key.index for part in parts for keys in part[u * update_freq : (u + 1) * update_freq] for key in keys)
            for u in range(updates)
        ]

    one = by_update(1, freq)
    assert len(one) == samples // batch // freq  # whole updates only
    assert by_update(2, freq) == one and by_update(1, 2 * freq) == one and by_update(4, freq) == one


def test_a_resumed_epoch_goes_on_where_it_stopped():
    batches = TrainBatches(103, 4, 2)
    batches.epoch = 3
    whole = list(batches)
    assert all(key.epoch == 3 for keys in whole for key in keys)
    for batches.first_update in (0, 1, 11):
        assert list(batches) == whole[2 * batches.first_update :]
    batches.first_update, batches.last_update = 2, 5
    assert list(batches) == whole[4:10]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_sample_once(processes):
    for samples in (1, 5, 7, 8, 9, 11):
        for batch in (2, 4):
            orders = [EvalBatches(samples, batch, p, processes) for p in range(processes)]
            parts = [list(order) for order in orders]
            assert len({len(part) for part in parts}) == 1  # as many batches everywhere
            assert len({len(keys) for part in parts for keys in part}) == 1  # of the same size
            keys = [key for part in parts for keys in part for key in keys]
            assert sorted(key.index for key in keys if key.counts) == list(range(samples))
            numbers = image_numbers(orders[0])  # the rows of all processes, one process after another
            assert [number for number in numbers if number < samples] == [key.index for key in keys if key.counts]


LABELS = np.repeat([0, 1, 2], [900, 90, 10])


@pytest.mark.parametrize("kind, shares", [("balanced", (1 / 3, 1 / 3, 1 / 3)), ("sqrt", (0.703, 0.222, 0.074))])
def test_rare_classes_come_more_often_and_an_epoch_keeps_its_length(kind, shares):
    sampling = Sampling(LABELS, kind)
    orders = [sampling.order(1000, 7, epoch) for epoch in range(2)]
    for order in orders:
        counts = np.bincount(LABELS[order], minlength=3)
        assert counts.sum() == 1000 and counts == pytest.approx(1000 * np.array(shares), abs=1)
        per_image = np.bincount(order, minlength=1000)
        assert all(per_image[label == LABELS].max() - per_image[label == LABELS].min() <= 1 for label in range(3))  # in turn
    assert not torch.equal(*orders) and torch.equal(sampling.order(1000, 7, 1), orders[1])
    assert set(orders[0].tolist()) != set(orders[1].tolist())  # of the frequent class others are left out


def test_repeats_come_in_a_row_and_differ_in_their_augmentation():
    order = Sampling(repeats=3).order(10, 0, 0)
    assert len(order) == 10 and (order[:9].view(3, 3) == order[:9:3, None]).all() and len(set(order.tolist())) == 4
    (keys,) = list(TrainBatches(9, 9, seed=0, sampling=Sampling(repeats=3)))
    assert [key.again for key in keys] == [0, 1, 2] * 3 and len({key.seed(5) for key in keys}) == 9
    (plain,) = list(TrainBatches(9, 9, seed=0))
    assert [key.seed(5) for key in plain] == [seed_of(5, AUGMENT, 0, key.index) for key in plain]  # as ever


@pytest.mark.parametrize("sampling", [Sampling(LABELS, "balanced"), Sampling(LABELS, "sqrt", 2)])
def test_samples_of_an_update_are_the_same_on_any_number_of_processes_and_after_a_resume(sampling):
    def updates(processes, first=0):
        parts = [TrainBatches(1000, 40 // processes, 1, process, processes, 3, sampling) for process in range(processes)]
        for part in parts:
            part.epoch, part.first_update = 1, first
        return [sorted(key for batch in batches for key in batch) for batches in zip(*parts, strict=True)]

    assert updates(1) == updates(2) == updates(4) and updates(2, first=7) == updates(1)[7:]


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_share_out_each_class_and_keep_groups(grouped):
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    groups = np.arange(80) // 4 if grouped else None
    found = fold_numbers(labels, 5, 3, groups)
    sizes = np.bincount(found, minlength=5)
    assert sizes.sum() == 80 and np.ptp(sizes) <= 2 * 4 * grouped and np.array_equal(found, fold_numbers(labels, 5, 3, groups))
    if grouped:
        assert all(len(set(found[groups == group])) == 1 for group in range(20))
    else:
        assert all(np.ptp(np.bincount(found[labels == label], minlength=5)) <= 1 for label in range(3))
    assert not np.array_equal(found, fold_numbers(labels, 5, 4, groups))
