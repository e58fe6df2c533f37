"""W&B's early stopping of poor runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmkd.errors import UserError


@dataclass(frozen=True)
class Hyperband:
    """Stop a run that is not among the best 1/η at a band.

    The rule of W&B's hosted controller, taken from its open-source package (https://github.com/wandb/sweeps,
    ``hyperband_stopping.py``): it counts the metric's logged values from zero, so band b looks at the value
    logged after b others. A band's threshold is the value at position ``int(count / η)`` among all runs that
    have reached it, best first; a run is stopped if its value at the last band it reached is worse.
    After Li et al., "Hyperband", 2018 (https://arxiv.org/abs/1603.06560).

    Attributes:
        bands: counts of logged values, ascending.
        eta: η > 1; 1/η of the runs pass a band.
        maximize: whether a larger value is better.
    """

    bands: tuple[int, ...]
    eta: float
    maximize: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], maximize: bool) -> Hyperband:
        """Create it from a sweep file's ``early_terminate`` entry.

        Raises:
            UserError: W&B would not accept the entry.
        """
        eta = config.get("eta", 3)
        if config.get("type") != "hyperband" or eta <= 1 or not ({"min_iter", "max_iter"} & set(config)):
            raise UserError(
                "Invalid `early_terminate`.",
                expected="{type: hyperband, min_iter: 8, eta: 2} or {type: hyperband, max_iter: 27, s: 2}",
                found=str(dict(config)),
                remedy="correct or remove it",
            )
        if "max_iter" in config:
            counts = [config["max_iter"] / eta**i for i in range(1, int(config.get("s", 1)) + 1)]
        else:
            counts = [config["min_iter"] * eta**i for i in range(100)]
        bands = tuple(sorted({int(count) for count in counts if count >= 1}))
        return cls(bands, eta, maximize)

    def should_stop(self, values: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Whether to stop a run with these logged values.

        Args:
            values: the run's values, in logged order.
            others: the values of all other runs of the sweep, finished or not.
        """
        reached = [band for band in self.bands if band < len(values)]
        if not reached:
            return False
        band, sign = reached[-1], -1 if self.maximize else 1
        at_band = sorted(sign * run[band] for run in [values, *others] if len(run) > band)
        return sign * values[band] > at_band[int(len(at_band) / self.eta)]
