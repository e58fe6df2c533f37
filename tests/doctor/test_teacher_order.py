from __future__ import annotations

from pathlib import Path

from mmkd.doctor.findings import Finding
from mmkd.doctor.teacher_order import examine_order
from mmkd.doctor.teacher_predictions import load_teacher
from mmkd.doctor.trial import Trial

from . import bccd


def examined(*damages: object) -> Finding:
    setup = bccd.setup(*damages, images=20)  # type: ignore[arg-type]
    (finding,) = examine_order(Trial(setup, load_teacher(setup.teachers[0], "cpu")))
    return finding


def test_trained_on_another_order_and_no_names(tmp_path: Path) -> None:
    order = bccd.annotations(tmp_path, bccd.reordered)
    finding = examined(bccd.checkpoint(tmp_path / "teacher.pth", None), order, bccd.other_names)
    assert finding.level == "error"
    for pair in ("Platelets is predicted as RBC", "RBC is predicted as WBC", "WBC is predicted as Platelets"):
        assert pair in finding.found
    assert "'classes': ('Platelets', 'RBC', 'WBC')" in finding.remedy


def test_found_by_name_in_another_order(tmp_path: Path) -> None:
    finding = examined(bccd.annotations(tmp_path, bccd.reordered), bccd.other_names)
    assert finding.level == "ok", finding


def test_the_checkpoint_names_them_wrongly(tmp_path: Path) -> None:
    wrong = bccd.checkpoint(tmp_path / "teacher.pth", ("WBC", "RBC", "Platelets"))
    finding = examined(wrong)
    assert finding.level == "error"
    assert "class_map={" in finding.remedy

    def map_them(cfg: object) -> None:
        cfg.model.teacher.class_map = {"WBC": "Platelets", "Platelets": "WBC"}  # type: ignore[attr-defined]

    assert "{'WBC': 'Platelets', 'Platelets': 'WBC'}" in finding.remedy
    assert examined(wrong, map_them).level == "ok"
