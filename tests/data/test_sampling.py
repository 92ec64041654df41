"""Order and augmentation are pure functions: the same for any workers, processes and after a resume."""

import numpy as np
import pytest
import torch

from utils.augment.timm import train_transform
from utils.data.sampling import EvalBatches, Key, TrainBatches, epoch_order, stream_seed
from utils.sources.recognition import RecognitionDataset, digits


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    order = epoch_order(100, 3, 5)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, 3, 5))
    assert not torch.equal(order, epoch_order(100, 3, 6)) and not torch.equal(order, epoch_order(100, 4, 5))


def test_streams_differ():
    seeds = {stream_seed(s, p, a, b) for s in range(3) for p in range(5) for a in range(5) for b in range(5)}
    assert len(seeds) == 375


@pytest.mark.parametrize(("samples", "batch", "freq"), [(100, 8, 1), (103, 8, 3), (7, 8, 1), (64, 16, 2)])
def test_updates_hold_the_same_samples_on_any_number_of_processes(samples, batch, freq):
    def by_update(processes, update_freq):
        size = batch * freq // (processes * update_freq)
        shares = [list(TrainBatches(samples, size, update_freq, p, processes)) for p in range(processes)]
        updates = len(shares[0]) // update_freq
        return [
            sorted(key.index for share in shares for keys in share[u * update_freq : (u + 1) * update_freq] for key in keys)
            for u in range(updates)
        ]

    one = by_update(1, freq)
    assert len(one) == samples // batch // freq  # whole updates only
    if batch % 2 == 0:
        assert by_update(2, freq) == one and by_update(1, 2 * freq) == one and by_update(4, freq) == one


@pytest.mark.parametrize("first_update", [0, 1, 5, 11])
def test_a_resumed_epoch_goes_on_where_it_stopped(first_update):
    batches = TrainBatches(103, 4, 2)
    batches.epoch = 3
    whole = list(batches)
    batches.first_update = first_update
    assert list(batches) == whole[2 * first_update :]
    assert all(key.epoch == 3 for keys in whole for key in keys)


@pytest.mark.parametrize("samples", [1, 5, 7, 8, 9, 11])
@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_sample_once(samples, batch, processes):
    shares = [list(EvalBatches(samples, batch, p, processes)) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1  # as many batches everywhere
    assert len({len(keys) for share in shares for keys in share}) == 1  # of the same size
    counted = [key.index for share in shares for keys in share for key in keys if key.counts]
    assert sorted(counted) == list(range(samples))


def batches_of(workers, process=0, processes=1, first_update=0, epochs=(0, 1), batch=16):
    source = digits()[0]
    transform = train_transform(32, aa="rand-m9-mstd0.5-inc1", reprob=0.5, hflip=0.5)
    sampler = TrainBatches(200, batch, 1, process, processes, seed=7)
    loader = torch.utils.data.DataLoader(
        RecognitionDataset(source, transform, seed=7),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    seen = []
    for epoch in epochs:
        sampler.epoch, sampler.first_update = epoch, first_update
        seen += [(images.numpy(), labels.tolist()) for images, labels, _ in loader]
    return seen


def test_augmented_batches_do_not_depend_on_workers_processes_or_resume():
    expected = batches_of(0)
    assert len(expected) == 24 and not np.array_equal(expected[0][0], expected[12][0])
    for other in (batches_of(1), batches_of(3)):
        assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(expected, other, strict=True))
    halves = [batches_of(0, process, 2, batch=8) for process in range(2)]
    for whole, first, second in zip(expected, *halves, strict=True):
        assert np.array_equal(whole[0], np.concatenate([first[0], second[0]])) and whole[1] == first[1] + second[1]
    resumed = batches_of(1, first_update=5, epochs=(1,))
    assert len(resumed) == 7
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(expected[17:], resumed, strict=True))


def test_the_same_sample_is_augmented_anew_each_epoch():
    dataset = RecognitionDataset(digits()[0], train_transform(32, scale=(0.3, 1), reprob=1.0), seed=0)
    a, b, again = dataset[Key(5, 0)][0], dataset[Key(5, 1)][0], dataset[Key(5, 0)][0]
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert dataset[Key(5, 0, counts=False)][1] == -1
