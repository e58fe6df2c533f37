"""What every distillation loss must hold, whatever it is.

A test of a loss calls `check_contract` with a way to build it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmkd.losses import DistillLoss
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec

Case = tuple[DenseOutputs, DenseOutputs, DistillContext]


def make_case(
    num_classes: int = 3,
    sizes: tuple[tuple[int, int], ...] = ((4, 5), (2, 3)),
    images: int = 2,
    priors: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A student, a teacher and a context with random outputs and assignments."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(images, channels, h, w, dtype=dtype, generator=generator) * 2 for h, w in sizes
        )

    spec = HeadSpec(
        num_classes=num_classes,
        cls_channels=num_classes,
        use_sigmoid=True,
        strides=tuple((8 * 2**i, 8 * 2**i) for i in range(len(sizes))),
        num_base_priors=(priors,) * len(sizes),
    )
    student, teacher = (
        DenseOutputs(spec, maps(4), maps(priors * num_classes), maps(priors * 4)) for _ in range(2)
    )
    N = images * priors * sum(h * w for h, w in sizes)
    context = DistillContext(
        valid_N=torch.rand(N, generator=generator) > 0.2,
        num_images=images,
        data_samples=[None] * images,
        labels_N=torch.randint(0, num_classes + 1, (N,), generator=generator),
    )
    return student, teacher, context


def twice(case: Case) -> Case:
    """The same batch with every image in it twice."""
    student, teacher, context = case

    def double(outputs: DenseOutputs) -> DenseOutputs:
        levels = {
            name: tuple(torch.cat([level, level]) for level in getattr(outputs, name))
            for name in ("feats", "cls_logits", "bbox_pred")
        }
        return DenseOutputs(outputs.spec, **levels)

    per_level = [
        level.shape[0] * level.shape[2] * level.shape[3] * A
        for level, A in zip(student.cls_logits or (), student.spec.num_base_priors)
    ]

    def doubled(values_N: Tensor) -> Tensor:
        return torch.cat([part for part in values_N.split(per_level) for _ in range(2)])

    assert context.labels_N is not None
    return (
        double(student),
        double(teacher),
        replace(
            context,
            valid_N=doubled(context.valid_N),
            labels_N=doubled(context.labels_N),
            num_images=2 * context.num_images,
        ),
    )


def with_logits(outputs: DenseOutputs, logits: tuple[Tensor, ...]) -> DenseOutputs:
    return DenseOutputs(outputs.spec, outputs.feats, logits, outputs.bbox_pred, outputs.extra)


def check_contract(build: Callable[[float], DistillLoss]) -> None:
    """Assert all that holds for every loss.

    Args:
        build: from a loss weight to the loss.
    """
    loss = build(1.0)
    case = student, teacher, context = make_case()
    assert student.cls_logits is not None
    assert teacher.cls_logits is not None

    value = loss(*case)
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0
    torch.testing.assert_close(build(2.5)(*case), 2.5 * value)

    assert loss(student, student, context).abs() < 1e-12, "zero at identity"

    extreme = tuple(torch.where(level > 0, 1e4, -1e4) for level in student.cls_logits)
    assert torch.isfinite(loss(with_logits(student, extreme), teacher, context))
    assert torch.isfinite(loss(student, with_logits(teacher, extreme), context))

    teacher_logits = tuple(level.clone().requires_grad_() for level in teacher.cls_logits)
    student_logits = tuple(level.clone().requires_grad_() for level in student.cls_logits)
    loss(with_logits(student, student_logits), with_logits(teacher, teacher_logits), context).backward()
    assert all(level.grad is None for level in teacher_logits), "no gradient to the teacher"
    assert any(level.grad.abs().sum() > 0 for level in student_logits)

    assert torch.autograd.gradcheck(
        lambda *logits: loss(with_logits(student, logits), teacher, context), student_logits, atol=1e-6
    )

    hidden = ~context.valid_N
    moved = make_case(seed=1)[0]
    flat, other = student.flat_cls_logits(), moved.flat_cls_logits()
    merged = torch.where(hidden[:, None], other, flat)
    torch.testing.assert_close(loss(_from_flat(student, merged), teacher, context), value)

    half = with_logits(student, tuple(level.bfloat16() for level in student.cls_logits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(half, teacher, context).dtype in (torch.float32, torch.float64)

    nothing = replace(context, valid_N=torch.zeros_like(context.valid_N))
    empty = loss(with_logits(student, student_logits), teacher, nothing)
    assert empty == 0
    assert empty.requires_grad, "every process takes part in the backward pass"


def check_same_for_twice_the_batch(loss: DistillLoss) -> None:
    """The value does not change when each image stands in the batch twice."""
    case = make_case()
    torch.testing.assert_close(loss(*twice(case)), loss(*case))


def _from_flat(outputs: DenseOutputs, flat_NK: Tensor) -> DenseOutputs:
    levels, start = [], 0
    for level in outputs.cls_logits or ():
        B, AK, H, W = level.shape
        rows = B * H * W * (AK // flat_NK.shape[1])
        part = flat_NK[start : start + rows].reshape(B, H, W, AK).permute(0, 3, 1, 2)
        levels.append(part)
        start += rows
    return with_logits(outputs, tuple(levels))
