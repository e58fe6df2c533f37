from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import zoo


def test_rows_are_kept_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = tmp_path / "heads.md", tmp_path / "rows.jsonl"
    page.write_text(f"before\n{zoo.BEGIN}\n{zoo.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(zoo, "PAGE", page)
    monkeypatch.setattr(zoo, "folders", lambda: ["atss", "sort"])
    tries: list[str] = []

    def tried(asked: list[str], verbose: bool) -> list[zoo.Row]:
        tries.extend(asked)
        return [zoo.Row(folder, f"{folder}_r50", "ATSS", zoo.YES, "dense") for folder in asked]

    monkeypatch.setattr(zoo, "tried", tried)
    path.write_text(json.dumps(vars(zoo.Row("sort", zoo.NONE, "tracking", zoo.NONE, zoo.NONE))) + "\n")
    zoo.main([str(path)])
    zoo.main([str(path)])
    assert tries == ["atss"]
    zoo.main([str(path), "atss", "-v"])
    assert tries == ["atss", "atss"]
    text = page.read_text(encoding="utf-8")
    assert "| `atss` | `atss_r50` | `ATSS` | ✓ | `dense` |\n| `sort` | – | tracking | – | – |" in text
    assert "Of 2 folders 1 have a detector that ran here" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
