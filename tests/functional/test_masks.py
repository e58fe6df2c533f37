from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkd.functional.masks import (
    attention,
    box_masks,
    check_attention_options,
    focal_terms,
    random_keep_mask,
)


def maps(*shape: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


# ---------------------------------------------------------------- random masks


def test_keep_mask_is_one_for_all_channels_and_of_the_ratio() -> None:
    keep = random_keep_mask(torch.zeros(2, 7, 100, 100, dtype=torch.float64), 0.65)
    assert keep.shape == (2, 1, 100, 100)
    assert keep.dtype == torch.float64
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert abs(keep.mean() - 0.35) < 0.02
    assert not torch.equal(keep[0], keep[1])


def test_keep_mask_of_ratio_zero_keeps_all() -> None:
    assert random_keep_mask(torch.zeros(1, 2, 30, 30), 0.0).min() == 1


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2, float("nan"), "0.5", None])
def test_keep_mask_of_a_bad_ratio(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio must be a number in \[0, 1\), found"):
        random_keep_mask(torch.zeros(1, 1, 2, 2), ratio)


# ------------------------------------------------------------------- box masks


def plain_box_masks(
    rows: list[tuple[float, float, float, float]], size: tuple[int, int], map_size: tuple[int, int]
) -> tuple[list[list[float]], list[list[float]]]:
    """Box by box, position by position."""
    (height, width), (H, W) = size, map_size
    fg = [[0.0] * W for _ in range(H)]
    for x1, y1, x2, y2 in rows:
        left, right = math.floor(x1 / width * W), math.ceil(x2 / width * W)
        top, bottom = math.floor(y1 / height * H), math.ceil(y2 / height * H)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                if 0 <= y < H and 0 <= x < W:
                    fg[y][x] = max(fg[y][x], 1 / ((bottom + 1 - top) * (right + 1 - left)))
    rest = sum(value == 0 for row in fg for value in row)
    return fg, [[(value == 0) / max(1, rest) for value in row] for row in fg]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-60, 90), st.floats(-60, 90), st.floats(0, 80), st.floats(0, 80)), max_size=4
    ),
    map_size=st.tuples(st.integers(1, 7), st.integers(1, 9)),
)
def test_box_masks_position_by_position(rows: list[Any], map_size: tuple[int, int]) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in rows]
    fg, bg = box_masks([boxes(*corners)], [(50, 70)], map_size)
    fg_plain, bg_plain = plain_box_masks(corners, (50, 70), map_size)
    torch.testing.assert_close(fg[0], torch.tensor(fg_plain, dtype=torch.float64))
    torch.testing.assert_close(bg[0], torch.tensor(bg_plain, dtype=torch.float64))


def test_each_box_weighs_one_whatever_its_size() -> None:
    small, large = boxes((16, 16, 24, 24)), boxes((8, 8, 100, 80))
    fg, bg = box_masks([small, large], [(128, 128)] * 2, (16, 16))
    torch.testing.assert_close(fg.sum((1, 2)), torch.ones(2).double())
    torch.testing.assert_close(bg.sum((1, 2)), torch.ones(2).double())
    assert fg[0].max() > fg[1].max()


def test_rows_are_not_columns() -> None:
    fg, _ = box_masks([boxes((0, 0, 60, 5))], [(64, 64)], (8, 8))
    assert (fg[0] > 0).sum(1).tolist() == [8, 8, 0, 0, 0, 0, 0, 0]


def test_no_box_is_all_background() -> None:
    fg, bg = box_masks([boxes(), boxes((0, 0, 8, 8))], [(32, 32)] * 2, (4, 4))
    assert fg[0].sum() == 0
    torch.testing.assert_close(bg[0], torch.full((4, 4), 1 / 16, dtype=torch.float64))
    assert fg[1].sum() > 0


def test_a_box_over_everything_leaves_no_background() -> None:
    fg, bg = box_masks([boxes((0, 0, 32, 32))], [(32, 32)], (4, 4))
    assert (fg > 0).all()
    assert bg.sum() == 0


@pytest.mark.parametrize(
    "box",
    [(100, 100, 200, 200), (-90, -90, -40, -40), (20, 20, 4, 4)],
    ids=["beyond", "before", "inverted"],
)
def test_boxes_off_the_map_do_not_count(box: tuple[float, float, float, float]) -> None:
    fg, bg = box_masks([boxes(box)], [(32, 32)], (4, 4))
    assert fg.sum() == 0
    torch.testing.assert_close(bg.sum(), torch.tensor(1.0).double())


def test_a_box_smaller_than_a_position_counts() -> None:
    fg, _ = box_masks([boxes((9.1, 9.1, 9.2, 9.2))], [(32, 32)], (4, 4))
    assert (fg[0] > 0).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_half_precision_boxes_are_divided_in_float32() -> None:
    fg, _ = box_masks([boxes((0, 0, 900, 900)).half()], [(1000, 1000)], (1000, 1000))
    assert fg.dtype == torch.float32
    torch.testing.assert_close(fg.max(), torch.tensor(1 / 901**2))


def test_box_masks_of_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected boxes \(G, 4\), found \(3, 5\)"):
        box_masks([torch.zeros(3, 5)], [(8, 8)], (2, 2))
    with pytest.raises(ValueError, match="one input size per image, found 2 for 1"):
        box_masks([torch.zeros(3, 4)], [(8, 8)] * 2, (2, 2))


# ------------------------------------------------------- attention, focal terms


def plain_softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def plain_attention(feat: list[list[list[float]]], T: float) -> tuple[list[list[float]], list[float]]:
    """Of one image C×H×W, with the channel attention of an image."""
    C, H, W = len(feat), len(feat[0]), len(feat[0][0])
    mean = [sum(abs(feat[c][y][x]) for c in range(C)) / C / T for y in range(H) for x in range(W)]
    flat = [H * W * value for value in plain_softmax(mean)]
    S = [flat[y * W : (y + 1) * W] for y in range(H)]
    A = plain_softmax([sum(abs(v) for row in plane for v in row) / (H * W) / T for plane in feat])
    return S, [C * value for value in A]


def plain_focal_terms(s: Any, t: Any, fg: Any, bg: Any, T: float) -> list[float]:
    B, totals = len(s), [0.0, 0.0, 0.0]
    for own, taught, front, back in zip(s.tolist(), t.tolist(), fg.tolist(), bg.tolist()):
        (S_s, A_s), (S_t, A_t) = plain_attention(own, T), plain_attention(taught, T)
        for c in range(len(own)):
            totals[2] += abs(A_s[c] - A_t[c]) / B
            for y in range(len(own[0])):
                for x in range(len(own[0][0])):
                    error = S_t[y][x] * A_t[c] * (taught[c][y][x] - own[c][y][x]) ** 2 / B
                    totals[0] += front[y][x] * error
                    totals[1] += back[y][x] * error
        totals[2] += sum(abs(a - b) / B for row_s, row_t in zip(S_s, S_t) for a, b in zip(row_s, row_t))
    return totals


def random_masks(B: int = 2, H: int = 4, W: int = 5) -> torch.Tensor:
    return torch.rand(2, B, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("T", [0.5, 2.0])
def test_focal_terms_by_hand(T: float) -> None:
    s, t = maps(2, 3, 4, 5)
    fg, bg = random_masks()
    terms = focal_terms(s, t, fg, bg, temperature=T)
    torch.testing.assert_close(
        torch.stack(terms), torch.tensor(plain_focal_terms(s, t, fg, bg, T), dtype=torch.float64)
    )


def test_focal_terms_by_position_by_hand() -> None:
    s, t = maps(2, 3, 4, 5)
    (fg, bg), T = random_masks(), 0.8
    totals = [0.0, 0.0, 0.0]
    for b in range(2):
        S_s, S_t = (plain_attention(feat[b].tolist(), T)[0] for feat in (s, t))
        for y in range(4):
            for x in range(5):
                A_s, A_t = (
                    [3 * a for a in plain_softmax([abs(v) / T for v in feat[b, :, y, x].tolist()])]
                    for feat in (s, t)
                )
                error = sum(
                    S_t[y][x] * A_t[c] * float(t[b, c, y, x] - s[b, c, y, x]) ** 2 / 2 for c in range(3)
                )
                totals[0] += float(fg[b, y, x]) * error
                totals[1] += float(bg[b, y, x]) * error
                totals[2] += sum(abs(p - q) for p, q in zip(A_s, A_t)) / (2 * 4 * 5)
                totals[2] += abs(S_s[y][x] - S_t[y][x]) / 2
    terms = focal_terms(s, t, fg, bg, temperature=T, channels="position")
    torch.testing.assert_close(torch.stack(terms), torch.tensor(totals, dtype=torch.float64))


def test_attention_has_mean_one() -> None:
    (feat,) = maps(2, 3, 4, 5, count=1)
    for channels in ("image", "position"):
        S, A = attention(feat, 0.5, channels)  # type: ignore[arg-type]
        torch.testing.assert_close(S.mean((1, 2, 3)), torch.ones(2).double())
        torch.testing.assert_close(A.mean(1), torch.ones_like(A[:, 0]))


def test_a_high_temperature_makes_attention_flat() -> None:
    s, t = maps(2, 3, 4, 5)
    fg, bg = random_masks()
    foreground, _, difference = focal_terms(s, t, fg, bg, temperature=1e9)
    torch.testing.assert_close(foreground, ((s - t).square().sum(1) * fg).sum() / 2)
    assert difference < 1e-6


@pytest.mark.parametrize("channels", ["image", "position"])
def test_focal_terms_gradcheck_and_none_to_the_teacher(channels: Any) -> None:
    s, t = maps(2, 3, 2, 3)
    fg, bg = random_masks(2, 2, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_terms(x, t, fg, bg, channels=channels), s)
    t.requires_grad_()
    sum(focal_terms(s, t, fg, bg, channels=channels)).backward()  # type: ignore[union-attr]
    assert t.grad is None


@pytest.mark.parametrize("channels", ["image", "position"])
def test_focal_terms_are_the_same_for_twice_the_batch(channels: Any) -> None:
    s, t = maps(2, 3, 4, 5)
    fg, bg = random_masks()
    double = [torch.cat([x, x]) for x in (s, t, fg, bg)]
    torch.testing.assert_close(
        focal_terms(*double, channels=channels), focal_terms(s, t, fg, bg, channels=channels)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_focal_terms_in_float32_inside_autocast(dtype: torch.dtype) -> None:
    s, t = maps(2, 3, 4, 5).to(dtype)
    fg, bg = random_masks().float()
    expected = focal_terms(s.float(), t.float(), fg, bg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = focal_terms(s, t, fg, bg)
    assert all(term.dtype == torch.float32 for term in terms)
    assert terms == expected


def test_focal_terms_of_huge_features_are_finite() -> None:
    s, t = maps(2, 3, 4, 5).float() * 1e4
    fg, bg = random_masks()
    assert all(torch.isfinite(term) for term in focal_terms(s, t, fg, bg))


@pytest.mark.parametrize("channels", ["image", "position"])
def test_no_image_is_zero(channels: Any) -> None:
    student = torch.zeros(0, 3, 4, 5, requires_grad=True)
    masks = box_masks([], [], (4, 5))
    terms = focal_terms(student, torch.zeros(0, 3, 4, 5), *masks, channels=channels)
    assert [float(term) for term in terms] == [0, 0, 0]
    sum(terms).backward()


def test_focal_terms_of_bad_shapes() -> None:
    s = torch.zeros(2, 3, 4, 5)
    fg, bg = random_masks()
    with pytest.raises(ValueError, match=r"equal shape \(B, C, H, W\)"):
        focal_terms(s, s[:, :2], fg, bg)
    with pytest.raises(ValueError, match=r"expected masks \(2, 4, 5\), found \(2, 5, 4\)"):
        focal_terms(s, s, fg, bg.mT)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "1"])
def test_bad_temperatures(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        check_attention_options(temperature)


def test_bad_channels() -> None:
    with pytest.raises(ValueError, match="channels must be one of image, position, found 'all'"):
        check_attention_options(1.0, "all")


# ------------------------------------------------------------ prediction-guided
