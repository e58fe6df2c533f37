"""The findings of a check."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec

from mmkd.build_errors import explained
from mmkd.errors import UserError

P = ParamSpec("P")
Level = Literal["ok", "note", "warning", "error"]
NOT_EXAMINED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: an error stops or certainly spoils a training; a warning does not stop it but may spoil it; a
            note says what was not checked.
        what: what was checked.
        found: what the check found.
        remedy: what to do about it; empty if nothing is wrong.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, what: str, found: str) -> Finding:
        """Nothing is wrong."""
        return cls("ok", what, found)

    @classmethod
    def note(cls, what: str, found: str) -> Finding:
        """What was not examined."""
        return cls("note", what, found)

    @classmethod
    def warning(cls, what: str, found: str, remedy: str = "") -> Finding:
        """What may spoil a training."""
        return cls("warning", what, found, remedy)

    @classmethod
    def error(cls, what: str, found: str, remedy: str = "") -> Finding:
        """What stops a training or spoils it for certain."""
        return cls("error", what, found, remedy)

    @classmethod
    def expect(cls, good: bool, what: str, found: str, remedy: str) -> Finding:
        """Nothing is wrong if it is ``good``; otherwise a warning."""
        return cls.ok(what, found) if good else cls.warning(what, found, remedy)


@dataclass
class Section:
    """The findings of one check, and its duration in seconds."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


class NotExamined(Exception):  # noqa: N818  (nothing is wrong here)
    """A check could not run, mostly because of an error elsewhere; the text says why."""


def collect(
    what: str, check: Callable[P, Iterator[Finding]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Finding]:
    """The findings of a check; an exception ends it and becomes a finding.

    Args:
        what: the check's name.
        check: the check, called with the other arguments.
    """
    try:
        yield from check(*args, **kwargs)
    except NotExamined as reason:
        yield Finding.note(what, f"{NOT_EXAMINED}: {reason}")
    except UserError as error:
        yield from_error(what, error)
    except Exception as error:
        plain = explained(error)
        if plain is not None:
            yield from_error(what, plain)
            return
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        yield Finding.error(
            what,
            f"{type(error).__name__}: {text[:400]} (in {place.name}, {place.filename}:{place.lineno})",
            "training would stop here, unless this is a bug in the doctor: see the file named",
        )


def from_error(what: str, error: UserError) -> Finding:
    """Convert an error's fields to a finding."""
    found = _on_one_line(error.what)
    if error.expected is not None:
        found += f" Expected: {_on_one_line(error.expected)}. Found: {_on_one_line(error.found or '')}."
    return Finding.error(what, found, _on_one_line(error.remedy or "correct it in the config"))


def _on_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def shortened(names: Any, most: int = 8) -> str:
    """Join names, replacing the rest of a long list by its count."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")
