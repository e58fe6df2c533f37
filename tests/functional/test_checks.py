from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from mmkd.functional.checks import (
    check_bool,
    check_choice,
    check_factors,
    check_number,
    check_whole,
    checked_maps,
    exact,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "wanted"),
    [
        ("[0, inf)", [0, 0.5, 1e30], [-1e-9, INF, NAN, "1", None, True], "≥ 0"),
        ("(0, inf)", [1e-9, 3], [0, -1, INF], "above 0"),
        ("(0, inf]", [INF], [0], "above 0"),
        ("[0, 1]", [0, 1], [-0.1, 1.1, NAN], r"in \[0, 1\]"),
        ("[0, 1)", [0, 0.999], [1], r"in \[0, 1\)"),
        ("(0, 1]", [1], [0], r"in \(0, 1\]"),
    ],
)
def test_numbers(interval: str, inside: list[Any], outside: list[Any], wanted: str) -> None:
    for value in inside:
        check_number(interval, first=0.5, option=value)
    for value in outside:
        with pytest.raises(ValueError, match=f"option must be a number {wanted}, found {value!r}"):
            check_number(interval, first=0.5, option=value)


@pytest.mark.parametrize("value", [0, 2.0, True, "1", None])
def test_whole_numbers(value: Any) -> None:
    check_whole(1, option=1)
    with pytest.raises(ValueError, match=f"option must be a whole number ≥ 1, found {value!r}"):
        check_whole(1, option=value)


def test_switches_and_choices() -> None:
    check_bool(one=True, two=False)
    with pytest.raises(ValueError, match="two must be True or False, found 0"):
        check_bool(one=True, two=0)
    for choices in (Literal["a", "b"], ("a", "b")):
        check_choice("option", "b", choices)
        with pytest.raises(ValueError, match="option must be one of a, b, found 'c'"):
            check_choice("option", "c", choices)


def test_factors_that_make_nothing_of_a_loss() -> None:
    check_factors(alpha=0, beta=1)
    with pytest.raises(ValueError, match="alpha and beta are both 0"):
        check_factors(alpha=0, beta=0.0)


def test_maps_are_compared_in_float32_without_the_teachers_gradient() -> None:
    own, taught = torch.ones(1, 2, 3, 4, dtype=torch.float16), torch.ones(1, 5, 3, 4, requires_grad=True)
    first, second = checked_maps(own, taught, same_width=False)
    assert (first.dtype, second.dtype, second.requires_grad) == (torch.float32, torch.float32, False)
    assert exact(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"equal shape \(B, C, H, W\)"):
        checked_maps(own, taught)
    with pytest.raises(ValueError, match=r"equal shape \(B, any, H, W\)"):
        checked_maps(own, torch.ones(1, 5, 3, 3), same_width=False)
