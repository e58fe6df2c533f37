import pytest

from mmkd.errors import UserError, check_options, user_error


def test_form() -> None:
    error = user_error("It is wrong.", expected="a", found="b", remedy="c")
    assert isinstance(error, UserError)
    assert str(error) == "It is wrong.\n  expected: a\n  found:    b\n  remedy:   c"


def test_unknown_option_lists_the_valid_ones() -> None:
    check_options("it", ["a"], ["b", "a"])
    with pytest.raises(UserError, match="it has no option c.*\n.*a, b"):
        check_options("it", ["a", "c"], ["b", "a"])
