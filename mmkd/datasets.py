"""A fraction of any data set, for quick trials."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkd.errors import user_error
from mmkd.registry import DATASETS


@DATASETS.register_module(name="FractionOfDataset")
def fraction_of_dataset(dataset: dict[str, Any], fraction: float) -> Any:
    """Build a data set and keep evenly spaced samples of it.

    Args:
        dataset: config of a data set of mmengine's `BaseDataset` kind.
        fraction: in (0, 1); at least one sample is kept.

    Returns:
        The data set itself, shortened.

    Raises:
        UserError: the fraction is out of its range.
    """
    if not 0 < fraction < 1:
        raise user_error(
            "`indices` as a fraction of a data set is out of its range.",
            expected="a number between 0 and 1, or a whole number of samples",
            found=str(fraction),
            remedy="for example train_dataloader.dataset.indices=0.1",
        )
    built = DATASETS.build(dataset)
    kept = max(1, round(fraction * len(built)))
    built.get_subset_(np.linspace(0, len(built) - 1, kept).round().astype(int).tolist())
    return built
