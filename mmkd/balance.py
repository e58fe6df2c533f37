"""Compares the gradient of each distillation loss with that of the student's own losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmkd.errors import UserError
from mmkd.losses import DistillLoss
from mmkd.structures import DenseOutputs, DistillContext

# Agreement counts the priors where the teacher's highest score is above this.
_TEACHER_SURE = 0.3
# A suggested weight differs from the current one at most by this factor.
_MOST_CHANGE = 1000.0

Call = tuple[DenseOutputs, DenseOutputs, DistillContext]


@dataclass(frozen=True)
class Balance:
    """Gradients at the neck's output, over the whole batch of all processes.

    Attributes:
        ratios: by term, the norm of its gradient relative to the task's; without non-finite ones.
        cosines: by term, the cosine between the two, in [−1, 1]; without terms that have no gradient.
        agreement: among the priors where the teacher is confident, the share where both predict the same
            class, in [0, 1]; ``None`` if there are none, or no class logits are read.
    """

    ratios: Mapping[str, float]
    cosines: Mapping[str, float]
    agreement: float | None


@contextmanager
def recorded_calls(terms: Mapping[str, DistillLoss]) -> Iterator[dict[str, Call]]:
    """While open, record the arguments of each term, by its name."""
    calls: dict[str, Call] = {}
    with ExitStack() as watching:
        for name, term in terms.items():

            def on_forward(_: Any, args: Call, name: str = name) -> None:
                calls[name] = args

            watching.callback(term.register_forward_pre_hook(on_forward).remove)
        yield calls


def measure_balance(
    losses: Mapping[str, Any], calls: Mapping[str, Call], terms: Sequence[str], scale: float = 1.0
) -> Balance | None:
    """Compare the gradients of the terms with the task's; the graph is kept.

    Args:
        losses: the forward pass's losses, as returned by the detector.
        calls: the calls that `recorded_calls` recorded, at least one.
        terms: the names of all terms, called or not.
        scale: loss scale that keeps half-precision gradients from vanishing; ratios are unscaled.

    Returns:
        The balance; ``None`` if no layer before the head is trained.
    """
    names = sorted(calls)
    student, teacher, context = calls[names[0]]
    values = {name: scalar_loss(losses[f"loss_kd_{name}"]) for name in names}
    counted = _agreement(student, teacher, context)
    return compare_gradients(task_loss(losses, terms), values, student.feats, scale, counted)


def compare_gradients(
    task: Any,
    terms: Mapping[str, Any],
    feats: Sequence[Tensor],
    scale: float = 1.0,
    counted: Sequence[Tensor] = (),
) -> Balance | None:
    """Compare the gradients of losses with respect to features; the graph is kept.

    Args:
        task: the task's loss, a scalar.
        terms: name → the term's loss, a scalar.
        feats: the neck's output, per level B×C×H×W.
        scale: as in `measure_balance`.
        counted: the number of agreeing priors, and out of how many; summed over processes in the same
            reduction.

    Returns:
        As in `measure_balance`.

    Raises:
        UserError: layers behind the features are checkpointed, which does not allow partial gradients.
    """
    feats = [level for level in feats if level.requires_grad]
    if not feats:
        return None  # backbone and neck are frozen
    g_task = _gradient(task, feats, scale)
    # Squared norms add up over processes, because each has gradients of its own images.
    sums = [_dot(g_task, g_task)]
    for value in terms.values():
        g_kd = _gradient(value, feats, scale)
        sums += [_dot(g_kd, g_kd), _dot(g_kd, g_task)]
    total = torch.stack([*sums, *counted])
    all_reduce(total, op="sum")
    task_task, *rest = total[: len(sums)].double().tolist()
    ratios: dict[str, float] = {}
    cosines: dict[str, float] = {}
    for name, kd_kd, kd_task in zip(terms, rest[::2], rest[1::2]):
        if not (math.isfinite(kd_kd) and math.isfinite(task_task)) or task_task <= 0:
            continue  # fp16's scale was too high, or the task has no gradient
        ratios[name] = math.sqrt(kd_kd / task_task)
        if kd_kd > 0:
            cosine = kd_task / math.sqrt(kd_kd) / math.sqrt(task_task)
            cosines[name] = max(-1.0, min(1.0, cosine))
    agreeing, sure = total[len(sums) :].tolist() if counted else (0.0, 0.0)
    return Balance(ratios, cosines, agreeing / sure if sure > 0 else None)


def suggested_weight(weight: float, ratio: float) -> tuple[float, bool]:
    """The weight that makes a term's gradient as large as the task's.

    Args:
        weight: the current weight.
        ratio: the gradient's ratio at this weight, ≥ 0.

    Returns:
        The weight, changed at most by a factor of a thousand, and whether that is enough.
    """
    change = min(_MOST_CHANGE, max(1 / _MOST_CHANGE, 1 / ratio)) if ratio > 0 else _MOST_CHANGE
    return weight * change, ratio > 0 and change == 1 / ratio


def scalar_name(term: str) -> str:
    """A term's name in the log; mmengine averages keys that contain "loss" over a window."""
    return term.replace("loss", "term")


def task_loss(losses: Mapping[str, Any], terms: Iterable[str]) -> Any:
    """The sum of a detector's losses without these terms."""
    own = {f"loss_kd_{name}" for name in terms}
    return sum(scalar_loss(value) for key, value in losses.items() if "loss" in key and key not in own)


def scalar_loss(value: Any) -> Any:
    """A loss as mmengine sums it."""
    return value.mean() if isinstance(value, Tensor) else sum(part.mean() for part in value)


def _gradient(loss: Any, feats: Sequence[Tensor], scale: float) -> Sequence[Tensor]:
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return [torch.zeros_like(level) for level in feats]
    scaled = torch.full_like(loss, scale)
    try:
        return torch.autograd.grad(loss, feats, scaled, retain_graph=True, materialize_grads=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UserError(
            "Cannot measure a loss's gradient through activation checkpointing of the head.",
            expected="activation checkpointing of layers in the backbone or neck only",
            found="layers behind the neck's output among `activation_checkpointing`",
            remedy="remove them from `activation_checkpointing`; or give each loss a number as loss_weight "
            "and remove DistillMonitorHook",
        ) from error


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x.float() * y.float()).sum() for x, y in zip(a, b)]).sum()


def _agreement(student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> list[Tensor]:
    """The number of agreeing priors, and out of how many."""
    nothing = student.feats[0].new_zeros((), dtype=torch.float32)
    layouts = student.spec.num_base_priors, teacher.spec.num_base_priors
    if student.cls_logits is None or teacher.cls_logits is None or layouts[0] != layouts[1]:
        return [nothing, nothing]
    with torch.no_grad():
        sure_N = context.valid_N & (teacher.top_scores() > _TEACHER_SURE)
        # A softmax's background is not a class.
        tops = [out.flat_cls_logits()[:, : out.spec.num_classes].argmax(dim=1) for out in (student, teacher)]
        return [(sure_N & (tops[0] == tops[1])).sum().float(), sure_N.sum().float()]
