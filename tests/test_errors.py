from mmkd.errors import UserError, user_error


def test_form() -> None:
    error = user_error("It is wrong.", expected="a", found="b", remedy="c")
    assert isinstance(error, UserError)
    assert str(error) == "It is wrong.\n  expected: a\n  found:    b\n  remedy:   c"
