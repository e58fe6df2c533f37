from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import zoo
from .conftest import only_soak


def documented() -> tuple[dict[str, str], str]:
    """The rows of the table in the docs by folder, and its totals."""
    inside = zoo.PAGE.read_text(encoding="utf-8").split(zoo.BEGIN)[1].split(zoo.END)[0]
    lines = inside.strip().splitlines()
    rows = {one.split("`")[1]: one for one in lines if one.startswith("| `")}
    return rows, lines[-1]


def test_the_table_has_every_folder_and_counts_right() -> None:
    rows, totals = documented()
    assert list(rows) == zoo.folders()
    cells = {folder: one.strip("| ").split(" | ") for folder, one in rows.items()}
    assert {len(row) for row in cells.values()} == {5}
    ran = [row for row in cells.values() if zoo.Row(*row[:3], row[3], row[4]).counts]
    features = sum(row[3] == "✓" for row in ran)
    outputs = sum(row[4].strip("`") in (*zoo.DENSE, *zoo.PLACES) for row in ran)
    assert totals.startswith(f"Of {len(cells)} folders {len(ran)} have a detector")
    assert f"Features: {features} (100 %)" in totals
    assert outputs >= 0.9 * len(ran)
    assert f"Outputs: {outputs} (" in totals
    assert not any("fails:" in one for one in rows.values())


# Small backbones of each kind of place, what may not be a student, and what is none.
@pytest.mark.parametrize("folder", ["bytetrack", "lad", "retinanet", "solo", "faster_rcnn", "detr"])
def test_rows_are_what_is_found(folder: str) -> None:
    assert [zoo.line(row) for row in zoo.tried([folder])] == [documented()[0][folder]]


@only_soak
def test_all_rows_are_what_is_found() -> None:
    rows, _ = documented()
    found = {row.folder: zoo.line(row) for row in zoo.tried(zoo.folders()) if zoo.MACHINE not in row.features}
    assert found == {folder: rows[folder] for folder in found}


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
