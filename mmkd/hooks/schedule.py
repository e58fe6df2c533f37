"""Weights of distillation losses that change during training."""

from __future__ import annotations

import math
from typing import Any, Literal

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd.balance import scalar_name
from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_choice, check_number, check_whole, is_number
from mmkd.losses import DistillLoss
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped

Kind = Literal["constant", "linear", "cosine"]


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    r"""Set the ``loss_weight`` of distillation losses before each training iteration.

    It becomes :math:`\lambda f(i)`, where λ is the weight in the config, or the automatic one, and i the
    number of completed iterations. With w iterations of warm-up, e the iteration where the decay ends (at
    ``stop_epoch``, or the end of training) and :math:`p = \frac{i - w}{e - w}`

    .. math::

        f(i) = \begin{cases}
            \mathrm{start} \cdot i / w & i < w \\
            \mathrm{start} & \text{constant} \\
            \mathrm{start} + p \, (\mathrm{end} - \mathrm{start}) & \text{linear} \\
            \mathrm{end} + \tfrac{1 + \cos \pi p}{2} (\mathrm{start} - \mathrm{end}) & \text{cosine}
        \end{cases}

    and 0 from ``stop_epoch`` on. At 0 a term is not computed; if all are 0 the teacher does not run.

    f depends only on the position in the training, so a resumed run continues exactly. The log has the
    weights λf(i) as ``kd_weight_<term>``. After training they keep their last values.

    Args:
        term: name in ``model.distill``; ``None`` for all. Several hooks may schedule different terms.
        kind: ``'constant'``, ``'linear'`` or ``'cosine'``.
        warmup: w ≥ 0; a float below 1 is a fraction of all iterations.
        start: f at the end of the warm-up, ≥ 0.
        end: f at the end of the decay, ≥ 0; ignored if ``kind='constant'``.
        stop_epoch: the first epoch (from 0) without the term. Not available with `IterBasedTrainLoop`.

    Raises:
        UserError: an option is out of its range; before training, the term does not exist, another hook
            already schedules it, or ``stop_epoch`` is used without epochs or falls within the warm-up.
    """

    priority = "NORMAL"

    def __init__(
        self,
        term: str | None = None,
        kind: Kind = "constant",
        warmup: int | float = 0,
        start: float = 1.0,
        end: float = 0.0,
        stop_epoch: int | None = None,
    ) -> None:
        if term is not None and not isinstance(term, str):
            raise UserError(f"DistillScheduleHook: term must be a name or None, found {term!r}")
        with naming(self):
            check_choice("kind", kind, Kind)
            check_number("[0, inf)", start=start, end=end)
            if stop_epoch is not None:
                check_whole(0, stop_epoch=stop_epoch)
        if not (is_number(warmup) and (0 <= warmup < 1 or (1 <= warmup < math.inf and warmup % 1 == 0))):
            raise UserError(
                f"DistillScheduleHook: warmup must be iterations or a fraction below 1, found {warmup!r}"
            )
        self.term = term
        self.kind = kind
        self.warmup = warmup
        self.start = start
        self.end = end
        self.stop_epoch = stop_epoch
        # Per term, the weight in the config.
        self.base: dict[str, float] = {}

    def factor(self, done: int, total: int, stop: int | None = None) -> float:
        """f(i), ≥ 0.

        Args:
            done: i, the number of completed iterations.
            total: the number of iterations of the training.
            stop: the iteration at which ``stop_epoch`` starts.
        """
        if stop is not None and done >= stop:
            return 0.0
        warm = self.warmup_iterations(total)
        if done < warm:
            return self.start * done / warm
        if self.kind == "constant":
            return self.start
        until = total if stop is None else min(stop, total)
        progress = min(1.0, (done - warm) / max(1, until - warm))
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + progress * (self.end - self.start)

    def warmup_iterations(self, total: int) -> int:
        """w, for this number of training iterations."""
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def before_train(self, runner: Runner) -> None:
        """Find the terms, and save their weights before the first change."""
        terms = distill_terms(runner.model, "DistillScheduleHook")
        if self.term is not None and self.term not in terms:
            raise UserError(
                "DistillScheduleHook: unknown distillation loss.",
                expected=f"term, one of: {', '.join(sorted(terms))}",
                found=self.term,
                remedy="correct the name, or remove it to schedule all losses",
            )
        chosen = list(terms) if self.term is None else [self.term]
        for other in runner.hooks:
            if other is self:
                break
            if isinstance(other, DistillScheduleHook) and set(other.base) & set(chosen):
                raise UserError(
                    "Two DistillScheduleHooks schedule the same distillation loss.",
                    expected="one hook per term",
                    found=", ".join(sorted(set(other.base) & set(chosen))) + " served twice",
                    remedy="give each hook its own term",
                )
        self._check_stop(runner)
        self.base = {name: self.base.get(name, terms[name].loss_weight) for name in chosen}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the weights of this iteration."""
        factor = self.factor(runner.iter, runner.max_iters, self._stop_iteration(runner))
        terms = distill_terms(runner.model, "DistillScheduleHook")
        for name, base in self.base.items():
            terms[name].loss_weight = base * factor
            if terms[name].auto is None:  # otherwise the detector logs the product of both
                runner.message_hub.update_scalar(f"train/kd_weight_{scalar_name(name)}", base * factor)

    def _stop_iteration(self, runner: Runner) -> int | None:
        if self.stop_epoch is None:
            return None
        # By epoch number, so that an epoch of another length after a resume makes no difference.
        if runner.epoch >= self.stop_epoch:
            return 0
        return max(runner.iter + 1, self.stop_epoch * len(runner.train_dataloader))

    def _check_stop(self, runner: Runner) -> None:
        if self.stop_epoch is None:
            return
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise UserError(
                "DistillScheduleHook: stop_epoch needs an epoch-based training loop.",
                expected="EpochBasedTrainLoop with stop_epoch",
                found=type(runner.train_loop).__name__,
                remedy="remove stop_epoch; with end=0, a linear or cosine decay ends at the last iteration",
            )
        warm, stop = self.warmup_iterations(runner.max_iters), self._stop_iteration(runner)
        if runner.epoch < self.stop_epoch and stop is not None and stop < warm:
            raise UserError(
                "DistillScheduleHook: stop_epoch is before the end of warm-up.",
                expected=f"a warm-up of at most {stop} iterations, the start of stop_epoch={self.stop_epoch}",
                found=f"{warm} iterations",
                remedy="shorten warmup, or stop later",
            )


def distill_terms(model: Any, asking: str) -> dict[str, DistillLoss]:
    """The distillation losses of a model, wrapped or not, by name.

    Args:
        model: the runner's model.
        asking: the hook that needs them, for the message.

    Raises:
        UserError: the model has no distillation losses.
    """
    model = unwrapped(model)
    terms = getattr(model, "distill", None)
    if not terms:
        raise UserError(
            f"{asking} needs a distilled model.",
            expected="a model with distillation losses, like KDSingleStageDetector",
            found=type(model).__name__,
            remedy="remove the hook from custom_hooks",
        )
    return dict(terms.items())
