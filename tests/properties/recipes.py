"""Batches of every kind that a loss may meet, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Levels

from ..losses.contract import Case
from ..losses.objects import Box, sample

INPUT = (48, 64)
# Values of logits and features, as multiples of the largest that is tried.
VALUES = ("normal", "large", "extreme", "lowest", "highest", "constant", "zero", "denormal", "tiny")
BOXES = ("normal", "points", "tiny", "huge", "beyond", "reversed")
OBJECTS: dict[str, list[Box]] = {
    "none": [],
    "one": [(3, 5, 22, 19)],
    "several": [(3, 5, 22, 19), (10, 8, 60, 40), (11, 9, 59, 41)],
    "point": [(9, 9, 9, 9)],
    "tiny": [(9, 9, 9.0001, 9.0001)],
    "huge": [(-1e5, -1e5, 1e5, 1e5)],
    "outside": [(500, 500, 520, 530)],
    "reversed": [(22, 19, 3, 5)],
}


@dataclass(frozen=True)
class Recipe:
    """How to make a batch; what a failing test prints."""

    seed: int
    images: int
    sizes: tuple[tuple[int, int], ...]
    num_classes: int
    softmax: bool
    priors: int
    widths: tuple[int, int]
    dtype: torch.dtype
    student: str
    teacher: str
    same: bool
    student_boxes: str
    teacher_boxes: str
    labels: str
    valid: str
    objects: str


def recipes() -> st.SearchStrategy[Recipe]:
    """Any batch: its shapes, dtype, values, assignments and objects."""
    size = st.tuples(st.integers(1, 5), st.integers(1, 5))
    some = st.sampled_from(("none", "some", "all"))
    return st.builds(
        Recipe,
        seed=st.integers(0, 2**16),
        images=st.sampled_from((2, 1, 0)),
        sizes=st.lists(size, min_size=1, max_size=3).map(tuple),
        num_classes=st.sampled_from((3, 1, 2, 80)),
        softmax=st.booleans(),
        priors=st.sampled_from((1, 3)),
        widths=st.sampled_from(((4, 4), (1, 1), (2, 3), (4, 2))),
        dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)),
        student=st.sampled_from(VALUES),
        teacher=st.sampled_from(VALUES),
        same=st.booleans(),
        student_boxes=st.sampled_from(BOXES),
        teacher_boxes=st.sampled_from(BOXES),
        labels=some,
        valid=some,
        objects=st.sampled_from(tuple(OBJECTS)),
    )


def largest(dtype: torch.dtype) -> float:
    """The largest logit or feature that is tried."""
    return 3e4 if dtype in (torch.float16, torch.bfloat16) else 1e4


def make(recipe: Recipe) -> Case:
    """Student, teacher and context; equal outputs if ``same``."""
    generator = torch.Generator().manual_seed(recipe.seed)
    teacher = _outputs(recipe, recipe.widths[1], recipe.teacher, recipe.teacher_boxes, generator)
    student = _outputs(recipe, recipe.widths[0], recipe.student, recipe.student_boxes, generator)
    if recipe.same:
        student = teacher
    N = recipe.images * recipe.priors * sum(height * width for height, width in recipe.sizes)
    background = recipe.num_classes
    labels_N = torch.randint(0, background, (N,), generator=generator)
    return (
        student,
        teacher,
        DistillContext(
            valid_N=_chosen(recipe.valid, N, generator),
            num_images=recipe.images,
            data_samples=[_sample(recipe) for _ in range(recipe.images)],
            labels_N=torch.where(_chosen(recipe.labels, N, generator), labels_N, background),
            crossed=lambda layer, towers, needs: _crossed(teacher, towers),
        ),
    )


def _crossed(teacher: DenseOutputs, towers: Mapping[str, Levels]) -> DenseOutputs:
    """A head of the teacher's whose last layers change nothing."""
    return replace(teacher, cls_logits=towers["cls_convs"])


def _sample(recipe: Recipe) -> object:
    boxes = OBJECTS[recipe.objects]
    labels = [place % recipe.num_classes for place in range(len(boxes))]
    return sample(boxes, labels, size=INPUT)


def _chosen(share: str, N: int, generator: torch.Generator) -> Tensor:
    return torch.rand(N, generator=generator) < {"none": 0.0, "some": 0.5, "all": 1.0}[share]


def _outputs(recipe: Recipe, width: int, values: str, boxes: str, generator: torch.Generator) -> DenseOutputs:
    K, A = recipe.num_classes + recipe.softmax, recipe.priors

    def maps(channels: int) -> Levels:
        return tuple(
            _values(values, (recipe.images, channels, *size), recipe.dtype, generator)
            for size in recipe.sizes
        )

    cls_logits = maps(A * K)
    return DenseOutputs(
        HeadSpec(
            num_classes=recipe.num_classes,
            cls_channels=K,
            use_sigmoid=not recipe.softmax,
            strides=tuple((8 * 2**level, 8 * 2**level) for level in range(len(recipe.sizes))),
            num_base_priors=(A,) * len(recipe.sizes),
            in_channels=(width,) * len(recipe.sizes),
        ),
        feats=maps(width),
        cls_logits=cls_logits,
        bbox_pred=maps(A * 4 * 3),
        boxes=tuple(_boxes(boxes, recipe, size, generator) for size in recipe.sizes),
        extra={"centerness": maps(A)},
        towers={"cls_convs": [cls_logits]},
    )


def _values(kind: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    limit, smallest = largest(dtype), torch.finfo(dtype).smallest_normal
    random = torch.randn(shape, dtype=torch.float64, generator=generator)
    values = {
        "normal": random * 2,
        "large": random.clamp(-3, 3) / 3 * limit,
        "extreme": random.sign() * limit,
        "lowest": torch.full_like(random, -limit),
        "highest": torch.full_like(random, limit),
        "constant": torch.full_like(random, 1.5),
        "zero": torch.zeros_like(random),
        "denormal": random.sign() * smallest / 2,
        "tiny": random * smallest**0.5,
    }
    return values[kind].to(dtype)


def _boxes(kind: str, recipe: Recipe, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """As the adapters decode them: float32 or float64."""
    shape = (recipe.images, recipe.priors, 2, *size)
    corner = torch.rand(shape, dtype=torch.float64, generator=generator) * 40
    side = torch.rand(shape, dtype=torch.float64, generator=generator) * 30
    first, last = {
        "normal": (corner, corner + side),
        "points": (corner, corner),
        "tiny": (corner * 1e-6, (corner + side) * 1e-6),
        "huge": (corner - 6e4, corner + side * 2e3),
        "beyond": (corner - side * 1e35, corner + side * 1e36),
        "reversed": (corner + side, corner),
    }[kind]
    return torch.cat([first, last], 2).flatten(1, 2).to(torch.promote_types(recipe.dtype, torch.float32))


def with_gradient(outputs: DenseOutputs) -> tuple[DenseOutputs, list[Tensor]]:
    """The same outputs as leaves that take a gradient, and these."""
    leaves = outputs.map(lambda level: level.detach().clone().requires_grad_())
    return leaves, leaves.levels()
