from __future__ import annotations

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset, SequentialSampler

from mmkd import UserError
from mmkd.data import ShortEpochs


def epochs_of(loader: ShortEpochs, count: int) -> list[list[list[int]]]:
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def test_short_epochs_go_through_the_data_and_begin_anew() -> None:
    short = ShortEpochs(DefaultSampler(range(10), seed=3), 2, 2)
    assert len(short) == 2
    epochs = epochs_of(short, 5)
    assert [len(epoch) for epoch in epochs] == [2, 2, 2, 2, 2]
    drawn = [index for epoch in epochs for batch in epoch for index in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    short.sampler.set_epoch(3)
    assert list(short) == epochs[3], "an epoch depends on nothing but its number"
    assert short.sampler.epoch == 3


def test_an_epoch_longer_than_the_data() -> None:
    (epoch,) = epochs_of(ShortEpochs(DefaultSampler(range(4), shuffle=False, seed=0), 2, 5), 1)
    assert epoch == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]


def test_incomplete_batches_and_no_data() -> None:
    sampler = DefaultSampler(range(5), shuffle=False, seed=0, round_up=False)
    assert next(iter(epochs_of(ShortEpochs(sampler, 2, 3), 1)))[-1] == [4]
    assert next(iter(epochs_of(ShortEpochs(sampler, 2, 3, drop_last=True), 1)))[-1] == [0, 1]
    assert epochs_of(ShortEpochs(DefaultSampler(range(0), seed=0), 2, 3), 1) == [[]]


def test_another_batch_sampler_keeps_its_mix() -> None:
    data = ConcatDataset([range(8), range(8, 40)])  # type: ignore[list-item]
    of = {"type": "MixedBatchSampler", "source_ratio": [1, 1]}
    short = ShortEpochs(DefaultSampler(data, seed=0), 4, 3, of)
    batches = [batch for epoch in epochs_of(short, 4) for batch in epoch]
    assert all([index < 8 for index in batch] == [True, True, False, False] for batch in batches)
    assert sorted(index for batch in batches[:4] for index in batch[:2]) == list(range(8))


def test_a_loader_is_built_with_it() -> None:
    loader = {
        "batch_size": 2,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "batch_sampler": {"type": "ShortEpochs", "batches": 3},
        "dataset": [{"inputs": index} for index in range(20)],
    }
    assert len(list(Runner.build_dataloader(loader, seed=0))) == 3


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="whole number ≥ 1, found 0"):
        ShortEpochs(DefaultSampler(range(4), seed=0), 2, 0)
    with pytest.raises(UserError, match="SequentialSampler"):
        ShortEpochs(SequentialSampler(range(4)), 2, 2)
