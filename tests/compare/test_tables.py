from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmkd.compare.tables import RUN_KEYS, SUMMARY_KEYS, main

from ..conftest import ROOT


def row(recipe: str, **values: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(SUMMARY_KEYS),
        "dataset": "BCCD",
        "recipe": recipe,
        "recommended": False,
        **values,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    better = {
        "map_difference": 0.05,
        "map_interval": [-0.01, 0.11],
        "gap_recovered": 0.5,
        "positive_seeds": 3,
    }
    summary = [
        row("student", seeds=3, map_mean=0.4, map_std=0.01),
        row("boxes", seeds=3, map_mean=0.45, map_std=0.02, recommended=True, config="kd.py", **better),
        row("failed", seeds=0),
        row("worse by a hair", seeds=3, map_mean=0.4, gap_recovered=-0.004),
    ]
    path = tmp_path / "bccd.json"
    path.write_text(json.dumps({"runs": [dict.fromkeys(RUN_KEYS)], "summary": summary}))
    return path


def test_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| BCCD | mAP |")
    assert lines[2] == "| student | 0.400\xa0±\xa00.010 |  |  |  |  |"
    assert lines[3] == (
        "| boxes | **0.450**\xa0±\xa00.020 | +0.050 (-0.010 to +0.110) | 3 of 3 | 50 % | `kd.py` |"
    )
    assert lines[4] == "| failed | – |  |  |  |  |"
    assert lines[5] == "| worse by a hair | 0.400 |  |  | 0 % |  |"


def test_documents_are_written_anew(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"Before.\n<!-- results: {results} -->\nold\n<!-- end of results -->\nAfter.\n")
    assert main(["--into", str(document), "--check"]) == 1
    assert "\nold\n" in document.read_text()
    assert main(["--into", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("Before.\n<!-- results:")
    assert text.endswith("|\n<!-- end of results -->\nAfter.\n")
    assert "**0.450**" in text
    assert main(["--into", str(document), "--check"]) == 0
    assert main(["--into", str(document)]) == 0
    assert document.read_text() == text
    assert "updated" in capsys.readouterr().err


def test_summary_has_a_row_for_each_file(results: Path, tmp_path: Path) -> None:
    content = json.loads(results.read_text())
    content["summary"].append(row("teacher", seeds=1, map_mean=0.5))
    results.write_text(json.dumps(content))
    document = tmp_path / "doc.md"
    document.write_text(f"<!-- summary: {results} {results} -->\nold\n<!-- end of results -->\n")
    assert main(["--into", str(document)]) == 0
    lines = document.read_text().splitlines()
    assert lines[1].startswith("| data and pair | teacher |")
    assert lines[3] == "| BCCD | 0.500 | 0.400 | 0.450 | +0.050 (-0.010 to +0.110) | 3 of 3 | 50 % |"
    assert lines[4:] == [lines[3], "<!-- end of results -->"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no markers for tables"),
        ("<!-- results: a.json -->", "has no `<!-- end of results -->`"),
        ("<!-- results: nowhere.json -->\n<!-- end of results -->", "Cannot read results"),
    ],
)
def test_mistakes_in_documents(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "doc.md"
    document.write_text(text)
    assert main(["--into", str(document)]) == 2
    assert message in capsys.readouterr().err
    assert document.read_text() == text


def test_missing_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"runs": [], "summary": [{"dataset": "BCCD"}]}))
    assert main([str(path)]) == 2
    assert "recipe, recommended" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def test_the_documents_tables_are_those_of_their_results() -> None:
    pages = [
        page
        for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
        if re.search(r"^<!-- (results|summary): ", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert {ROOT / "README.md", ROOT / "docs/results.md"} <= set(pages)
    assert main(["--into", *map(str, pages), "--check"]) == 0, "python -m mmkd.compare.tables --into PAGE"
