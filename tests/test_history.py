from __future__ import annotations

from pathlib import Path

from mmkd.history import LogReader, logged_rows


def test_rows_of_all_runs_in_their_order(tmp_path: Path) -> None:
    for run, text in (
        ("20240102", '{"step": 3}\n{"step": 4, "lo'),  # cut off by a kill
        ("20240101", '{"step": 1}\n\n[1]\n{"step": 2}\n'),
    ):
        (tmp_path / run / "vis_data").mkdir(parents=True)
        (tmp_path / run / "vis_data/scalars.json").write_text(text)
    assert [row["step"] for row in logged_rows(tmp_path)] == [1, 2, 3]
    assert list(logged_rows(tmp_path / "none")) == []


def test_each_row_is_read_once(tmp_path: Path) -> None:
    first, second = (tmp_path / name / "vis_data/scalars.json" for name in ("1", "2"))
    log = LogReader(tmp_path)
    assert list(log.new_rows()) == []
    for file in (first, second):
        file.parent.mkdir(parents=True)
    first.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in log.new_rows()] == [1, 2]
    assert list(log.new_rows()) == []
    # What was read is not read again, so it can be anything of the same length.
    first.write_text(f'{"-" * 23}\n{{"step": 3}}\n')
    second.write_text('{"step": 4}\n')
    assert [row["step"] for row in log.new_rows()] == [3, 4]
    assert [row["step"] for row in logged_rows(tmp_path)] == [3, 4]
