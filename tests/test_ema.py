"""The moving averages of mmengine and mmdet, of the student alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook

from mmkd.hooks import DistillStateHook

from .conftest import batch, build, distilled, save_teacher, tiny_atss, tiny_teacher
from .hooks.kd_runner import kd_runner

FEATURES = {"cls": {"type": "DistillationLoss"}, "neck": {"type": "FitNetsLoss", "align": "conv"}}
KINDS: list[dict[str, Any]] = [
    {"ema_type": "ExponentialMovingAverage", "momentum": 0.3},
    {"ema_type": "ExpMomentumEMA", "momentum": 0.3, "update_buffers": True},
]


class CountMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [len(data_samples)]

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {"images": sum(results)}


class Watch(Hook):
    """Remembers the weights of the student in training, in validation, and after it."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def _keep(self, runner: Any) -> None:
        self.seen.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    def after_train_epoch(self, runner: Any) -> None:
        self._keep(runner)

    def before_val_epoch(self, runner: Any) -> None:
        self._keep(runner)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._keep(runner)


def in_memory(model: Any) -> int:
    """Bytes of all tensors of a model, each storage once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["ema_type"]))
def test_average_holds_no_teacher(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Measured: memory, and what a checkpoint weighs beside that of the stock student."""
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    students = {
        "stock": build(tiny_atss()),
        "distilled": build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=FEATURES)),
    }
    weights, files = {}, {}
    for name, model in students.items():
        folder = tmp_path / name
        folder.mkdir()
        hook, watch = EMAHook(**kind), Watch()
        images = batch(*[(64, 64)] * 2)
        loader = {
            "batch_size": 2,
            "dataset": [{key: value[index] for key, value in images.items()} for index in range(2)],
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "pseudo_collate"},
        }
        runner = kd_runner(
            folder,
            model,
            hook,
            DistillStateHook(),
            watch,
            epochs=1,
            val_dataloader=loader,
            val_cfg={},
            val_evaluator=[CountMetric()],
        )
        runner.train()
        weights[name] = in_memory(hook.ema_model) - in_memory(model)
        files[name] = folder / "epoch_1.pth"
    teacher, student = students["distilled"].teacher, students["distilled"]
    # One number more: the count of its steps.
    assert weights["distilled"] == weights["stock"] == hook.ema_model.steps.nbytes
    assert hook.ema_model.module.teacher is teacher
    of_teacher = {p.data_ptr() for p in teacher.model.parameters()}
    assert not of_teacher & {p.data_ptr() for p in hook.ema_model.parameters()}

    saved, stock = (torch.load(files[name], weights_only=False) for name in ("distilled", "stock"))
    assert saved["state_dict"].keys() == stock["state_dict"].keys() == student.state_dict().keys()
    assert saved["ema_state_dict"].keys() == stock["ema_state_dict"].keys()
    own = sum(value.nbytes for value in saved["distill_state"].values())
    more = files["distilled"].stat().st_size - files["stock"].stat().st_size
    # Those layers, their momentum, and names.
    assert own < more < 2 * own + 2**15 < in_memory(teacher.model)

    training, validated, after = watch.seen
    assert all(torch.equal(training[name], after[name]) for name in training)
    learned = [name for name, _ in student.named_parameters() if name in training]
    assert any(not torch.equal(training[name], validated[name]) for name in learned)
    for name in learned:
        assert torch.equal(saved["state_dict"][name], validated[name]), "the checkpoint is the average"
        assert torch.equal(saved["ema_state_dict"][f"module.{name}"], training[name])
    build(tiny_atss()).load_state_dict(saved["state_dict"], strict=True)
