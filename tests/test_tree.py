"""Tests mirror the package."""

from __future__ import annotations

import re

from .conftest import ROOT

MODULES = [file.relative_to(ROOT) for file in sorted(ROOT.glob("mmkd/**/*.py")) if file.stem != "__init__"]


def test_each_module_has_its_test_or_a_reason() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = contributing.partition("| module | tested by |\n")[2].partition("\n\n")[0]
    reasons = [row.split(" | ") for row in table.splitlines()[1:]]
    excused = {name for modules, _ in reasons for name in re.findall("`(.*?)`", modules)}
    without = {
        module.as_posix()
        for module in MODULES
        if not (ROOT / "tests" / module.parent.relative_to("mmkd") / f"test_{module.name}").is_file()
    }
    assert without == excused, "add the test, or a row with the reason to CONTRIBUTING.md"
    for _, reason in reasons:
        named = re.findall("`(tests/.*?)`", reason)
        assert named, reason
        assert all((ROOT / name).is_file() for name in named), reason
