from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.compare.shorten import budget_of, short_budget, shortened
from mmkd.compat import load_config
from mmkd.errors import UserError


def config(**changed: Any) -> Config:
    cfg = load_config("configs/bccd/kd.py")
    cfg.merge_from_dict(changed)
    return cfg


def test_budget() -> None:
    assert budget_of(config()) == (5 * 73, 5)
    assert budget_of(Config({"train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 900}})) == (900, 0)
    with pytest.raises(UserError, match="Cannot determine the training length"):
        budget_of(Config({"train_cfg": {}}))


@pytest.mark.parametrize(
    ("share", "epochs", "budget"), [(0.1, 5, 35), (0.001, 5, 5), (0.1, 0, 36), (0.0001, 0, 1)]
)
def test_short_budget(share: float, epochs: int, budget: int) -> None:
    assert short_budget(share, 365, epochs) == budget


def test_epochs_stay_and_become_shorter(tmp_path: Path) -> None:
    cfg = config(
        custom_hooks=[
            {"type": "DistillScheduleHook", "term": "cls", "warmup": 100, "stop_epoch": 4},
            {"type": "DistillScheduleHook", "term": "box", "warmup": 0.5},
            {"type": "EMAHook", "begin_iter": 50},
            {"type": "DistillMonitorHook", "interval": 500},
        ],
        **{"train_dataloader.drop_last": True},
    )
    before = cfg.pretty_text
    short = shortened(cfg, 35, 365, 5)
    assert cfg.pretty_text == before
    assert short.train_cfg.max_epochs == 5
    assert short.train_cfg.val_begin == 6, "no validation during training"
    assert short.train_dataloader.batch_sampler == {
        "type": "ShortEpochs",
        "batches": 7,
        "of": None,
        "drop_last": True,
    }
    assert "drop_last" not in short.train_dataloader, "torch refuses it beside a batch sampler"
    warm_up, decay = short.param_scheduler
    assert (warm_up.begin, warm_up.end) == (0, 2)
    assert decay == cfg.param_scheduler[1]
    first, second, average, monitor = short.custom_hooks
    assert (first.warmup, first.stop_epoch, second.warmup, average.begin_iter) == (10, 4, 0.5, 5)
    assert (monitor.type, monitor.interval) == ("DistillMonitorHook", 3)
    assert short.default_hooks.logger.interval == 1
    short.dump(tmp_path / "short.py")
    assert budget_of(load_config(tmp_path / "short.py")) == (35, 5)


def test_iterations_become_fewer() -> None:
    cfg = config(
        train_cfg={"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 900, "val_interval": 300},
        param_scheduler=[
            {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 3, "start_factor": 0.1},
            {"type": "MultiStepLR", "by_epoch": False, "milestones": [600, 800], "begin": 3, "end": 900},
            {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 900},
            {"type": "ExponentialLR", "by_epoch": False, "gamma": 0.99},
        ],
    )
    short = shortened(cfg, 90, 900, 0)
    assert (short.train_cfg.max_iters, short.train_cfg.val_begin) == (90, 91)
    warm_up, steps, cosine, decay = short.param_scheduler
    assert warm_up.end == 1
    assert (steps.milestones, steps.begin, steps.end) == ([60, 80], 1, 90)
    assert cosine.T_max == 90
    assert decay.gamma**90 == pytest.approx(0.99**900)
    assert "batch_sampler" not in short.train_dataloader


def test_validation_stays_for_a_schedule_that_needs_it() -> None:
    cfg = config(param_scheduler=[{"type": "ReduceOnPlateauLR", "monitor": "coco/bbox_mAP"}])
    assert "val_begin" not in shortened(cfg, 35, 365, 5).train_cfg


def test_a_student_alone_is_not_measured() -> None:
    alone = shortened(load_config("configs/bccd/student.py"), 35, 365, 5)
    assert [hook.type for hook in alone.custom_hooks] == ["MetricsFileHook"]
