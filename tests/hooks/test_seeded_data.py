from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from mmkd.hooks.seeded_data import (
    Keyed,
    KeyedBatches,
    SampleError,
    SeededDataset,
    plain_reason,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Random:
    """Draws from all three generators."""

    extra = 1

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        if index == 3:
            raise FileNotFoundError("no such image")
        return draw()

    def get_data_info(self, index: int) -> dict[str, str]:
        return {"img_path": f"images/{index}.jpg"}


def test_the_key_is_all_that_counts() -> None:
    seed_everything(1, 2, 3)
    first = draw()
    seed_everything(1, 2, 3)
    assert draw() == first
    others = set()
    for key in ((1, 2, 4), (2, 1, 3), (1, 2), (0, 0, 0), (2**40, 0, 1)):
        seed_everything(*key)
        others.add(draw())
    assert len(others | {first}) == 6


def test_an_index_with_a_key_is_an_index() -> None:
    index = Keyed(2, (7, 8))
    assert [10, 11, 12][index] == 12
    for same in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert (same, same.key) == (2, (7, 8))


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_that_begin_later_have_the_keys_they_would_have(rank: int) -> None:
    indices = [[4, 0], [3, 1], [2, 5]]
    whole = list(KeyedBatches(indices, 7, rank, 2, None))
    later = list(KeyedBatches(indices[1:], 7, rank, 2, None, passed=lambda: 2))
    assert [[index.key for index in batch] for batch in later] == [[i.key for i in b] for b in whole[1:]]
    assert whole[1][0].key == (7, 0, 4 + rank)


def test_a_sample_is_the_same_wherever_it_is_drawn() -> None:
    data = SeededDataset(Random())
    first = data[Keyed(0, (1, 1))]
    draw()
    assert data[Keyed(0, (1, 1))] == first
    assert data[Keyed(0, (1, 2))] != first
    assert data[0] != data[0], "without a key nothing is seeded"


def test_everything_else_is_the_datasets_affair() -> None:
    inner = Random()
    data = SeededDataset(inner)
    assert len(data) == 4
    data.extra = 5
    assert (inner.extra, data.extra) == (5, 5)
    assert pickle.loads(pickle.dumps(data)).extra == 5
    with pytest.raises(AttributeError):
        data.missing  # noqa: B018


@pytest.mark.parametrize("workers", [0, 1])
def test_which_sample_fails(workers: int) -> None:
    loader = torch.utils.data.DataLoader(SeededDataset(Random()), batch_size=4, num_workers=workers)
    with pytest.raises(SampleError) as failed:
        list(loader)
    reason = plain_reason(failed.value)
    assert reason.startswith("Cannot load training sample images/3.jpg.")
    assert "FileNotFoundError: no such image" in reason
    assert "Traceback" not in reason


@pytest.mark.slow
def test_places_do_not_depend_on_the_number_of_processes() -> None:
    order = [3, 1, 2, 0, 5, 4, 7, 6]

    def keys(world_size: int, batch_size: int) -> dict[int, tuple[int, ...]]:
        found = {}
        for rank in range(world_size):
            sampler = order[rank::world_size]
            batches = torch.utils.data.BatchSampler(sampler, batch_size, False)
            keyed = KeyedBatches(batches, 9, rank, world_size, lambda: 6)
            assert (len(keyed), keyed.batch_size) == (len(batches), batch_size)
            found.update({int(index): index.key for batch in keyed for index in batch})
        return found

    assert keys(1, 4) == keys(2, 2) == keys(4, 1)
    assert keys(1, 4)[3] == (9, 6, 0)
    assert len(set(keys(1, 4).values())) == 8


def test_passes_are_counted_where_nothing_tells_them() -> None:
    keyed = KeyedBatches([[0, 1]], 9, 0, 1, None)
    assert [[index.key for batch in keyed for index in batch] for _ in range(2)] == [
        [(9, 0, 0), (9, 0, 1)],
        [(9, 1, 0), (9, 1, 1)],
    ]
