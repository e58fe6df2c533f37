"""`Turns`: the training iterations that a loss takes part in, if its teacher is not asked in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Turns(nn.Module):
    r"""Counts training iterations; the loss is computed in the first and then in every k-th one.

    There it counts k-fold, so its mean gradient is that of a loss computed in each iteration.

    Source: lazy regularization, Karras et al., CVPR 2020 (https://arxiv.org/abs/1912.04958, section 3.1),
    where the regulariser of a GAN is computed once in 16 iterations, at 16 times its weight.

    Args:
        every: k ≥ 1.

    Example:
        >>> turns = Turns(2)
        >>> for turns.done in range(4):
        ...     print(turns.due, end=" ")
        True False True False
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.done = 0  # training iterations so far

    @property
    def due(self) -> bool:
        """Whether the loss is computed in this iteration."""
        return self.done % self.every == 0

    def get_extra_state(self) -> Tensor:
        """The state for checkpoints, int64."""
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state from a checkpoint."""
        self.done = int(state)


def end_iteration(losses: dict[str, Any], terms: Mapping[str, Any]) -> dict[str, Any]:
    """Weigh the terms that are not computed in every iteration, and count the iteration.

    Args:
        losses: of the student and all terms.
        terms: the terms by name.
    """
    for name, term in terms.items():
        if term.turns is not None:
            losses = {**losses, f"loss_kd_{name}": losses[f"loss_kd_{name}"] * term.turns.every}
            term.turns.done += torch.is_grad_enabled()
    return losses
