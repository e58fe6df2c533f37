"""Measure the effect of each distillation loss on the student during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd.balance import Call, measure_balance, recorded_calls, scalar_name, suggested_weight
from mmkd.errors import naming
from mmkd.functional.checks import check_number, check_whole
from mmkd.hooks.schedule import DistillScheduleHook, distill_terms
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped

# This many consecutive measurements are no coincidence.
_IN_A_ROW = 3


@HOOKS.register_module()
class DistillMonitorHook(Hook):
    r"""Log size and direction of each distillation loss's gradient on the student.

    With g the gradient of a loss with respect to the neck's output maps, over the whole batch of all
    processes, it logs every ``interval`` iterations

    - ``kd_ratio_<term>``: :math:`\lVert g_\mathrm{kd} \rVert / \lVert g_\mathrm{task} \rVert`, at the term's
      current weight;
    - ``kd_cosine_<term>``: the cosine between the two, in [−1, 1]; below 0 the term works against the task;
    - ``kd_agreement``: among the priors outside the padding with a highest teacher class score above 0.3, the
      fraction where teacher and student predict the same class, in [0, 1]. Only if a loss reads the teacher's
      class logits.

    A term is reported once if its ratio is above ``drown``, or below 1 / ``drown``, in three consecutive
    measurements: then either the term or the task has almost no effect. The report suggests the weight with
    ratio 1, a starting point rather than an optimum. With `DistillScheduleHook` it refers to the weight in
    the config, not the current one. Terms with an automatic weight are not reported.

    The gradients come from the training's own forward pass, without a second one; weights, statistics and
    random numbers are the same as without the hook. An iteration with a measurement costs one more backward
    pass through the head for each term, and one for the task.

    Args:
        interval: iterations between measurements, > 0.
        drown: the ratio above which a term is reported, > 1.

    Raises:
        UserError: an option is out of its range, or the model is not distilled.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 50, drown: float = 10.0) -> None:
        with naming(self):
            check_whole(1, interval=interval)
            check_number("(1, inf)", drown=drown)
        self.interval = interval
        self.drown = drown
        self._watch = ExitStack()
        self._due = False
        # Per term, consecutive measurements with a ratio too high (above 0) or too low (below 0).
        self._in_a_row: dict[str, int] = {}
        self._reported: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Check that the model has distillation losses."""
        distill_terms(runner.model, "DistillMonitorHook")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Watch this iteration's forward pass if it is due."""
        # With `teacher.every` it stays due until an iteration with losses to measure.
        self._due = self._due or self.every_n_train_iters(runner, self.interval)
        if not self._due:
            return
        model = unwrapped(runner.model)
        calls = self._watch.enter_context(recorded_calls(distill_terms(model, "DistillMonitorHook")))
        parse_losses: Callable[[dict[str, Any]], Any] = model.parse_losses

        def measure_and_parse(losses: dict[str, Any]) -> Any:
            parsed = parse_losses(losses)  # first, because it stops at non-finite losses
            if calls:
                self._due = False
                self._measure(runner, losses, calls)
            return parsed

        # Set on the object only, so that removing it restores the class's method.
        vars(model)["parse_losses"] = measure_and_parse
        self._watch.callback(vars(model).pop, "parse_losses", None)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Stop watching."""
        self._watch.close()

    def after_run(self, runner: Runner) -> None:
        """Stop watching, also after an iteration that did not finish."""
        self._watch.close()

    def _measure(self, runner: Runner, losses: Mapping[str, Any], calls: Mapping[str, Call]) -> None:
        terms = list(unwrapped(runner.model).distill)
        balance = measure_balance(losses, calls, terms, _loss_scale(runner))
        if balance is None:
            return
        log: dict[str, float] = {}
        for name, ratio in balance.ratios.items():
            log[f"kd_ratio_{scalar_name(name)}"] = ratio
            if name in balance.cosines:
                log[f"kd_cosine_{scalar_name(name)}"] = balance.cosines[name]
            if unwrapped(runner.model).distill[name].auto is None:
                self._judge(runner, name, ratio)
        if balance.agreement is not None:
            log["kd_agreement"] = balance.agreement
        for key, value in log.items():
            runner.message_hub.update_scalar(f"train/{key}", value)

    def _judge(self, runner: Runner, name: str, ratio: float) -> None:
        weight = unwrapped(runner.model).distill[name].loss_weight
        configured = _configured_weight(runner, name, weight)
        ratio *= configured / weight
        side = 1 if ratio > self.drown else -1 if ratio < 1 / self.drown else 0
        before = self._in_a_row.get(name, 0)
        self._in_a_row[name] = side if before * side <= 0 else before + side
        if abs(self._in_a_row[name]) < _IN_A_ROW or name in self._reported:
            return
        self._reported.add(name)
        suggested, enough = suggested_weight(configured, ratio)
        if side > 0:
            what = f"dominates the student's own losses: its gradient is {ratio:.3g} times theirs"
        elif ratio > 0:
            what = f"is negligible: its gradient is {ratio:.3g} times that of the student's own losses"
        else:
            runner.logger.warning(
                f"distill.{name} gives no gradient on the student's features ({_IN_A_ROW} consecutive "
                "measurements); check the loss's region and options"
            )
            return
        runner.logger.warning(
            f"distill.{name} {what} ({_IN_A_ROW} consecutive measurements); "
            f"loss_weight={suggested:.3g} instead of {configured:.3g} would bring the two "
            + ("to the same size" if enough else "nearer")
        )


def _configured_weight(runner: Runner, name: str, weight: float) -> float:
    for hook in runner.hooks:
        if isinstance(hook, DistillScheduleHook) and name in hook.base:
            return hook.base[name]
    return weight


def _loss_scale(runner: Runner) -> float:
    """Mixed precision's loss scale, without which half-precision gradients vanish; it cancels in ratios."""
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
