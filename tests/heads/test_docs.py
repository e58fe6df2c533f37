"""docs/heads.md says what the contract test holds.

``python -m tests.heads.test_docs`` writes its tables anew.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.registry import init_default_scope

from mmkd.heads.refusals import NOT_SERVED
from mmkd.losses import registered_losses

from .cases import CASES, Case
from .methods import lacks

PAGE = Path(__file__).resolve().parents[2] / "docs/heads.md"


def title(case: Case) -> str:
    name, _, options = case.head.partition(", ")
    return f"`{name}`" + (f" with `{options}`" if options else "")


def row(case: Case) -> str:
    priors = set(case.priors)
    assert len(priors) == 1
    cells = [
        title(case),
        case.logits + (", softmax with background" if case.softmax else ""),
        f"{len(case.priors)} × {priors.pop()}",
        case.box + (" ¹" if case.modes else ""),
        ", ".join(f"`{name}`" for name in case.quality) or "–",
        case.labels or "–",
    ]
    return f"| {' | '.join(cells)} |"


def losses_row(case: Case) -> str:
    cells = ["–" if lacks(case, loss) else "✓" for loss in registered_losses()]
    return f"| {' | '.join([title(case), *cells])} |"


def tables() -> dict[str, list[str]]:
    """By the name in the page's marks, the lines between them."""
    return {
        "served": [
            "| head | class logits | levels × base priors | box output | quality output | assigned classes |",
            "|---|---|---|---|---|---|",
            *map(row, CASES),
        ],
        "losses": [
            f"| head | {' | '.join(f'`{loss}`' for loss in registered_losses())} |",
            "|---|" + ":-:|" * len(registered_losses()),
            *(losses_row(case) for case in CASES if case.trains),
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
    logging.disable()  # what mmdet tells of the heads' initial weights
    init_default_scope("mmdet")
    PAGE.write_text(regenerated(PAGE.read_text()))
