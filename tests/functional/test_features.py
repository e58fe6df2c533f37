from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.functional.features import (
    channel_kl,
    cosine_distance,
    feature_mse,
    pearson_distance,
    pool_channels,
    squared_distance,
)

Distance = Callable[..., Tensor]
DISTANCES: list[Distance] = [feature_mse, cosine_distance, pearson_distance, channel_kl]


def pair(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *(shape or (2, 3, 2, 4)), dtype=dtype, generator=generator) * 2
    return student, teacher + 0.5


def channels(level: Tensor) -> Iterator[tuple[int, int, list[float]]]:
    """Image, channel, and the numbers of that channel."""
    for b, c in product(range(level.shape[0]), range(level.shape[1])):
        yield b, c, level[b, c].flatten().tolist()


def flat(level: Tensor, image: int) -> list[float]:
    return [value for b, _, values in channels(level) if b == image for value in values]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def correlation(a: list[float], b: list[float]) -> float:
    return cosine([x - mean(a) for x in a], [y - mean(b) for y in b])


def softmax(values: list[float], T: float) -> list[float]:
    total = sum(math.exp(value / T) for value in values)
    return [math.exp(value / T) / total for value in values]


def close(value: Tensor, expected: float, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-9)


def test_mse_by_hand() -> None:
    student, teacher = pair()
    squares = [
        (x - y) ** 2
        for (_, _, a), (_, _, b) in zip(channels(student), channels(teacher))
        for x, y in zip(a, b)
    ]
    close(feature_mse(student, teacher), mean(squares))


def test_cosine_by_hand() -> None:
    student, teacher = pair()
    close(
        cosine_distance(student, teacher),
        mean([1 - cosine(flat(student, b), flat(teacher, b)) for b in range(2)]),
    )
    means = [[[mean(v) for b, _, v in channels(x) if b == image] for image in range(2)] for x in pair()]
    close(
        cosine_distance(student, teacher, vector="mean"),
        mean([1 - cosine(means[0][b], means[1][b]) for b in range(2)]),
    )


def test_cosine_equals_torch() -> None:
    student, teacher = pair()
    published = nn.CosineEmbeddingLoss()(
        student.flatten(1), teacher.flatten(1), torch.ones(2, dtype=torch.float64)
    )
    torch.testing.assert_close(cosine_distance(student, teacher), published)


def test_correlation_by_hand() -> None:
    student, teacher = pair()
    rows = {
        c: [[x for _, k, v in channels(level) if k == c for x in v] for level in (student, teacher)]
        for c in range(3)
    }
    close(pearson_distance(student, teacher), mean([1 - correlation(*rows[c]) for c in range(3)]), 1e-5)
    per_image = [1 - correlation(a, b) for (_, _, a), (_, _, b) in zip(channels(student), channels(teacher))]
    close(pearson_distance(student, teacher, statistics="image"), mean(per_image), 1e-5)


def test_correlation_is_the_published_value_but_for_the_unbiased_deviation() -> None:
    student, teacher = pair()
    n = 2 * 2 * 4

    def normalised(level: Tensor) -> Tensor:
        rows = level.transpose(0, 1).flatten(1)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-6)

    published = F.mse_loss(normalised(student), normalised(teacher)) / 2
    torch.testing.assert_close(pearson_distance(student, teacher) * (n - 1) / n, published, rtol=1e-5, atol=0)


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_channel_kl_by_hand(T: float) -> None:
    student, teacher = pair()
    total = 0.0
    for (_, _, a), (_, _, b) in zip(channels(student), channels(teacher)):
        total += sum(t * math.log(t / s) for s, t in zip(softmax(a, T), softmax(b, T)))
    close(channel_kl(student, teacher, temperature=T), T**2 * total / (2 * 3))


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: Distance) -> None:
    student, teacher = pair()
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distance(x, teacher), student)
    distance(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("distance", "scale", "offset"),
    [(cosine_distance, 3.0, 0.0), (pearson_distance, 3.0, 5.0), (channel_kl, 1.0, 5.0)],
)
def test_what_a_distance_does_not_see(distance: Distance, scale: float, offset: float) -> None:
    student, teacher = pair()
    value = distance(student, teacher)
    torch.testing.assert_close(distance(student * scale + offset, teacher), value, rtol=1e-5, atol=0)
    torch.testing.assert_close(distance(student, teacher * scale + offset), value, rtol=1e-5, atol=0)
    assert distance(teacher * scale + offset, teacher).abs() < 1e-10


def test_one_channel_may_have_any_size_for_pearson() -> None:
    student, teacher = pair()
    factor = torch.tensor([0.1, 1.0, 100.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    torch.testing.assert_close(
        pearson_distance(student, teacher * factor), pearson_distance(student, teacher), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_order_of_positions_means_nothing(distance: Distance) -> None:
    student, teacher = pair()
    torch.testing.assert_close(
        distance(student.flip(2, 3), teacher.flip(2, 3)), distance(student, teacher), rtol=1e-9, atol=0
    )
    as_given = [level.contiguous(memory_format=torch.channels_last) for level in (student, teacher)]
    torch.testing.assert_close(distance(*as_given), distance(student, teacher), rtol=1e-9, atol=0)


@pytest.mark.parametrize("distance", [feature_mse, cosine_distance, pearson_distance])
def test_a_larger_map_of_the_same_is_the_same(distance: Distance) -> None:
    student, teacher = pair()
    larger = [torch.cat([level, level], 3) for level in (student, teacher)]
    torch.testing.assert_close(distance(*larger), distance(student, teacher))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_inside_autocast(distance: Distance, dtype: torch.dtype) -> None:
    student, teacher = (level.to(dtype) for level in pair(dtype=torch.float32))
    expected = distance(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance(student, teacher)
    assert value.dtype == torch.float32
    assert value == expected


@pytest.mark.parametrize("distance", DISTANCES)
def test_constant_and_empty_maps_are_finite(distance: Distance) -> None:
    """Dead channels, a map of zeros, one position."""
    for shape in [(2, 3, 2, 4), (1, 3, 1, 1)]:
        for start in (torch.zeros(shape), torch.ones(shape)):
            student = start.clone().requires_grad_()
            value = distance(student, pair(*shape, dtype=torch.float32)[1])
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(student.grad).all()
            # Not a division by nearly nothing; a constant channel is pulled by 1/ε in pearson_distance.
            assert distance is pearson_distance or student.grad.abs().max() < 10


def test_no_direction_is_a_cosine_of_zero() -> None:
    teacher = pair(2, 3, 2, 4)[1]
    assert cosine_distance(torch.zeros_like(teacher), teacher) == 1
    assert cosine_distance(-teacher, teacher).item() == pytest.approx(2)


def test_one_position_has_no_distribution_but_a_gradient_of_zero() -> None:
    student, teacher = pair(2, 3, 1, 1)
    student.requires_grad_()
    value = channel_kl(student, teacher)
    assert value == 0
    value.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(("wide", "narrow"), [(6, 3), (5, 3), (4, 1)])
def test_cosine_averages_the_channels_of_the_wider(wide: int, narrow: int) -> None:
    few, many = pair(2, narrow, 2, 4)[0], pair(2, wide, 2, 4)[1]
    # Group i of n goes from floor(i·wide/n) up to ceil((i + 1)·wide/n).
    groups = [many[:, i * wide // narrow : -(-(i + 1) * wide // narrow)] for i in range(narrow)]
    pooled = torch.stack([sum(group.unbind(1)) / group.shape[1] for group in groups], 1)
    torch.testing.assert_close(pool_channels(many, narrow), pooled)
    for vector in ("map", "mean"):
        expected = cosine_distance(few, pooled, vector=vector)
        torch.testing.assert_close(cosine_distance(few, many, vector=vector), expected)
        # The same for a student that is the wider one.
        torch.testing.assert_close(cosine_distance(many, few, vector=vector), expected)


@pytest.mark.parametrize("distance", [*DISTANCES, partial(pearson_distance, statistics="image")])
def test_no_image_is_zero(distance: Distance) -> None:
    student = torch.zeros(0, 3, 2, 4, requires_grad=True)
    loss = distance(student, torch.zeros(0, 3, 2, 4))
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 3, 4, 2), (1, 3, 2, 4), (2, 3, 2, 4, 1)])
def test_bad_shapes(distance: Distance, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected maps of equal shape \(B, (C|any), H, W\), found student"):
        distance(pair()[0], torch.zeros(shape))


@pytest.mark.parametrize("distance", [feature_mse, pearson_distance, channel_kl])
def test_other_widths_are_refused(distance: Distance) -> None:
    with pytest.raises(ValueError, match=r"found student \(2, 3, 2, 4\) and teacher \(2, 1, 2, 4\)"):
        distance(pair()[0], torch.zeros(2, 1, 2, 4))


@pytest.mark.parametrize(
    ("distance", "options", "message"),
    [
        (cosine_distance, {"vector": "all"}, "vector must be one of map, mean, found 'all'"),
        (pearson_distance, {"statistics": "gpu"}, "statistics must be one of batch, image, found 'gpu'"),
        (channel_kl, {"temperature": 0}, "temperature must be a number above 0, found 0"),
    ],
)
def test_bad_options(distance: Distance, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distance(*pair(), **options)


def test_squared_distance_is_the_sum_of_an_image() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = sum(
        (a - b) ** 2 for x, y in zip(s, t) for a, b in zip(x.flatten().tolist(), y.flatten().tolist())
    )
    torch.testing.assert_close(squared_distance(s, t), torch.tensor(expected / 2, dtype=torch.float64))
    torch.testing.assert_close(squared_distance(torch.cat([s, s]), torch.cat([t, t])), squared_distance(s, t))


def test_squared_distance_of_half_precision_is_summed_in_float32() -> None:
    ones = torch.ones(1, 8, 100, 100, dtype=torch.float16)  # the sum is more than float16 can hold
    value = squared_distance(ones, -ones)
    assert value.dtype == torch.float32
    assert value == 4 * 8 * 100 * 100


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 6), (1, 3, 4, 5)])
def test_squared_distance_of_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"equal shape \(B, C, H, W\)"):
        squared_distance(torch.zeros(2, 3, 4, 5), torch.zeros(shape))
