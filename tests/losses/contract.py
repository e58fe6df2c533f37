"""What every distillation loss must hold, whatever it is.

A test of a loss calls `check_contract` with a way to build it and the part of the outputs that it reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmkd.losses import DistillLoss
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Levels, Need

Case = tuple[DenseOutputs, DenseOutputs, DistillContext]


class Sample(int):
    """The number of an image of a batch, with all that losses read of a data sample but its objects."""

    img_shape = (48, 64)


def make_case(
    num_classes: int = 3,
    sizes: tuple[tuple[int, int], ...] = ((4, 5), (2, 3)),
    images: int = 2,
    priors: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    box_channels: int = 4,
    channels: tuple[int, int] = (4, 4),
) -> Case:
    """A student, a teacher and a context with random outputs and assignments.

    Args:
        box_channels: D of ``bbox_pred``.
        channels: of the student's and the teacher's features.
    """
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> Levels:
        return tuple(
            torch.randn(images, channels, h, w, dtype=dtype, generator=generator) * 2 for h, w in sizes
        )

    def boxes() -> Levels:
        levels = []
        for h, w in sizes:
            corner = torch.rand(images, priors, 2, h, w, dtype=dtype, generator=generator) * 40
            side = torch.rand(images, priors, 2, h, w, dtype=dtype, generator=generator) * 30 + 2
            levels.append(torch.cat([corner, corner + side], 2).flatten(1, 2))
        return tuple(levels)

    def outputs(width: int) -> DenseOutputs:
        spec = HeadSpec(
            num_classes=num_classes,
            cls_channels=num_classes,
            use_sigmoid=True,
            strides=tuple((8 * 2**i, 8 * 2**i) for i in range(len(sizes))),
            num_base_priors=(priors,) * len(sizes),
            in_channels=(width,) * len(sizes),
        )
        return DenseOutputs(
            spec,
            feats=maps(width),
            cls_logits=maps(priors * num_classes),
            bbox_pred=maps(priors * box_channels),
            boxes=boxes(),
            extra={"centerness": maps(priors)},
        )

    student, teacher = outputs(channels[0]), outputs(channels[1])
    N = images * priors * sum(h * w for h, w in sizes)
    context = DistillContext(
        valid_N=torch.rand(N, generator=generator) > 0.2,
        num_images=images,
        data_samples=[Sample(image) for image in range(images)],
        labels_N=torch.randint(0, num_classes + 1, (N,), generator=generator),
    )
    return student, teacher, context


def twice(case: Case) -> Case:
    """The same batch with every image in it twice."""
    student, teacher, context = case
    per_level = [
        level.shape[0] * level.shape[2] * level.shape[3] * A
        for level, A in zip(student.cls_logits or (), student.spec.num_base_priors)
    ]

    def doubled(values_N: Tensor) -> Tensor:
        return torch.cat([part for part in values_N.split(per_level) for _ in range(2)])

    assert context.labels_N is not None
    return (
        student.map(lambda level: torch.cat([level, level])),
        teacher.map(lambda level: torch.cat([level, level])),
        replace(
            context,
            valid_N=doubled(context.valid_N),
            labels_N=doubled(context.labels_N),
            data_samples=[*context.data_samples] * 2,
            num_images=2 * context.num_images,
            quality_sum=None if context.quality_sum is None else 2 * context.quality_sum,
        ),
    )


def part_of(outputs: DenseOutputs, part: str) -> Levels:
    """``cls_logits``, ``feats``, …, or a further output by its name."""
    levels: Levels = outputs.extra[part] if part in outputs.extra else getattr(outputs, part)
    return levels


def with_part(outputs: DenseOutputs, part: str, levels: Levels) -> DenseOutputs:
    """The same outputs with other levels of a part."""
    if part in outputs.extra:
        return replace(outputs, extra={**outputs.extra, part: levels})
    return replace(outputs, **{part: levels})


def only(needs: frozenset[Need], outputs: DenseOutputs) -> DenseOutputs:
    """The outputs with the parts that a loss lists, and no others."""
    return replace(
        outputs,
        feats=outputs.feats if "feats" in needs else (),
        cls_logits=outputs.cls_logits if "cls_logits" in needs else None,
        bbox_pred=outputs.bbox_pred if "bbox_pred" in needs else None,
        boxes=outputs.boxes if "boxes" in needs else None,
        extra=outputs.extra if "extra" in needs else {},
    )


def only_of_context(loss: DistillLoss, context: DistillContext) -> DistillContext:
    """What a loss asks of the batch, and no more, with the priors that its ``valid`` counts."""
    parts = {
        "labels_N": "labels",
        "quality_sum": "quality_targets",
        "padded_N": "padding",
        "scored_N": "label_weights",
    }
    asked = {part: getattr(context, part) if need in loss.asks else None for part, need in parts.items()}
    return replace(context, **asked).counting(loss.valid)


def check_contract(
    build: Callable[[float], DistillLoss],
    part: str = "cls_logits",
    *,
    identity: bool = True,
    per_prior: bool = True,
    gradient: bool = True,
    case: Case | None = None,
) -> None:
    """Assert all that holds for every loss, which is given what it says that it needs and no more.

    Args:
        build: from a loss weight to the loss.
        part: what it reads: ``cls_logits``, ``bbox_pred``, ``boxes``, ``feats``, or ``centerness``.
        identity: it is zero where student and teacher say the same (not with layers of its own between).
        per_prior: it is a sum over priors that leaves out the padding.
        gradient: its gradient is that of its value (not where a weight without gradient depends on ``part``).
        case: of `make_case` with other sizes.
    """
    student, teacher, context = case or make_case()
    needs, of_student = build(1.0).needs, build(1.0).of_student
    student, teacher = only(needs, student), only(needs - of_student, teacher)
    context = only_of_context(build(1.0), context)
    case = student, teacher, context

    def ready(loss_weight: float) -> DistillLoss:
        torch.manual_seed(0)
        loss = build(loss_weight)
        loss.adapt(student.spec, teacher.spec)
        return loss.double()

    loss = ready(1.0)
    own, taught = part_of(student, part), part_of(teacher, part)

    def value_of(*levels: Tensor) -> Tensor:
        torch.manual_seed(1)  # a loss may draw random masks
        return loss(with_part(student, part, tuple(levels)), teacher, context)

    value = value_of(*own)
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0
    torch.manual_seed(1)
    other = ready(2.5)
    torch.manual_seed(1)
    torch.testing.assert_close(other(*case), 2.5 * value)

    if identity:
        same = with_part(teacher, part, own)
        assert loss(student, same, context).abs() < 1e-10, "zero at identity"

    extreme = tuple(torch.where(level > level.median(), 1e4, -1e4).to(level) for level in own)
    if part != "boxes":
        assert torch.isfinite(value_of(*extreme))
        assert torch.isfinite(loss(student, with_part(teacher, part, extreme), context))

    teacher_levels = tuple(level.clone().requires_grad_() for level in taught)
    student_levels = tuple(level.clone().requires_grad_() for level in own)
    loss(
        with_part(student, part, student_levels), with_part(teacher, part, teacher_levels), context
    ).backward()
    assert all(level.grad is None for level in teacher_levels), "no gradient to the teacher"
    assert any(level.grad is not None and level.grad.abs().sum() > 0 for level in student_levels)

    # Projected to random directions; `make soak` looks at every element.
    quick = not os.environ.get("MMKD_SOAK")
    if gradient:
        assert torch.autograd.gradcheck(value_of, student_levels, atol=1e-6, fast_mode=quick)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss.float()(
            with_part(student, part, tuple(level.bfloat16() for level in own)),
            teacher.map(lambda level: level.float()),
            context,
        )
        assert half.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(half)
    loss = ready(1.0)

    if per_prior:
        hidden_N = ~context.valid_N
        moved = tuple(level.flip(0) for level in own)
        merged = where(hidden_N, moved, own, student)
        torch.testing.assert_close(value_of(*merged), value)

        nothing = replace(context, valid_N=torch.zeros_like(context.valid_N))
        empty = loss(with_part(student, part, student_levels), teacher, nothing)
        assert empty == 0
        assert empty.requires_grad, "every process takes part in the backward pass"


def check_same_for_twice_the_batch(loss: DistillLoss, case: Case | None = None) -> None:
    """The value does not change when each image stands in the batch twice."""
    case = case or make_case()
    loss.adapt(case[0].spec, case[1].spec)
    loss.double()
    torch.testing.assert_close(loss(*twice(case)), loss(*case))


def where(choice_N: Tensor, then: Levels, otherwise: Levels, outputs: DenseOutputs) -> Levels:
    """Level by level, prior by prior, one of two maps."""
    levels, start = [], 0
    for a, b, A in zip(then, otherwise, outputs.spec.num_base_priors):
        B, AD, H, W = b.shape
        rows = choice_N[start : start + B * H * W * A]
        start += len(rows)
        mask = rows.reshape(B, H, W, A, 1).expand(-1, -1, -1, -1, AD // A)
        levels.append(torch.where(mask.reshape(B, H, W, AD).permute(0, 3, 1, 2), a, b))
    return tuple(levels)


def on_two_processes(loss: DistillLoss, case: Case) -> torch.Tensor:
    """The mean of two processes' values, with an image each and divisors averaged over both."""
    student, teacher, context = case
    image_N = student.image_N
    divisors: list[list[torch.Tensor]] = [[], []]

    class Process(DistillContext):
        def mean_over_processes(self, value: torch.Tensor) -> torch.Tensor:
            own = divisors[self.data_samples[0]]
            own.append(value)
            return sum(pair[len(own) - 1] for pair in known).float() / 2 if known else value

    def values() -> list[torch.Tensor]:
        return [
            loss(
                student.map(lambda level: level[image : image + 1]),  # noqa: B023
                teacher.map(lambda level: level[image : image + 1]),  # noqa: B023
                Process(
                    valid_N=context.valid_N[image_N == image],
                    labels_N=None if context.labels_N is None else context.labels_N[image_N == image],
                    num_images=1,
                    data_samples=[Sample(image)],
                    quality_sum=None if context.quality_sum is None else context.quality_sum / 2,
                ),
            )
            for image in range(2)
        ]

    known: list[list[torch.Tensor]] = []
    values()
    known, divisors = divisors, [[], []]
    return torch.stack(values()).mean()


def without_objects_in_second(context: DistillContext) -> DistillContext:
    """The context of `make_case` with background alone in its second image."""
    assert context.labels_N is not None
    labels_N = context.labels_N.clone()
    labels_N[40:80] = labels_N[80 + 12 :] = 3  # on both levels
    return replace(context, labels_N=labels_N)
