from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models import BatchSyncRandomResize
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from mmkd.doctor import Finding, TrainingSetup, examine
from mmkd.losses import DistillationLoss
from mmkd.registry import HOOKS, MODELS

from . import bccd


def examined(setup: TrainingSetup) -> tuple[dict[str, Finding], dict[str, Finding]]:
    step, memory = examine(setup, ["training step", "memory"])
    return {one.what: one for one in step.findings}, {one.what: one for one in memory.findings}


def two_images(cfg: Config) -> None:
    cfg.train_dataloader.batch_size = 2


def test_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = bccd.setup(two_images)
    step, memory = examined(setup)
    assert {one.level for one in [*step.values(), *memory.values()]} == {"ok"}
    assert "loss_kd_cls" in step["losses"].found
    assert "all 111 trainable parameters" in step["gradients"].found
    assert "× the task's, cosine" in step["distill.cls"].found
    kept = setup.step_memory
    assert kept is not None
    student = setup.model()
    assert kept.parameters == kept.gradients == sum(4 * p.numel() for p in student.parameters())
    assert kept.optimizer == pytest.approx(2 * kept.parameters, rel=0.01)  # Adam's two moments
    assert kept.activations > kept.inputs > 0
    assert kept.teacher > 0
    assert kept.teacher_layers > 0
    monkeypatch.setattr("mmkd.doctor.memory.free_bytes", lambda _: 10**6)
    (again,) = examine(setup, ["memory"])
    assert bccd.seen([again])[0].what == "peak"


def test_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DistillationLoss, "forward", lambda self, student, *_: student.cls_logits[0].sum() * torch.nan
    )
    step, memory = examined(bccd.setup(two_images))
    assert step["losses"].level == "error"
    assert "not finite: loss_kd_cls" in step["losses"].found
    assert memory["memory"].found == "not checked: no training step was run"


@pytest.mark.parametrize(
    ("weight", "word"), [(1e4, "dominates the task loss"), (1e-4, "its contribution is negligible")]
)
def test_balance(weight: float, word: str) -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.distill.cls.loss_weight = weight

    finding = examined(bccd.setup(damage))[0]["distill.cls"]
    assert finding.level == "warning"
    assert word in finding.found
    assert f"instead of {weight:.3g}" in finding.remedy


def test_automatic_weights() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.distill.cls.loss_weight = "auto"

    finding = examined(bccd.setup(damage))[0]["distill.cls"]
    assert finding.level == "ok"
    assert "gradient on the neck is 0.5 × the task's" in finding.found
    assert "its automatic weight starts at " in finding.found


def test_a_parameter_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = bccd.setup(two_images)
    setup.model().neck.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))
    finding = examined(setup)[0]["gradients"]
    assert finding.level == "warning"
    assert "neck.idle" in finding.found


def test_weights_that_cannot_be_had() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": "nothere.pth"}

    step, _ = examined(bccd.setup(damage))
    assert step["initial weights"].level == "error"
    assert step["losses"].level == "ok"


def test_the_average_of_the_student_itself() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.model.teacher = {"ema": {"momentum": 0.001}}

    setup = bccd.setup(damage)
    step, _ = examined(setup)
    assert {one.level for one in step.values()} == {"ok"}
    (teacher,) = examine(setup, ["teacher"])[0].findings
    assert teacher.found == "moving average of the student"


def test_a_stock_detector() -> None:
    def student(cfg: Any) -> None:
        two_images(cfg)
        for key in ("teacher", "distill"):
            cfg.model.pop(key)
        cfg.model.type = "ATSS"

    setup = bccd.setup(student)
    step, memory = examined(setup)
    assert {one.level for one in [*step.values(), *memory.values()]} == {"ok"}
    assert "the teacher" not in memory
    (teacher,) = examine(setup, ["teacher"])[0].findings
    assert (teacher.level, teacher.found) == ("ok", "none in the config")


def test_what_heads_and_augmentations_ask_of_the_training() -> None:
    """Epoch, iteration and their ends stand in the message hub, which is gone afterwards."""
    seen: dict[str, Any] = {}

    @MODELS.register_module(force=True)
    class AsksTheHub(BatchSyncRandomResize):  # type: ignore[misc]
        def forward(self, inputs: Any, data_samples: Any) -> Any:
            hub = MessageHub.get_current_instance()
            seen.update({name: hub.get_info(name) for name in ("iter", "epoch", "max_iters", "max_epochs")})
            seen["classes"] = hub.get_info("dataset_meta")["classes"]
            return super().forward(inputs, data_samples)

    def damage(cfg: Config) -> None:
        two_images(cfg)
        sizes = {"random_size_range": (192, 256), "size_divisor": 32, "interval": 1}
        cfg.model.data_preprocessor.batch_augments = [{"type": "AsksTheHub", **sizes}]
        cfg.train_cfg.max_epochs = 4

    MessageHub.get_current_instance()
    before = dict(MessageHub._instance_dict)
    step, _ = examined(bccd.setup(damage))
    assert {one.level for one in step.values()} == {"ok"}
    classes = ("Platelets", "RBC", "WBC")
    assert seen == {"iter": 0, "epoch": 0, "max_iters": 4 * 146, "max_epochs": 4, "classes": classes}
    assert before == dict(MessageHub._instance_dict)


@HOOKS.register_module()
class _FreezesTheNeck(Hook):
    def before_train(self, runner: Any) -> None:
        assert runner.cfg.model.type == "KDSingleStageDetector"
        assert runner.cfg.work_dir == runner.work_dir != "work_dirs/kd"
        assert len(runner.val_dataloader.dataset) == len(runner.val_loop.dataloader.dataset) == 72
        assert runner.val_interval == 1

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        assert data_batch is not None
        runner.model.neck.requires_grad_(False)


@HOOKS.register_module()
class _Fails(Hook):
    def before_train(self, runner: Any) -> None:
        raise RuntimeError("no license")


def test_hooks_of_the_config_act() -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.custom_hooks = [*cfg.custom_hooks, {"type": "_FreezesTheNeck"}]

    step, _ = examined(bccd.setup(damage))
    assert "_FreezesTheNeck" in step["hooks"].found
    assert "trainable parameters get a gradient" in step["gradients"].found
    assert "all 111" not in step["gradients"].found


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"type": "_Fails"}, "before_train: RuntimeError: no license"),
        ({"type": "EarlyStoppingHook"}, "monitor"),
    ],
)
def test_hooks_that_stop_a_training(hook: dict[str, Any], message: str) -> None:
    def damage(cfg: Config) -> None:
        two_images(cfg)
        cfg.custom_hooks = [*cfg.custom_hooks, hook]

    (step,) = examine(bccd.setup(damage), ["training step"])
    (error,) = bccd.seen([step], "error")
    assert message in error.found
