"""What holds for every registered loss, whatever batch it meets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from mmkd.errors import UserError
from mmkd.losses import DistillLoss, registered_losses
from mmkd.registry import MODELS

from ..conftest import repeats
from .recipes import Recipe, largest, make, recipes, with_gradient

KL_EVERYWHERE = {"type": "DistillationLoss", "region": "all"}
# Of each loss the options that make it another loss.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "BCKDLoss": [{}, {"beta": 2.0}],
    "BoxIoULoss": [
        {},
        {"region": "foreground", "overlap": "diou"},
        {"region": "teacher_foreground", "overlap": "iou", "min_score": 0.05},
    ],
    "BoxL1Loss": [{}, {"region": "foreground", "normalizer": "batch"}],
    "CWDLoss": [{}, {"temperature": 0.1}],
    "CosineLoss": [{}, {"align": "auto", "vector": "mean"}],
    "CrossKDLoss": [
        {"losses": {"cls": KL_EVERYWHERE}, "layer": 1},
        {"losses": {"cls": {"type": "BCKDLoss"}}, "layer": 1, "align": False},
    ],
    "DISTLoss": [{}, {"activation": "softmax", "region": "all", "temperature": 4.0}],
    "DKDLoss": [{}, {"temperature": 4.0}],
    "DistillationLoss": [
        {},
        {"region": "teacher", "activation": "softmax", "temperature": 4.0},
        {"region": "all", "normalizer": "priors", "reduction": "mean", "temperature": 0.1},
        {"region": "all", "normalizer": "batch", "standardize": True},
    ],
    "FGDLoss": [{}, {"temperature": 0.01}],
    "FitNetsLoss": [{}, {"align": "none"}],
    "LocalizationDistillationLoss": [{}, {"region": "main", "normalizer": "none"}, {"vlr_nearness": "iou"}],
    "MGDLoss": [{}, {"mask_ratio": 0.0}],
    "PGDLoss": [{}, {"xi": 0.0, "topk": 1}],
    "PKDLoss": [{}, {"statistics": "image"}],
    "QualityLoss": [{}, {"region": "teacher"}, {"region": "all"}],
}
EVERY = [(name, options) for name, variants in OPTIONS.items() for options in variants]


def usual(function: Any) -> Any:
    """The same batches each time, so that a test does not fail by chance."""
    return settings(
        max_examples=repeats(8, 300),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],  # which is of the machine
        phases=[Phase.explicit, Phase.generate],  # a recipe is small; to make it smaller takes minutes
    )(function)


def built(name: str, options: dict[str, Any], recipe: Recipe) -> DistillLoss | None:
    """The loss for this pair of heads; ``None`` if it says that it is not for them."""
    student, teacher, _ = make(recipe)
    loss: DistillLoss = MODELS.build({"type": name, **options})
    try:
        loss.check(student.spec, teacher.spec)
    except UserError:
        return None
    torch.manual_seed(0)
    loss.adapt(student.spec, teacher.spec)
    return loss.double() if recipe.dtype == torch.float64 else loss


def test_every_loss_is_here() -> None:
    of_the_student = {"TeacherBoxesLoss"}  # whose value is that of the student's own losses
    assert sorted(OPTIONS.keys() | of_the_student) == registered_losses()


@pytest.mark.soak
@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
@usual
@given(recipe=recipes())
def test_finite_and_not_below_zero_and_the_same_each_time(
    name: str, options: dict[str, Any], recipe: Recipe
) -> None:
    loss = built(name, options, recipe)
    if loss is None:
        return
    given_student, given_teacher, context = make(recipe)
    student, student_levels = with_gradient(given_student)
    teacher, teacher_levels = with_gradient(given_teacher)
    torch.manual_seed(1)  # a loss may draw random masks
    value = loss(student, teacher, context)
    assert value.shape == ()
    assert value.dtype in (torch.float32, torch.float64)
    assert torch.isfinite(value)
    # A divergence of logits z is a difference of terms as large as z.
    rounding = torch.finfo(value.dtype).eps * (1 + largest(recipe.dtype)) * 16
    assert value >= -rounding * recipe.num_classes * loss.loss_weight
    torch.manual_seed(1)
    assert torch.equal(loss(given_student, given_teacher, context), value), "the same each time"

    value.backward()
    assert all(level.grad is None for level in teacher_levels), "no gradient to the teacher"
    for level in student_levels:
        if level.grad is None:
            continue
        assert not level.grad.isnan().any()
        # Above float16's range it is inf: what a GradScaler lowers its scale for.
        assert torch.isfinite(level.grad).all() or level.dtype == torch.float16
    for parameter in loss.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def zero_at_identity(name: str, options: dict[str, Any], recipe: Recipe) -> bool:
    """Whether the loss is 0 where student and teacher say the same."""
    if name == "CosineLoss":  # what has no direction, or one that float32 cannot square, has the cosine 0
        cancels = ("extreme",) if options.get("vector") == "mean" else ()
        return recipe.teacher not in ("zero", "denormal", "tiny", *cancels)
    return (
        name != "MGDLoss"  # a block of its own makes the teacher's features of the student's
        and (name, options) != ("FitNetsLoss", {})  # by default there is a regressor between
        and not (name == "CrossKDLoss" and options.get("align", True))  # moves and rectifies the features
    )


@pytest.mark.soak
@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
@usual
@given(recipe=recipes())
def test_zero_where_both_say_the_same(name: str, options: dict[str, Any], recipe: Recipe) -> None:
    width = recipe.widths[0]
    recipe = Recipe(**{**vars(recipe), "same": True, "widths": (width, width)})
    loss = built(name, options, recipe)
    if loss is None or not zero_at_identity(name, options, recipe):
        return
    # A cosine or a correlation of something with itself is 1 but for rounding.
    rounding = {"CosineLoss": 1e-5, "DISTLoss": 1e-5}.get(name, 0)
    assert abs(float(loss(*make(recipe)))) <= rounding
