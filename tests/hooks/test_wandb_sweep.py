"""What the hook does by itself; what arrives at W&B is in `tests/test_wandb.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from mmdet.evaluation import CocoMetric, VOCMetric

from mmkd import StopHook, UserError, WandbBackend, WandbSweepHook
from mmkd.hooks import TrainingStopped
from mmkd.hooks.wandb_sweep import values_by_name

from ..conftest import ROOT
from .toy import Call, toy_runner


class Recorder:
    """In place of a `wandb.Run`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = [{}]
        self.settings: dict[str, Any] = {}
        self.ended: list[Any] = []
        self.id = "id"
        self.config = SimpleNamespace(update=lambda values, **_: self.settings.update(values))

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, row: dict[str, Any], commit: bool = True) -> None:
        self.rows[-1].update(row)
        if commit:
            self.rows.append({})

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    run = Recorder()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    return run


def logged_runner(work_dir: Path, *hooks: Any, **options: Any) -> Any:
    visualizer = {
        "type": "Visualizer",
        "name": f"{work_dir.name}_{len(list(work_dir.glob('*')))}",
        "save_dir": str(work_dir),
        "vis_backends": [{"type": "mmdet.WandbBackend"}],
    }
    return toy_runner(work_dir, *hooks, visualizer=visualizer, **options)


def test_a_validation_is_one_row(tmp_path: Path, recorder: Recorder) -> None:
    logged_runner(tmp_path, StopHook(), WandbSweepHook(num_images=0)).train()
    rows = [row for row in recorder.rows if "val/mean" in row]
    assert [(row["epoch"], row["iter"]) for row in rows] == [(1, 5), (2, 10), (3, 15)]
    for row in rows:
        assert row["val/mean"] == row["toy/mean"]
        assert "loss" not in row
    assert recorder.settings["student_parameters"] == 2
    assert recorder.ended == [0]


def test_the_best_so_far_survives_a_resume(tmp_path: Path, recorder: Recorder) -> None:
    saving = {"checkpoint": {"type": "CheckpointHook", "save_best": "toy/mean", "rule": "greater"}}
    hooks = [StopHook(), WandbSweepHook(num_images=0, checkpoint=False)]
    logged_runner(tmp_path, *hooks, epochs=2, default_hooks=saving).train()
    before = max(row["val/mean"] for row in recorder.rows if "val/mean" in row)
    shifted = Call("before_train_epoch", 1, lambda runner: runner.model.line.bias.data.sub_(100))
    hooks = [StopHook(), WandbSweepHook(num_images=0, checkpoint=False), shifted]
    logged_runner(tmp_path, *hooks, resume=True, default_hooks=saving).train()
    last = [row for row in recorder.rows if "val/mean" in row][-1]
    assert last["val/mean"] < before
    assert last["best/mean"] == before


@pytest.mark.parametrize("where", ["after_train_iter", "after_val_iter"])
def test_a_stop_through_wandb(tmp_path: Path, recorder: Recorder, where: str) -> None:
    def stop(runner: Any) -> None:
        next(b for b in runner.visualizer._vis_backends.values() if isinstance(b, WandbBackend)).stopped.set()

    hooks = [Call(where.replace("after", "before"), 2, stop), StopHook(), WandbSweepHook(num_images=0)]
    runner = logged_runner(tmp_path, *hooks)
    with pytest.raises(TrainingStopped) as stopped:
        runner.train()
    assert stopped.value.code == 0
    assert runner.iter == (1 if "train" in where else 5)
    assert recorder.ended == [0]
    assert (tmp_path / "interrupted.pth").is_file()


def test_a_preemption_is_marked(tmp_path: Path, recorder: Recorder) -> None:
    stop = StopHook()
    asked = Call("before_train_iter", 2, lambda _: stop.request(138, "test"))
    with pytest.raises(TrainingStopped):
        logged_runner(tmp_path, asked, stop, WandbSweepHook(num_images=0)).train()
    assert recorder.ended == ["preempting", 138]


def test_a_failed_upload_costs_a_warning(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    hook = WandbSweepHook(num_images=0)
    monkeypatch.setattr(hook, "_upload_checkpoint", fail)
    warnings: list[str] = []
    runner = logged_runner(tmp_path, StopHook(), hook, epochs=1)
    monkeypatch.setattr(runner.logger, "warning", warnings.append)
    runner.train()
    assert "not uploaded to W&B (OSError: disk full)" in warnings
    assert recorder.ended == [0]


def test_a_table_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    # The toy's outputs are no data samples.
    runner = logged_runner(tmp_path, StopHook(), WandbSweepHook(num_images=2), epochs=2)
    monkeypatch.setattr(runner.logger, "warning", warnings.append)
    runner.train()
    assert len([text for text in warnings if text.startswith("cannot create the W&B table (")]) == 1
    assert recorder.ended == [0]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_modes_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    saving = {"checkpoint": {"type": "CheckpointHook", "save_best": "toy/mean", "rule": "greater"}}
    logged_runner(tmp_path, StopHook(), WandbSweepHook(num_images=0), default_hooks=saving).train()
    wandb.teardown()
    assert (tmp_path / "student_best.pth").is_file()
    assert len(list(tmp_path.glob("**/offline-run-*/*.wandb"))) == (mode == "offline")


@pytest.mark.parametrize(
    ("hooks", "backends", "message"),
    [
        ([WandbSweepHook()], ["mmdet.WandbBackend"], r"needs StopHook[\s\S]*custom_hooks"),
        ([WandbSweepHook(), StopHook()], ["LocalVisBackend"], r"needs WandbBackend[\s\S]*LocalVisBackend"),
    ],
)
def test_what_it_needs(
    tmp_path: Path, recorder: Recorder, hooks: list[Any], backends: list[str], message: str
) -> None:
    visualizer = {
        "type": "Visualizer",
        "name": f"{tmp_path.name}{backends}",
        "save_dir": str(tmp_path),
        "vis_backends": [{"type": name} for name in backends],
    }
    with pytest.raises(UserError, match=message):
        toy_runner(tmp_path, *hooks, visualizer=visualizer).train()


def test_values_lose_the_prefix() -> None:
    metrics = {"coco/bbox_mAP": 0.25, "lvis/bbox_mAP": 0.5, "pascal_voc/AP50": 0.75, "coco/names": "a"}
    assert values_by_name(metrics, []) == {"bbox_mAP": 0.25, "AP50": 0.75}


def test_nothing_detected_is_zero() -> None:
    ann_file = str(ROOT / "data/bccd/annotations/val.json")
    coco = CocoMetric(ann_file=ann_file, metric=["bbox", "segm"])
    zeros = values_by_name({}, [coco])
    assert set(zeros.values()) == {0.0}
    assert {"bbox_mAP", "bbox_mAP_50", "bbox_mAP_s", "segm_mAP_75"} <= set(zeros)
    # What another evaluator found is no reason to leave them out.
    assert values_by_name({"pascal_voc/AP50": 0.5}, [coco, VOCMetric()])["bbox_mAP_50"] == 0
    assert "bbox_mAP_50" not in values_by_name({"coco/bbox_mAP": 0.5}, [coco])
    chosen = CocoMetric(ann_file=ann_file, metric="bbox", metric_items=["mAP_50"])
    assert values_by_name({}, [chosen]) == {"bbox_mAP_50": 0.0}
