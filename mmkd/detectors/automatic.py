"""Automatic loss weights, measured in the training forward pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor

from mmkd.balance import compare_gradients, scalar_name, task_loss
from mmkd.detectors.finite import in_float16
from mmkd.errors import UserError
from mmkd.losses import DistillLoss
from mmkd.outputs import Recorded

# In float16, gradients of unscaled losses vanish, and those of losses scaled too much overflow.
_SCALES_OF_FLOAT16 = (2.0**16, 2.0**8, 1.0)
# Some heads start with a zero last layer and then send almost no gradient back. With the right weight, the
# value of each of our losses is 0.1 to 5 times its share of the task's; it is capped at this factor.
_MOST_VALUE = 10.0
# Warn about a term after this many consecutive measurements without a gradient.
_SILENT = 50


def check_automatic(shares: Mapping[str, float], task_loss_weight: float) -> None:
    """Raise `UserError` if automatic weights have no task gradient to compare with."""
    if shares and task_loss_weight == 0:
        raise UserError(
            "Automatic weights need a task loss: they are a share of its gradient.",
            expected="task_loss_weight above 0",
            found=f"task_loss_weight=0 with automatic weights for {', '.join(shares)}",
            remedy="set loss_weight of these losses to a number",
        )


def weigh(
    losses: dict[str, Any], terms: Mapping[str, DistillLoss], called: Sequence[str], recorded: Recorded
) -> dict[str, Any]:
    """Multiply the automatic terms by their weights, and log these as ``kd_weight_<term>``.

    Args:
        losses: of the student and all terms; automatic terms at weight 1, apart from a schedule's factor.
        terms: the terms by name.
        called: the names of the computed terms.
        recorded: the record of the student's own methods.

    Raises:
        UserError: no layer before the head is trained.
    """
    automatic = {name: term.auto for name, term in terms.items() if term.auto is not None}
    if not automatic:
        return losses
    training = torch.is_grad_enabled()
    due = [name for name in called if name in automatic and automatic[name].due]
    if due and training:
        _measure(losses, terms, due, recorded.neck())
    losses = dict(losses)
    for name, auto in automatic.items():
        value: Tensor = losses[f"loss_kd_{name}"]
        losses[f"loss_kd_{name}"] = value * auto.weight
        in_force = auto.weight * terms[name].loss_weight
        losses[f"kd_weight_{scalar_name(name)}"] = torch.tensor(in_force, dtype=torch.float64)
        auto.done += training and name in called
    return losses


def _measure(
    losses: Mapping[str, Any], terms: Mapping[str, DistillLoss], names: Sequence[str], feats: Sequence[Tensor]
) -> None:
    device = feats[0].device
    scales = _SCALES_OF_FLOAT16 if in_float16(device) else (1.0,)
    left = {name: losses[f"loss_kd_{name}"] for name in sorted(names)}
    with torch.autocast(device.type, enabled=False):
        task = task_loss(losses, terms)
        for scale in scales:
            balance = compare_gradients(task, left, feats, scale)
            if balance is None:
                raise UserError(
                    "Automatic weights need a gradient on the neck's output.",
                    expected="a trainable backbone or neck",
                    found=f"both frozen, with automatic weights for {', '.join(left)}",
                    remedy="set loss_weight of these losses to a number",
                )
            least = _least_ratios(task, left)
            for name, ratio in balance.ratios.items():
                _take_in(name, terms[name], max(ratio, least[name]) if ratio > 0 else 0.0)
                del left[name]
            if not left:
                break


def _least_ratios(task: Tensor, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The ratios that make a term's value `_MOST_VALUE` times its share of the task's, over all processes."""
    total = torch.stack([task, *values.values()]).detach().float()
    all_reduce(total, op="mean")
    of_task, *of_terms = total.tolist()
    return {
        name: value / of_task / _MOST_VALUE if of_task > 0 else 0.0 for name, value in zip(values, of_terms)
    }


def _take_in(name: str, term: DistillLoss, ratio: float) -> None:
    assert term.auto is not None
    first = not term.auto.measured
    term.auto.observe(ratio / term.loss_weight)
    if first and term.auto.measured:
        print_log(
            f"distill.{name}: the automatic weight starts at {term.auto.weight:.4g}, for a gradient on the "
            f"neck's output of {term.auto.share:g} × the task's",
            "current",
        )
    elif term.auto.silent == _SILENT:
        print_log(
            f"distill.{name} gave no gradient on the neck's output in {_SILENT} consecutive "
            f"measurements, so its automatic weight stays at {term.auto.weight:.4g}; check the "
            "loss's region and options",
            "current",
            logging.WARNING,
        )
