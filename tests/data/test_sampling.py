"""Order and random numbers are pure functions: the same for any number of processes, and after a resume."""

import numpy as np
import pytest
import torch

from utils.cli.errors import InputError
from utils.data.sampling import EvalBatches, TrainBatches, epoch_order, image_numbers, replacement, spread, stratified_split
from utils.data.sampling import stream_seed as seed_of


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    order = epoch_order(100, 3, 5)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, 3, 5))
    assert not torch.equal(order, epoch_order(100, 3, 6)) and not torch.equal(order, epoch_order(100, 4, 5))


def test_every_use_of_random_numbers_has_a_seed_of_its_own():
    seeds = {seed_of(seed, purpose, a, b) for seed in range(3) for purpose in range(5) for a in range(5) for b in range(5)}
    assert len(seeds) == 375
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
