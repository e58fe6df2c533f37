import copy
import pickle
from collections.abc import Callable

import pytest
from mmcv.transforms import Compose, RandomFlip

from mmkd.errors import UserError, check_options, nearest, place_of, user_error
from mmkd.hooks.seeded_data import SampleError
from mmkd.registry import MODELS

from .conftest import tiny_atss


def fields(error: UserError) -> tuple[str | None, ...]:
    return error.what, error.expected, error.found, error.remedy


@pytest.mark.parametrize("kind", [UserError, SampleError, user_error])
def test_form(kind: type[UserError]) -> None:
    error = kind("It is wrong.", expected="a", found="b", remedy="c")
    assert isinstance(error, UserError)
    assert str(error) == "It is wrong.\n  expected: a\n  found:    b\n  remedy:   c"
    assert fields(error) == ("It is wrong.", "a", "b", "c")


def test_a_sentence_alone() -> None:
    error = UserError("it must be a number ≥ 0, found -1")
    assert str(error) == error.what == "it must be a number ≥ 0, found -1"
    assert fields(error)[1:] == (None, None, None)


@pytest.mark.parametrize("sent", [copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", [UserError, SampleError])
def test_fields_cross_processes(kind: type[UserError], sent: Callable[[UserError], UserError]) -> None:
    error = kind("It is wrong.", expected="a\nb", found="", remedy="c")
    again = sent(error)
    assert type(again) is kind
    assert (str(again), fields(again)) == (str(error), fields(error))


def test_where_it_arose() -> None:
    error = user_error("It is wrong.", expected="a", found="b", remedy="c").at("teacher[1]")
    assert fields(error) == ("teacher[1]: It is wrong.", "a", "b", "c")
    assert str(error).startswith("teacher[1]: It is wrong.\n  expected: a")


def test_unknown_option_lists_the_valid_ones() -> None:
    check_options("it", ["a"], ["b", "a"])
    with pytest.raises(UserError, match="it has no option c.*\n.*a, b"):
        check_options("it", ["a", "c"], ["b", "a"])


def test_place_of_what_was_built() -> None:
    cfg = tiny_atss()
    cfg.neck.in_channels = "8"
    with pytest.raises(AssertionError) as caught:
        MODELS.build(cfg)
    assert str(caught.value) == ""
    place = place_of(caught.value)
    assert place == "while building ATSS → FPN, at: assert isinstance(in_channels, list)"

    cfg = tiny_atss()
    del cfg.bbox_head.loss_cls["type"]
    with pytest.raises(KeyError) as without_type:
        MODELS.build(cfg)
    assert "ATSS → ATSSHead → a dict without type, of use_sigmoid" in place_of(without_type.value)


def test_place_of_what_ran() -> None:
    with pytest.raises(KeyError) as caught:
        Compose([RandomFlip(prob=1.0)])({})
    assert place_of(caught.value).startswith("in RandomFlip.")


def test_no_place_for_what_is_elsewhere() -> None:
    with pytest.raises(ValueError, match="invalid") as caught:
        int("x")
    assert place_of(caught.value) == ""


def test_nearest() -> None:
    assert nearest("tempurature", ["weight", "temperature", "temper"]) == "temperature"
    assert nearest("tempurature", iter(["weight"])) is None
    assert nearest("lrr", ["lr"], cutoff=0.9) is None
