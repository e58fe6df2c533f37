"""Training samples whose random numbers depend only on their position in the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from mmkd.errors import UserError


class SampleError(UserError):
    """A training sample cannot be loaded."""


class Keyed(int):
    """A sample's index together with the key of its random numbers."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> Keyed:  # noqa: D102
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:  # type: ignore[override]
        return int(self), self.key


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and torch (and its device, once in use) with a key of any length."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    # Not torch.manual_seed: before CUDA is in use, it only queues up calls for later.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class KeyedBatches:
    """A batch sampler that gives every index its key: seed, pass over the data, position in it.

    The position counts the samples of all processes, so the random numbers do not depend on the number of
    processes and workers.

    Args:
        batches: the batch sampler.
        seed: the training's seed.
        rank: this process's rank.
        world_size: the number of processes.
        number: returns the number of the pass that starts; by default passes are counted.
        passed: returns how many of this process's samples ``batches`` skips; by default none.
    """

    def __init__(
        self,
        batches: Any,
        seed: int,
        rank: int,
        world_size: int,
        number: Callable[[], int] | None,
        passed: Callable[[], int] | None = None,
    ) -> None:
        self.batches, self.seed, self.rank, self.world_size = batches, seed, rank, world_size
        self.number, self.passed = number or count().__next__, passed or int

    def __iter__(self) -> Iterator[list[Any]]:
        number = self.number()
        places = count(self.rank + self.passed() * self.world_size, self.world_size)
        for batch in self.batches:
            yield [Keyed(index, (self.seed, number, next(places))) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


class SeededDataset:
    """A dataset that seeds itself with the key of each index, and names a sample that fails.

    Everything else, including setting attributes, is passed to the dataset.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)["dataset"] = dataset

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, Keyed):
            seed_everything(*index.key)
        try:
            return self.dataset[int(index)]
        except Exception as error:
            raise _explained(self.dataset, int(index), error) from error

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not set yet during unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


def _explained(dataset: Any, index: int, error: Exception) -> UserError:
    try:
        name = dataset.get_data_info(index)["img_path"]
    except Exception:  # another kind of dataset, or the cause of the error
        name = f"number {index}"
    return SampleError(
        f"Cannot load training sample {name}.",
        expected="a sample that the pipeline can load and transform",
        found=f"{type(error).__name__}: {error}",
        remedy="restore the file or correct the annotation, then use --resume",
    )


def plain_reason(error: BaseException) -> str:
    """The message of an error, without the traceback that a worker process adds."""
    return str(error).rpartition(f"{SampleError.__name__}: ")[2]
