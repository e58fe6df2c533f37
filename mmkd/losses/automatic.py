"""`AutoWeight`: the weight of a distillation loss, chosen by the gradient that it sends to the neck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.functional.checks import is_number

AUTO = "auto"
# Better than 0.1 on a validation split, with one seed (configs/compare/bccd_shares.yaml).
DEFAULT_SHARE = 0.5
# Measure every 50 iterations after the first 50.
INTERVAL = 50
# How much of the running mean a measurement leaves in place. There are few, and a term's gradient often falls
# by half in the first tens of iterations: at 0.75 the share was half of what was asked for after 40.
_MOMENTUM = 0.5
# A measurement this many times above the running mean replaces it; one so far below counts no lower.
_JUMP = 4.0
# The unweighted gradient, by the task's, below which there is nothing to weigh.
_LEAST_RATIO = 1e-6


class AutoWeight(nn.Module):
    r"""The weight at which a term's gradient on the neck's output is a given share of the task's.

    .. math:: \lambda = \frac{s}{\exp \overline{\log r}}, \qquad
        r = \frac{\lVert \partial L_\mathrm{kd} / \partial f \rVert}
        {\lVert \partial L_\mathrm{task} / \partial f \rVert}

    with f the neck's output and the bar a running mean, corrected for its start, over measurements: in the
    iterations 0, 1, 2, 4, 8, 16, 32, then in every 50th. The first one is before the first weight is used.
    λ falls at once where r is more than four times its mean, and rises slowly: a measurement less than a
    quarter of the mean counts as a quarter. A term that has no gradient in an iteration (no objects) is not
    measured in it; until it has been, λ is 0. Nor is λ chosen so large that the term's value would be more
    than ten times its share of the task's: gradients are next to nothing where a head begins with zeros.

    Source: a target for the norms of gradients is GradNorm's, Chen et al., ICML 2018
    (https://arxiv.org/abs/1711.02257), which learns the weights by a loss of their own and equalises the
    rates of training. RT-DETRv4's GAM, Liao et al., 2025 (https://arxiv.org/abs/2510.25257), sets the weight
    of one feature loss after each epoch, such that the encoder's parameters receive a given percentage of
    all gradients (by their L1 norms, after clipping), and begins with a weight that its user gives. Pull
    request 304 of YOLO-Master aims at 10 % of the task's gradient. Here each term is measured by itself, from
    the first iteration, at the place where all terms and the task meet.

    Args:
        share: s > 0.

    Example:
        >>> auto = AutoWeight(share=0.1)
        >>> auto.observe(20.0)
        >>> round(auto.weight, 6)
        0.005
    """

    def __init__(self, share: float = DEFAULT_SHARE) -> None:
        super().__init__()
        self.share = share
        self.done = 0  # iterations with the term
        self.silent = 0  # measurements in a row without a gradient
        self._mean = self._mass = 0.0

    @property
    def measured(self) -> bool:
        """Whether there has been a gradient."""
        return self._mass > 0

    @property
    def due(self) -> bool:
        """Whether this iteration is measured."""
        if self.done < INTERVAL:
            return not self.measured or self.done & (self.done - 1) == 0
        return not self.measured or self.done % INTERVAL == 0

    @property
    def weight(self) -> float:
        """λ ≥ 0."""
        return self.share * math.exp(-self._mean) if self.measured else 0.0

    def observe(self, ratio: float) -> None:
        """Take in a measurement.

        Args:
            ratio: r ≥ 0, of the term at weight 1.
        """
        if ratio < _LEAST_RATIO:
            self.silent += 1
            return
        self.silent = 0
        found = math.log(ratio)
        if self.measured and found > self._mean + math.log(_JUMP):
            self._mass = 0.0
        elif self.measured:
            found = max(found, self._mean - math.log(_JUMP))
        self._mass = _MOMENTUM * self._mass + 1 - _MOMENTUM
        self._mean += (1 - _MOMENTUM) / self._mass * (found - self._mean)

    def get_extra_state(self) -> Tensor:
        """What a checkpoint keeps, float64."""
        return torch.tensor([self.done, self.silent, self._mean, self._mass], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        done, silent, self._mean, self._mass = state.tolist()
        self.done, self.silent = int(done), int(silent)


def split_shares(losses: Any) -> tuple[Any, dict[str, float]]:
    """Extract the automatic-weight options from the losses' configs.

    Args:
        losses: name → config.

    Returns:
        The configs with ``loss_weight=1.0`` in its place, and from such losses to their share.

    Raises:
        UserError: a weight is neither a number nor ``'auto'``, a share is no number above 0, or a loss has
            both a share and a number as its weight.
    """
    if not isinstance(losses, Mapping):
        return losses, {}
    plain, shares = {}, {}
    for name, cfg in losses.items():
        plain[name] = cfg
        if not isinstance(cfg, Mapping):
            continue
        weight, share = cfg.get("loss_weight", AUTO), cfg.get("share")
        if isinstance(weight, str) and weight != AUTO:
            raise UserError(
                f"distill.{name}: invalid loss_weight.",
                expected=f"a number ≥ 0, or {AUTO!r}",
                found=repr(weight),
                remedy="correct it, or remove it to use the loss's default",
            )
        if share is not None and weight != AUTO:
            raise UserError(
                f"distill.{name} has both a fixed loss_weight and a share, which implies an automatic "
                "weight.",
                expected=f"share={share!r} with loss_weight={AUTO!r} or no loss_weight, or only loss_weight",
                found=f"loss_weight={weight!r}, share={share!r}",
                remedy=f"set loss_weight={AUTO!r}, or remove share",
            )
        if share is not None and not (is_number(share) and 0 < share < math.inf):
            raise UserError(
                f"distill.{name}: invalid share.",
                expected=f"a number above 0, like {DEFAULT_SHARE}: the ratio of the term's gradient to the "
                "task's",
                found=repr(share),
                remedy="correct it; to disable the loss, set loss_weight=0",
            )
        if share is not None or cfg.get("loss_weight") == AUTO:
            shares[name] = DEFAULT_SHARE if share is None else float(share)
            plain[name] = {**{key: value for key, value in cfg.items() if key != "share"}, "loss_weight": 1.0}
    return plain, shares
