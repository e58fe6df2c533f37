from __future__ import annotations

import itertools
from typing import Any

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler

from mmkd.data.mixed_batches import MixedBatchSampler, counts_of
from mmkd.errors import UserError


class Joined:
    """A `ConcatDataset` of as many samples each."""

    def __init__(self, *sizes: int) -> None:
        self.datasets = [range(size) for size in sizes]
        self.cumulative_sizes = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]


def sampler(sizes: tuple[int, ...], *, rank: int = 0, world: int = 1, **options: Any) -> Any:
    inner = DefaultSampler(Joined(*sizes), seed=3, shuffle=options.pop("shuffle", True))
    inner.rank, inner.world_size = rank, world
    return MixedBatchSampler(inner, **{"batch_size": 4, "source_ratio": [1, 1], **options})


def epochs(one: Any, *numbers: int) -> list[list[int]]:
    found = []
    for number in numbers:
        one.sampler.set_epoch(number)
        found += list(one)
    return found


def test_an_epoch_is_one_pass_over_the_labelled_data() -> None:
    one = sampler((7, 30))
    for epoch in range(3):
        batches = epochs(one, epoch)
        assert len(batches) == len(one) == 4
        labelled = [index for batch in batches for index in batch[:2]]
        assert sorted(labelled[:7]) == list(range(7))
        assert labelled[7] == labelled[0], "the last batch is filled up"
        assert all(7 <= index < 37 for batch in batches for index in batch[2:])


def test_unlabelled_data_go_on_over_epochs() -> None:
    drawn = [i for batch in epochs(sampler((6, 20)), *range(20)) for i in batch[2:]]
    passes = [drawn[start : start + 20] for start in range(0, 120, 20)]
    assert all(sorted(one) == list(range(6, 26)) for one in passes)
    assert passes[0] != passes[1]


def test_an_epoch_is_the_same_whatever_was_drawn_before() -> None:
    """So a resumed training draws what the whole one would."""
    assert epochs(sampler((7, 30)), 0, 1, 2)[8:] == epochs(sampler((7, 30)), 2)
    other = sampler((7, 30))
    other.sampler.seed = 4
    assert epochs(other, 2) != epochs(sampler((7, 30)), 2)


def test_processes_share_an_epoch_and_each_has_both_kinds() -> None:
    whole = sampler((16, 30), batch_size=8)
    parts = [sampler((16, 30), batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert [len(one) for one in (whole, *parts)] == [4, 4, 4]
    for epoch in range(4):
        for batch, *halves in zip(
            epochs(whole, epoch), *(epochs(part, epoch) for part in parts), strict=True
        ):
            assert sorted(batch) == sorted(index for half in halves for index in half)
            assert all([index < 16 for index in half] == [True, True, False, False] for half in halves)


def test_without_shuffling_they_come_in_their_order() -> None:
    assert epochs(sampler((2, 5), shuffle=False), 0, 1) == [[0, 1, 2, 3], [0, 1, 4, 5]]


def test_of_an_infinite_sampler_there_is_no_end() -> None:
    endless = MixedBatchSampler(InfiniteSampler(Joined(7, 30), seed=3), 4, [1, 1])
    assert list(itertools.islice(endless, 12)) == epochs(sampler((7, 30)), 0, 1, 2)


def test_the_ratio_is_as_in_mmdet() -> None:
    from mmdet.datasets.samplers import MultiSourceSampler

    for ratio, size in (([1, 4], 5), ([1, 3], 8), ([2, 1], 4), ([1, 1, 2], 9)):
        theirs = MultiSourceSampler(Joined(*[50] * len(ratio)), size, ratio, seed=0)
        assert counts_of(ratio, size) == theirs.num_per_source
    assert counts_of([1, 0], 4) == [4, 0]
    assert len(sampler((7, 0), source_ratio=[1, 0])) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_ratio": [8, 1]}, r"too small[\s\S]*\[4, 0\]"),
        ({"source_ratio": [0, 1]}, "Invalid source_ratio"),
        ({"source_ratio": [1, -1]}, "Invalid source_ratio"),
        ({"source_ratio": ["1", 1]}, "Invalid source_ratio"),
        ({"source_ratio": [1, 1, 1]}, "one data set per number"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler((4, 4), **options)


def test_data_to_draw_from_are_needed() -> None:
    with pytest.raises(UserError, match="an empty data set"):
        sampler((4, 0))
    with pytest.raises(UserError, match="one data set per number"):
        MixedBatchSampler(DefaultSampler(range(4), seed=0), 4, [1, 1])
