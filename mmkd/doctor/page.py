"""Formats the findings as text, HTML and data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmkd.doctor.findings import NOT_EXAMINED, Level, Section

_COLOURS: dict[Level, str] = {"ok": "32", "note": "36", "warning": "33", "error": "31"}
_MARK = 9
_WHAT = 22


def page(title: str, sections: Sequence[Section], *, colour: bool = False, width: int = 110) -> str:
    """Format the findings as plain text.

    Args:
        title: the first line.
        sections: one per check.
        colour: mark levels with terminal colours.
        width: line width in characters.
    """
    lines = [title]
    for section in sections:
        lines += ["", f"{section.title} ({section.seconds:.1f} s)"]
        for finding in section.findings:
            mark = f"{finding.level:<{_MARK}}"
            if colour:
                mark = f"\033[{_COLOURS[finding.level]}m{mark}\033[0m"
            body = list(_wrapped(finding.found, width)) or [""]
            body += _wrapped(finding.remedy, width, "→ ")
            lines.append(
                f"  {mark}{finding.what:<{_WHAT}}{' ' if len(finding.what) >= _WHAT else ''}{body[0]}"
            )
            lines += [" " * (2 + _MARK + _WHAT) + line for line in body[1:]]
    return "\n".join([*lines, "", summary(sections)])


def summary(sections: Sequence[Section]) -> str:
    """The numbers of errors and warnings, and what follows."""
    errors, warnings = count(sections, "error"), count(sections, "warning")
    return f"{_of(errors, 'error')}, {_of(warnings, 'warning')}: {verdict(sections)}"


def verdict(sections: Sequence[Section]) -> str:
    """What to do next."""
    if count(sections, "error"):
        return "fix the errors before training"
    notes = any(one.found.startswith(NOT_EXAMINED) for section in sections for one in section.findings)
    text = "ready to train" + (", as far as checked" if notes else "")
    return text + ("; read the warnings first" if count(sections, "warning") else "")


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The findings as one HTML page, errors and warnings first; needs jinja2.

    Args:
        title: the page's heading.
        sections: one per check.
    """
    from mmkd import html  # jinja2 is an extra

    findings = [finding for section in sections for finding in section.findings]
    return html.render(
        Path(__file__).with_name("doctor.html.j2"),
        title=title,
        verdict=verdict(sections),
        errors=[finding for finding in findings if finding.level == "error"],
        warnings=[finding for finding in findings if finding.level == "warning"],
        passed=count(sections, "ok"),
        sections=sections,
    )


def as_data(title: str, sections: Sequence[Section]) -> dict[str, Any]:
    """The findings as plain lists and dicts."""
    return {
        "title": title,
        "errors": count(sections, "error"),
        "warnings": count(sections, "warning"),
        "sections": [
            {
                "title": section.title,
                "seconds": round(section.seconds, 3),
                "findings": [vars(finding) for finding in section.findings],
            }
            for section in sections
        ],
    }


def count(sections: Sequence[Section], level: Level) -> int:
    """The number of findings of a level."""
    return sum(finding.level == level for section in sections for finding in section.findings)


def _of(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _wrapped(text: str, width: int, first: str = "") -> Iterator[str]:
    room = width - 2 - _MARK - _WHAT
    yield from textwrap.wrap(
        text,
        room,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
