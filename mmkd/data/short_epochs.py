"""`ShortEpochs`: epochs of a few batches, for trainings with a fraction of the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_whole
from mmkd.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ShortEpochs(BatchSampler):
    """Epochs of a given number of batches, each starting where the last one ended.

    So a training can run a tenth of its iterations with all of its epochs: everything counted in epochs
    (schedules, hooks, ``stop_epoch``) keeps its place, and every image is eventually used. The images drawn
    depend only on the sampler's seed and epoch, so a resumed training continues with the same images.

    Use it as the loader's ``batch_sampler``, with `EpochBasedTrainLoop`.

    Args:
        sampler: a sampler with ``set_epoch``, such as `DefaultSampler`.
        batch_size: images per process.
        batches: batches per epoch, ≥ 1.
        of: config of the batch sampler whose epochs to shorten; ``None`` for plain batches.
        drop_last: for plain batches, whether to drop an incomplete batch at the end of the data.

    Raises:
        UserError: ``batches`` is out of its range, or the sampler has no epochs.

    Example:
        Ten iterations in each epoch::

            train_dataloader = dict(
                batch_size=8,
                sampler=dict(type='DefaultSampler', shuffle=True),
                batch_sampler=dict(type='ShortEpochs', batches=10),
                dataset=data)
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        batches: int,
        of: Mapping[str, Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        with naming(self):
            check_whole(1, batches=batches)
        if not hasattr(sampler, "set_epoch"):
            raise UserError(
                "ShortEpochs needs a sampler that counts epochs.",
                expected="a sampler with set_epoch, like DefaultSampler",
                found=type(sampler).__name__,
                remedy="with IterBasedTrainLoop, lower train_cfg.max_iters instead",
            )
        self.sampler: Any = sampler
        self.batch_size, self.drop_last, self.batches = batch_size, drop_last, batches
        options = {"sampler": sampler, "batch_size": batch_size}
        self.inner: Any = (
            BatchSampler(**options, drop_last=drop_last)
            if of is None
            else DATA_SAMPLERS.build({**of}, default_args=options)
        )

    def __len__(self) -> int:
        """The number of batches of this process in an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, left = self.sampler.epoch, self.batches
        number, skipped = divmod(epoch * self.batches, max(1, len(self.inner)))
        while left and len(self.inner):
            self.sampler.set_epoch(number)
            for batch in islice(self.inner, skipped, skipped + left):
                self.sampler.set_epoch(epoch)  # it was read when this pass started
                yield batch
                left -= 1
            number, skipped = number + 1, 0
