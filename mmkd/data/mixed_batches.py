"""`MixedBatchSampler`: batches with a fixed ratio of labelled to unlabelled images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from mmengine.dataset import InfiniteSampler
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from mmkd.errors import UserError
from mmkd.functional.checks import is_number
from mmkd.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class MixedBatchSampler(BatchSampler):
    """Batches of several data sets in a fixed ratio; an epoch is one pass over the first.

    mmdet's `MultiSourceSampler` never stops, so an epoch-based loop never ends its first epoch. Here an epoch
    shows each image of the first data set once, as `DefaultSampler` does; the last batch is filled with
    repeated images. The other data sets continue in the next epoch where they stopped, and restart in another
    order when they are used up. Every batch of every process has the same number of images per data set. The
    images drawn depend only on the sampler's seed and epoch, so a resumed training continues with the same
    images.

    Use it as the loader's ``batch_sampler``; the ``sampler`` decides whether to shuffle. With an
    `InfiniteSampler`, for `IterBasedTrainLoop`, epochs repeat forever.

    Args:
        sampler: `DefaultSampler` or `InfiniteSampler` of a `ConcatDataset`, the labelled data first.
        batch_size: images per process.
        source_ratio: each data set's share of a batch, as in `MultiSourceSampler`: rounded down, the first
            data set gets the rest. A share of 0 leaves a data set out.

    Raises:
        UserError: the data set is not a `ConcatDataset` of the same length, one part is empty, or the batch
            is too small for the ratio.

    Example:
        Two labelled and six other images in each batch::

            train_dataloader = dict(
                batch_size=8,
                sampler=dict(type='DefaultSampler', shuffle=True),
                batch_sampler=dict(type='MixedBatchSampler', source_ratio=[1, 3]),
                dataset=dict(type='ConcatDataset', datasets=[labelled, unlabelled]))
    """

    def __init__(self, sampler: Any, batch_size: int, source_ratio: Sequence[float]) -> None:
        self.sampler: Any = sampler
        self.batch_size, self.source_ratio = batch_size, list(source_ratio)
        self.drop_last = False  # other code reads this from batch samplers
        parts: list[Any] = getattr(sampler.dataset, "datasets", [])
        if not hasattr(sampler.dataset, "cumulative_sizes") or len(parts) != len(self.source_ratio):
            raise UserError(
                "MixedBatchSampler needs one data set per number in source_ratio.",
                expected=f"a ConcatDataset of {len(self.source_ratio)} data sets, the labelled one first",
                found=f"{type(sampler.dataset).__name__} of {len(parts)}",
                remedy="set train_dataloader.dataset=dict(type='ConcatDataset', datasets=[labelled, "
                "unlabelled])",
            )
        self.counts = counts_of(self.source_ratio, batch_size)
        self.sizes = [len(part) for part in parts]
        self.starts = [0, *sampler.dataset.cumulative_sizes[:-1]]
        empty = [i for i, (count, size) in enumerate(zip(self.counts, self.sizes)) if count and not size]
        if empty:
            raise UserError(
                "MixedBatchSampler has an empty data set.",
                expected="at least one image in each data set, or source_ratio 0 for it",
                found=f"no images in data set {empty[0]}",
                remedy="check its files and filter_cfg",
            )

    def __len__(self) -> int:
        """The number of batches of this process in an epoch."""
        return math.ceil(self.sizes[0] / (self.counts[0] * self.sampler.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        epoch = getattr(self.sampler, "epoch", 0)
        yield from self._epoch(epoch)
        while isinstance(self.sampler, InfiniteSampler):
            epoch += 1
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[list[int]]:
        processes, rank = self.sampler.world_size, self.sampler.rank
        for step in range(len(self)):
            batch: list[int] = []
            for source, (count, size, start) in enumerate(zip(self.counts, self.sizes, self.starts)):
                if source == 0:
                    before, order = 0, epoch
                else:
                    before = epoch * len(self) * count * processes
                for number in range(count):
                    place = before + (step * count + number) * processes + rank
                    if source:
                        order = place // size
                    batch.append(start + int(self._order(source, order)[place % size]))
            yield batch

    def _order(self, source: int, number: int) -> NDArray[np.int64]:
        if not self.sampler.shuffle:
            return np.arange(self.sizes[source])
        return _shuffled(self.sizes[source], self.sampler.seed, source, number)


@lru_cache(maxsize=16)
def _shuffled(size: int, *key: int) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(size)


def counts_of(source_ratio: Sequence[float], batch_size: int) -> list[int]:
    """The number of images of each data set in a batch.

    Args:
        source_ratio: the data sets' shares, ≥ 0; the first is above 0.
        batch_size: images per process.

    Raises:
        UserError: a share is invalid, or a data set has a share but no place in the batch.

    Example:
        >>> counts_of([1, 3], 8)
        [2, 6]
    """
    right = all(is_number(share) and 0 <= share < math.inf for share in source_ratio)
    if not source_ratio or not right or source_ratio[0] == 0:
        raise UserError(
            "Invalid source_ratio.",
            expected="a number ≥ 0 for each data set, above 0 for the first",
            found=repr(source_ratio),
            remedy="for example source_ratio=[1, 3]",
        )
    counts = [int(batch_size * share / sum(source_ratio)) for share in source_ratio]
    counts[0] = batch_size - sum(counts[1:])
    if any(share and not count for share, count in zip(source_ratio, counts)):
        raise UserError(
            "The batch is too small for its source_ratio.",
            expected="at least one image of each data set in the batch of each process",
            found=f"batch_size={batch_size}, source_ratio={list(source_ratio)}, which gives {counts}",
            remedy="raise train_dataloader.batch_size, or change source_ratio",
        )
    return counts
