from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmkd.hooks import MetricsFileHook


class Points(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(2)


class Linear(BaseModel):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs: Any = None, mode: str = "loss", **_: Any) -> Any:
        out = self.layer(torch.ones(2, 2))
        return {"loss": out.mean()} if mode == "loss" else [out]

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        loss, log = self.parse_losses(self.forward())
        optim_wrapper.update_params(loss)
        return log

    def val_step(self, data: Any) -> Any:
        return self.forward(mode="predict")


class Scripted(BaseMetric):  # type: ignore[misc]
    """Gives a score from a list, one per validation."""

    def __init__(self, scores: list[float | None]) -> None:
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: Any) -> dict[str, float]:
        score = next(self.scores)
        return {} if score is None else {"mAP": score}


def run(
    work_dir: Path, scores: list[float | None], epochs: int, resume: bool = False, **saving: Any
) -> Runner:
    loader = {"dataset": Points(), "batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    runner = Runner(
        model=Linear(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=dict(loader),
        val_evaluator=[Scripted(scores)],
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        val_cfg={},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "max_keep_ckpts": 1, **saving}},
        custom_hooks=[MetricsFileHook()],
        default_scope="mmengine",
        experiment_name=f"run{len(list(work_dir.parent.iterdir()))}{epochs}{resume}",
        resume=resume,
        log_level="ERROR",
    )
    runner.train()
    return runner


def read(work_dir: Path, which: str) -> dict[str, Any]:
    return json.loads((work_dir / f"metrics_val_{which}.json").read_text())


BEST = {"interval": 1, "save_best": "mAP"}


def test_best_and_last(tmp_path: Path) -> None:
    run(tmp_path, [0.1, 0.5, 0.3], 3, **BEST)
    assert read(tmp_path, "last") == {
        "metrics": {"mAP": 0.3},
        "epoch": 3,
        "iter": 6,
        "checkpoint": "epoch_3.pth",
    }
    assert read(tmp_path, "best") == {
        "metrics": {"mAP": 0.5},
        "epoch": 2,
        "iter": 4,
        "checkpoint": "best_mAP_epoch_2.pth",
    }
    for which in ("last", "best"):
        assert (tmp_path / read(tmp_path, which)["checkpoint"]).is_file()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("later", "best_epoch", "best"), [(0.4, 2, 0.5), (0.7, 3, 0.7)])
def test_correct_after_a_resume(tmp_path: Path, later: float, best_epoch: int, best: float) -> None:
    run(tmp_path, [0.1, 0.5], 2, **BEST)
    run(tmp_path, [later], 3, resume=True, **BEST)
    assert read(tmp_path, "last")["epoch"] == 3
    assert read(tmp_path, "last")["metrics"] == {"mAP": later}
    assert read(tmp_path, "best")["epoch"] == best_epoch
    assert read(tmp_path, "best")["metrics"] == {"mAP": best}


def test_the_best_of_another_run_is_dropped(tmp_path: Path) -> None:
    run(tmp_path, [0.9], 1, **BEST)
    (tmp_path / "best_mAP_epoch_1.pth").rename(tmp_path / "old.pth")
    stale = read(tmp_path, "best") | {"checkpoint": "best_mAP_epoch_7.pth"}
    (tmp_path / "metrics_val_best.json").write_text(json.dumps(stale))
    run(tmp_path, [None], 1, **BEST)
    assert not (tmp_path / "metrics_val_best.json").exists()
    assert read(tmp_path, "last")["metrics"] == {}, "nothing was measured, and that is said"


def test_checkpoint_is_null_where_none_was_written(tmp_path: Path) -> None:
    run(tmp_path, [0.1, 0.2, 0.3], 3, interval=2, save_last=False)
    assert read(tmp_path, "last")["checkpoint"] is None
    assert not (tmp_path / "metrics_val_best.json").exists()
