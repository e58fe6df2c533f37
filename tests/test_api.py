from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmkd
from mmkd.compare.plan import read_plan
from mmkd.errors import UserError
from mmkd.project import Project

from .project.test_dataset import few

QUICK = {
    "train_cfg.max_epochs": 1,
    "model.test_cfg.score_thr": 0.0,  # so that something is found after a step
    **{
        f"{part}_dataloader.{key}": value
        for part in ("train", "val", "test")
        for key, value in (("num_workers", 0), ("persistent_workers", False), ("batch_size", 2))
    },
}


def test_the_names_are_there_and_read_when_asked_for() -> None:
    assert mmkd.distill.__module__ == "mmkd.api"
    assert {"compare", "distill", "evaluate", "init"} <= set(mmkd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        mmkd.destill  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_distilled_student(tmp_path: Path) -> None:
    few(tmp_path / "data", 2)
    out = tmp_path / "out"
    found = mmkd.distill(data=tmp_path / "data", work_dir=out, **QUICK)
    assert found.checkpoint == out / "work_dirs/kd/epoch_1.pth"
    assert found.teacher is not None
    assert found.teacher.checkpoint == out / "work_dirs/teacher/epoch_1.pth"
    plan = read_plan(out / "compare.yaml")
    assert plan.teacher is not None
    assert plan.teacher.checkpoint == str(found.teacher.checkpoint), "with one epoch instead of the plan's"
    steps = [step for step, _ in found.curves["loss"]]
    assert steps == sorted(steps)
    assert any(name.startswith("loss_kd_") for name in found.curves)
    assert not any(name.startswith("loss_kd_") for name in found.teacher.curves)
    written = torch.load(found.checkpoint, weights_only=False)
    assert written["meta"]["dataset_meta"]["classes"] == ("Platelets", "RBC", "WBC")
    assert not any("teacher" in key for key in written["state_dict"])

    metrics = mmkd.evaluate(out / "kd.py", found.checkpoint, work_dir=tmp_path / "test", **QUICK)
    assert "coco/bbox_mAP" in metrics
    assert metrics == pytest.approx(found.metrics)
    assert found.curves["coco/bbox_mAP"] == [(1, metrics["coco/bbox_mAP"])]

    # Finished already: nothing is trained again.
    before = found.checkpoint.stat().st_mtime_ns
    again = mmkd.distill(data=tmp_path / "data", work_dir=out, resume=True, **QUICK)
    assert again.checkpoint.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is not empty"):
        mmkd.distill(data=tmp_path / "data", work_dir=out, **QUICK)


def test_a_project_is_returned(tmp_path: Path) -> None:
    few(tmp_path / "data", 4)
    found = mmkd.init(tmp_path / "mine", tmp_path / "data")
    assert isinstance(found, Project)
    assert (found.folder / "kd.py").is_file()


def test_what_is_wrong_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing to train"):
        mmkd.distill(work_dir=tmp_path)
    with pytest.raises(UserError, match="needs both its config and its checkpoint"):
        mmkd.distill(student="configs/bccd/student.py", teacher="configs/bccd/teacher.py", work_dir=tmp_path)
    with pytest.raises(UserError, match="No checkpoint to evaluate"):
        mmkd.evaluate("configs/bccd/student.py")
    with pytest.raises(UserError):
        mmkd.compare(["configs/bccd/student.py"])
    with pytest.raises(UserError, match="--seeds, --cfg-options: set it in the plan file"):
        mmkd.compare("configs/compare/bccd.yaml", seeds=[0], **{"train_cfg.max_epochs": 1})


def test_a_stopped_training_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmkd.cli import train
    from mmkd.hooks import TrainingStopped

    def stop(args: Any) -> None:
        raise TrainingStopped(130)

    monkeypatch.setattr(train, "train", stop)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        mmkd.distill(student="configs/bccd/kd.py", work_dir=tmp_path)


def test_a_comparison_gives_its_page_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = importlib.import_module("mmkd.cli.compare")
    given: list[Any] = []

    def finished(args: Any) -> int:
        given.append(args)
        (tmp_path / "report").mkdir()
        content = {"runs": [{"recipe": "student"}], "summary": [{"recipe": "student", "map_mean": 0.5}]}
        (tmp_path / "report/results.json").write_text(json.dumps(content))
        return 1

    monkeypatch.setattr(tool, "compare", finished)
    monkeypatch.setattr(tool, "plan_of", lambda args: SimpleNamespace(name="mine"))
    configs = ["configs/bccd/student.py", "configs/bccd/kd.py"]
    found = mmkd.compare(configs, work_dir=tmp_path, seeds=[0, 1], **{"train_cfg.max_epochs": 1})
    assert (found.page, found.failed) == (tmp_path / "report/index.html", 1)
    assert found.summary[0]["map_mean"] == 0.5
    assert (given[0].plan, given[0].seeds) == (configs, [0, 1])
    assert given[0].cfg_options == {"train_cfg.max_epochs": 1}
