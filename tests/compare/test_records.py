from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.compare.records import RECORD, Record, provenance, read_record, write_record
from mmkd.errors import UserError


def test_round_trip(tmp_path: Path) -> None:
    record = Record("kd", 1, "kd.py", "abc", trained=True, metrics={"coco/bbox_mAP": 0.4}, **provenance())
    write_record(tmp_path / "run", record)
    assert read_record(tmp_path / "run") == record
    assert read_record(tmp_path / "other") is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == [RECORD]


def test_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"member": "kd"}')
    with pytest.raises(UserError, match="not a run record"):
        read_record(tmp_path)


def test_finished() -> None:
    record = Record("kd", 0, "kd.py", "abc", trained=True)
    assert not record.finished
    record.evaluated = "def"
    assert record.finished
    record.error = "no"
    assert not record.finished


def test_provenance() -> None:
    found = provenance()
    assert set(found) == {"commit", "versions", "hardware"}
    assert found["versions"]["torch"].startswith("2.")
    assert found["hardware"]["threads"] >= 1
