from __future__ import annotations

from collections.abc import Iterator

from mmkd.doctor.findings import Finding, NotExamined, collect, from_error, shortened
from mmkd.errors import UserError


def ends_with(error: Exception) -> list[Finding]:
    def examination() -> Iterator[Finding]:
        yield Finding("ok", "first", "well")
        raise error

    return list(collect("it", examination))


def test_what_came_before_stays() -> None:
    first, last = ends_with(NotExamined("no data"))
    assert first.what == "first"
    assert (last.level, last.found) == ("note", "not checked: no data")


def test_an_unexpected_error_is_a_finding() -> None:
    last = ends_with(ZeroDivisionError("by\nzero"))[-1]
    assert (last.level, last.what) == ("error", "it")
    assert last.found.startswith("ZeroDivisionError: by zero (in examination, ")


def test_a_users_error_keeps_its_remedy() -> None:
    error = UserError("It is bad.", expected="good", found="bad\nand worse", remedy="mend it")
    assert from_error("it", error) == Finding(
        "error", "it", "It is bad. Expected: good. Found: bad and worse.", "mend it"
    )
    assert ends_with(error)[-1].remedy == "mend it"
    assert from_error("it", UserError("plain")).found == "plain"


def test_what_is_as_expected_needs_no_remedy() -> None:
    assert Finding.expect(True, "it", "good", "mend it") == Finding.ok("it", "good")
    assert Finding.expect(False, "it", "bad", "mend it") == Finding.warning("it", "bad", "mend it")


def test_shortened() -> None:
    assert shortened("abc", 3) == "a, b, c"
    assert shortened("abcd", 2) == "a, b, … 2 more"
