from __future__ import annotations

from pathlib import Path

from mmkd.history import logged_rows


def test_rows_of_all_runs_in_their_order(tmp_path: Path) -> None:
    for run, text in (
        ("20240102", '{"step": 3}\n{"step": 4, "lo'),  # cut off by a kill
        ("20240101", '{"step": 1}\n\n[1]\n{"step": 2}\n'),
    ):
        (tmp_path / run / "vis_data").mkdir(parents=True)
        (tmp_path / run / "vis_data/scalars.json").write_text(text)
    assert [row["step"] for row in logged_rows(tmp_path)] == [1, 2, 3]
    assert list(logged_rows(tmp_path / "none")) == []
