from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.compat import load_config
from mmkd.doctor.student_runs import behind_student, newest_run


@pytest.fixture(scope="module")
def distilled() -> Config:
    return load_config("configs/bccd/kd.py")


@pytest.fixture(scope="module")
def alone() -> Config:
    return load_config("configs/bccd/student.py")


def finished(
    folder: Path, cfg: Config, ap: float, epoch: int = 5, change: Callable[[Config], object] = lambda _: None
) -> None:
    folder.mkdir(parents=True)
    cfg = Config(cfg.to_dict())
    change(cfg)
    cfg.dump(folder / "student.py")
    content = {"metrics": {"coco/bbox_mAP": ap}, "epoch": epoch, "iter": 73 * epoch, "checkpoint": None}
    (folder / "metrics_val_last.json").write_text(json.dumps(content))


def examined(cfg: Config, root: Path, *more: Any) -> list[Any]:
    cfg = Config(cfg.to_dict())
    cfg.work_dir = str(root / "kd")
    return list(behind_student(cfg, *(more or (0.5, "on 72 images", 0.0))))


def test_a_student_that_is_better(distilled: Config, alone: Config, tmp_path: Path) -> None:
    assert examined(distilled, tmp_path) == []
    finished(tmp_path / "plan/student/seed_0", alone, 0.55)
    (warning,) = examined(distilled, tmp_path)
    assert warning.level == "warning"
    assert warning.found.startswith(
        f"0.500 (on 72 images); the student alone has 0.550 ({tmp_path}/plan/student"
    )
    assert "epoch 5" in warning.found
    assert "better teacher" in warning.remedy
    (fine,) = examined(distilled, tmp_path, 0.57, "its training logged", 0.0)
    assert fine.level == "ok"
    (chance,) = examined(distilled, tmp_path, 0.5, "on 8 images", 0.1)
    assert chance.level == "ok"


def test_what_is_no_finished_run_of_this_student(distilled: Config, alone: Config, tmp_path: Path) -> None:
    finished(tmp_path / "unfinished", alone, 0.55, epoch=4)
    finished(tmp_path / "distilled", distilled, 0.55)
    finished(tmp_path / "wider", alone, 0.55, change=lambda cfg: cfg.model.backbone.update(base_channels=32))
    finished(
        tmp_path / "elsewhere",
        alone,
        0.55,
        change=lambda cfg: cfg.val_dataloader.dataset.update(ann_file="other.json"),
    )
    finished(tmp_path / "broken", alone, 0.55)
    (tmp_path / "broken/metrics_val_last.json").write_text("{")
    finished(tmp_path / "nothing", alone, 0.55)
    (tmp_path / "nothing/metrics_val_last.json").write_text('{"metrics": {}, "epoch": 5, "iter": 1}')
    finished(tmp_path / "unreadable", alone, 0.55)
    (tmp_path / "unreadable/student.py").write_text("(")
    assert examined(distilled, tmp_path) == []


def test_by_iterations(distilled: Config, alone: Config, tmp_path: Path) -> None:
    def change(cfg: Config) -> None:
        cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 73 * 5}

    finished(tmp_path / "student", alone, 0.55, change=change)
    (warning,) = examined(distilled, tmp_path)
    assert "iteration 365" in warning.found


def test_without_a_work_dir(distilled: Config) -> None:
    assert newest_run(Config({"model": distilled.model})) is None
