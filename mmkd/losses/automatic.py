"""`AutoWeight`: sets a distillation loss's weight from its gradient at the neck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.functional.checks import is_number
from mmkd.registry import class_of

AUTO = "auto"
# Of losses without a `default_share` of their own. Better than 0.1 on a validation split with each of three
# seeds (configs/compare/bccd_shares.yaml); for class logits better than 4 (*_methods_shares.yaml there).
DEFAULT_SHARE = 0.5
# Measure every 50 iterations after the first 50.
INTERVAL = 50
# How much of the running mean a new measurement keeps. Measurements are rare, and a term's gradient often
# halves within the first tens of iterations: at 0.75 the share was half of its target after 40 iterations.
_MOMENTUM = 0.5
# A measurement this many times above the running mean replaces it; one that far below is clipped.
_JUMP = 4.0
# Below this ratio to the task's gradient, the term has no gradient to weigh.
_LEAST_RATIO = 1e-6


class AutoWeight(nn.Module):
    r"""The weight at which a term's gradient on the neck's output is a given share of the task's.

    .. math:: \lambda = \frac{s}{\exp \overline{\log r}}, \qquad
        r = \frac{\lVert \partial L_\mathrm{kd} / \partial f \rVert}
        {\lVert \partial L_\mathrm{task} / \partial f \rVert}

    f is the neck's output. The bar is a bias-corrected running mean over measurements, taken in iterations 0,
    1, 2, 4, 8, 16, 32 and then every 50th; the first one precedes the first use of the weight. λ drops at
    once when r exceeds four times its mean, and rises slowly: a measurement below a quarter of the mean
    counts as a quarter. An iteration in which the term has no gradient (no objects) is not measured; λ is 0
    until the first measurement. λ is also capped so that the term's value stays within ten times its share of
    the task's loss: gradients almost vanish where a head starts from zero weights.

    Source: GradNorm, Chen et al., ICML 2018 (https://arxiv.org/abs/1711.02257), introduced targets for
    gradient norms; it learns the weights with a separate loss and equalises training rates. RT-DETRv4's GAM,
    Liao et al., 2025 (https://arxiv.org/abs/2510.25257), starts from a weight given by the user and sets the
    weight of one feature loss after each epoch, so that the encoder's parameters receive a given percentage
    of all gradients (L1 norms, after clipping). Pull request 304 of YOLO-Master aims at 10 % of the task's
    gradient. Here each term is measured separately, from the first iteration, where all terms and the task
    meet.

    Args:
        share: s > 0, the target ratio of the gradients.

    Example:
        >>> auto = AutoWeight(share=0.1)
        >>> auto.observe(20.0)
        >>> round(auto.weight, 6)
        0.005
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.done = 0  # iterations with the term
        self.silent = 0  # measurements in a row without a gradient
        self._mean = self._mass = 0.0

    @property
    def measured(self) -> bool:
        """Whether a gradient has been measured."""
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
        """Update the running mean with a measurement.

        Args:
            ratio: r ≥ 0, for the term at weight 1.
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
        """The state for checkpoints, float64."""
        return torch.tensor([self.done, self.silent, self._mean, self._mass], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state from a checkpoint."""
        done, silent, self._mean, self._mass = state.tolist()
        self.done, self.silent = int(done), int(silent)


def split_shares(losses: Any) -> tuple[Any, dict[str, float]]:
    """Extract the automatic-weight options from the losses' configs.

    Args:
        losses: name → config.

    Returns:
        The configs with ``loss_weight=1.0`` for losses with an automatic weight, and the share of each such
        loss.

    Raises:
        UserError: a weight is neither a number nor ``'auto'``, a share is not a number above 0, or a loss has
            both a share and a fixed weight.
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
        kind = class_of(cfg)
        automatic = "loss_weight" not in cfg and getattr(kind, "auto_by_default", False)
        if share is not None or automatic or cfg.get("loss_weight") == AUTO:
            shares[name] = float(getattr(kind, "default_share", DEFAULT_SHARE) if share is None else share)
            plain[name] = {**{key: value for key, value in cfg.items() if key != "share"}, "loss_weight": 1.0}
    return plain, shares
