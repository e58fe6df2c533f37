"""docs/heads.md says what the contract test holds.

``python -m tests.heads.test_docs`` writes its tables anew.
"""

from __future__ import annotations

from pathlib import Path

from mmkd.heads.refusals import NOT_SERVED

from .cases import CASES, Case

PAGE = Path(__file__).resolve().parents[2] / "docs/heads.md"


def row(case: Case) -> str:
    name, _, options = case.head.partition(", ")
    priors = set(case.priors)
    assert len(priors) == 1
    cells = [
        f"`{name}`" + (f" with `{options}`" if options else ""),
        case.logits + (", softmax with background" if case.softmax else ""),
        f"{len(case.priors)} × {priors.pop()}",
        case.box + (" ¹" if case.modes else ""),
        ", ".join(f"`{name}`" for name in case.quality) or "–",
        case.labels or "–",
    ]
    return f"| {' | '.join(cells)} |"


def tables() -> dict[str, list[str]]:
    """By the name in the page's marks, the lines between them."""
    return {
        "served": [
            "| head | class logits | levels × base priors | box output | quality output | assigned classes |",
            "|---|---|---|---|---|---|",
            *map(row, CASES),
        ],
        "not served": [
            "| head | why |",
            "|---|---|",
            *(f"| `{name}` | {why} |" for name, why in sorted(NOT_SERVED.items())),
        ],
    }


def regenerated(page: str) -> str:
    for name, lines in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        assert rest, f"the page has lost its mark {start!r}"
        assert after, f"the page has lost its mark {end!r}"
        page = before + start + "\n".join(lines) + "\n" + end + after
    return page


def test_the_tables_are_those_of_the_contract_test() -> None:
    page = PAGE.read_text()
    assert page == regenerated(page), "run: python -m tests.heads.test_docs"


if __name__ == "__main__":
    PAGE.write_text(regenerated(PAGE.read_text()))
