from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper

from mmkd import UserError
from mmkd.hooks.distill_monitor import DistillMonitorHook
from mmkd.hooks.schedule import DistillScheduleHook
from mmkd.registry import HOOKS

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_teacher
from ..heads.cases import stock
from .kd_runner import kd_model, kd_runner, logged
from .toy import toy_runner

TERMS = {
    "all": {"type": "DistillationLoss", "region": "all", "loss_weight": 1.0},
    "loss_fg": {"type": "DistillationLoss", "region": "foreground", "loss_weight": 0.3},
}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


class Log:
    """A runner of no loop, with what the hook reads of one."""

    def __init__(self, model: Any, *hooks: Any) -> None:
        self.model = model
        self.hooks = list(hooks)
        self.iter = 0
        self.scalars: dict[str, float] = {}
        self.warnings: list[str] = []
        self.message_hub = SimpleNamespace(update_scalar=self.scalars.__setitem__)
        self.logger = SimpleNamespace(warning=self.warnings.append)
        self.optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))

    def step(self, hook: DistillMonitorHook, data: dict[str, Any]) -> None:
        hook.before_train_iter(self, 0)  # type: ignore[arg-type]
        self.model.train_step(data, self.optim_wrapper)
        hook.after_train_iter(self, 0)  # type: ignore[arg-type]
        self.iter += 1


def test_it_is_registered() -> None:
    assert HOOKS.get("DistillMonitorHook") is DistillMonitorHook


def test_values(teacher: str) -> None:
    """Against gradients by one whole backward pass for each loss, kept on the neck's output."""
    model = kd_model(teacher, distill=TERMS).eval()
    data = batch((64, 96), (96, 64))
    seen: list[Any] = []
    maps: list[Any] = []
    handles = [
        model.distill["all"].register_forward_pre_hook(lambda _, args: seen.append(args)),
        model.neck.register_forward_hook(lambda _, __, out: maps.append(out)),
    ]

    def gradient(choose: Any) -> torch.Tensor:
        losses = {key: sum(v) if isinstance(v, list) else v for key, v in losses_of(model, data).items()}
        for level in maps[-1]:
            level.retain_grad()
        sum(value for key, value in losses.items() if choose(key)).backward()
        return torch.cat([level.grad.flatten().double() for level in maps[-1]])

    task = gradient(lambda key: "kd" not in key)
    expected = {}
    for name, key in (("all", "all"), ("loss_fg", "term_fg")):
        kd = gradient(lambda loss, name=name: loss == f"loss_kd_{name}")
        expected[f"train/kd_ratio_{key}"] = float(kd.norm() / task.norm())
        expected[f"train/kd_cosine_{key}"] = float(kd @ task / kd.norm() / task.norm())
    student, taught, context = seen[-1]
    agreeing = sure = 0
    for row_s, row_t, valid in zip(student.flat_cls_logits(), taught.flat_cls_logits(), context.valid_N):
        if valid and row_t.sigmoid().max() > 0.3:
            sure += 1
            agreeing += int(row_s.argmax() == row_t.argmax())
    assert 0 < agreeing < sure
    expected["train/kd_agreement"] = agreeing / sure
    for handle in handles:
        handle.remove()

    log = Log(model)
    log.step(DistillMonitorHook(interval=1), data)
    assert log.scalars.keys() == expected.keys()
    for key, value in expected.items():
        assert log.scalars[key] == pytest.approx(value, rel=1e-4), key
    assert not any("loss" in key for key in log.scalars)
    assert "parse_losses" not in vars(model)
    assert not any(term._forward_pre_hooks for term in model.distill.values())


def test_ratio_is_proportional_to_the_weight(teacher: str) -> None:
    def measured(**options: Any) -> dict[str, float]:
        terms = {"cls": {"type": "DistillationLoss", **options.pop("cls")}}
        log = Log(kd_model(teacher, distill=terms, **options))
        log.step(DistillMonitorHook(interval=1), batch((64, 64)))
        return log.scalars

    one, four = measured(cls={"loss_weight": 1.0}), measured(cls={"loss_weight": 4.0})
    assert four["train/kd_ratio_cls"] == pytest.approx(4 * one["train/kd_ratio_cls"], rel=1e-4)
    assert four["train/kd_cosine_cls"] == pytest.approx(one["train/kd_cosine_cls"], rel=1e-4)
    half = measured(cls={"loss_weight": 1.0}, task_loss_weight=0.5)
    assert half["train/kd_ratio_cls"] == pytest.approx(2 * one["train/kd_ratio_cls"], rel=1e-4)


def test_priors_that_do_not_correspond_have_no_agreement() -> None:
    student = stock("retinanet/retinanet_r50_fpn_1x_coco.py", deep=True)
    teacher = stock("atss/atss_r50_fpn_1x_coco.py", deep=True)
    terms = {"x": {"type": "CrossKDLoss", "losses": {"cls": {"type": "BCKDLoss", "normalizer": "batch"}}}}
    log = Log(build(distilled(student, teacher, None, distill=terms)))
    log.step(DistillMonitorHook(interval=1), batch((64, 64)))
    assert log.scalars.keys() == {"train/kd_ratio_x", "train/kd_cosine_x"}
    assert log.scalars["train/kd_ratio_x"] > 0


def test_a_term_without_weight_is_not_measured(teacher: str) -> None:
    terms = {"a": {"type": "DistillationLoss"}, "b": {"type": "DistillationLoss", "loss_weight": 0.0}}
    log = Log(kd_model(teacher, distill=terms))
    log.step(DistillMonitorHook(interval=1), batch((64, 64)))
    assert {key for key in log.scalars if "ratio" in key} == {"train/kd_ratio_a"}
    log = Log(kd_model(teacher, distill={"b": terms["b"]}))
    log.step(DistillMonitorHook(interval=1), batch((64, 64)))
    assert log.scalars == {}


def test_frozen_neck_and_task_without_weight(teacher: str) -> None:
    model = kd_model(teacher)
    for part in (model.backbone, model.neck):
        part.requires_grad_(False)
    log = Log(model)
    log.step(DistillMonitorHook(interval=1), batch((64, 64)))
    assert log.scalars == {}
    log = Log(kd_model(teacher, task_loss_weight=0.0))
    log.step(DistillMonitorHook(interval=1), batch((64, 64)))
    assert log.scalars.keys() == {"train/kd_agreement"}


def test_training_is_the_same_to_the_bit(tmp_path: Path, teacher: str) -> None:
    """Weights, statistics, momentum and random numbers, with dropout to draw some."""
    results = []
    for hooks in ([], [DistillMonitorHook(interval=2)]):
        model = kd_model(teacher, distill=TERMS)
        relu = model.bbox_head.cls_convs[0].activate
        model.bbox_head.cls_convs[0].activate = torch.nn.Sequential(relu, torch.nn.Dropout(0.2))
        model.backbone.norm_eval = False
        folder = tmp_path / str(len(hooks))
        runner = kd_runner(folder, model, *hooks, epochs=3)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        runner.train()
        momentum = [state["momentum_buffer"] for state in runner.optim_wrapper.state_dict()["state"].values()]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        numbers = [torch.rand(1).item(), random.random(), np.random.rand()]
        results.append((model.state_dict(), momentum, grads, numbers))
        assert any("kd_ratio_all" in row for row in logged(folder)) == bool(hooks)
    plain, watched = results
    changed = {key for key, value in before.items() if not torch.equal(value, watched[0][key])}
    assert any("running_mean" in key for key in changed)
    assert any("neck" in key for key in changed)
    for key, value in plain[0].items():
        assert torch.equal(value, watched[0][key]), key
    for a, b in zip(plain[1] + plain[2], watched[1] + watched[2]):
        assert torch.equal(a, b)
    assert plain[3] == watched[3]


def test_every_backend_gets_the_scalars(tmp_path: Path, teacher: str) -> None:
    model = kd_model(teacher, distill=TERMS)
    runner = kd_runner(tmp_path / "run", model, DistillMonitorHook(interval=2), epochs=2)
    runner.train()
    rows = logged(tmp_path / "run")
    assert len(rows) == 6
    names = {"kd_ratio_all", "kd_cosine_all", "kd_ratio_term_fg", "kd_cosine_term_fg", "kd_agreement"}
    assert not names & rows[0].keys()
    for row in rows[1:]:
        assert names <= row.keys()
    # Measured every second iteration; between them the log repeats the last value.
    ratios = [row["kd_ratio_all"] for row in rows[1:]]
    assert ratios[0] == ratios[1] != ratios[2] == ratios[3] != ratios[4]
    assert all(-1 <= row["kd_cosine_all"] <= 1 and 0 <= row["kd_agreement"] <= 1 for row in rows[1:])
    hub = runner.message_hub.log_scalars
    assert len(hub["train/kd_ratio_all"].data[0]) == 3


def test_warning(teacher: str) -> None:
    data = batch((64, 64))
    model = kd_model(teacher, distill={"cls": {"type": "DistillationLoss", "loss_weight": 1.0}}).eval()
    log = Log(model)
    log.step(DistillMonitorHook(interval=1), data)
    unit = log.scalars["train/kd_ratio_cls"]

    def warnings(ratio: float, steps: int = 5, **options: Any) -> list[str]:
        model.distill["cls"].loss_weight = ratio / unit
        log = Log(model)
        hook = DistillMonitorHook(interval=1, **options)
        for _ in range(steps):
            log.step(hook, data)
        return log.warnings

    def suggested(warning: str) -> float:
        return float(warning.split("loss_weight=")[1].split()[0])

    assert warnings(3.0) == warnings(0.3) == []
    assert warnings(30.0, steps=2) == []
    (high,) = warnings(30.0)
    assert high.startswith("distill.cls dominates the student's own losses: its gradient is 30 times theirs")
    assert suggested(high) == pytest.approx(1 / unit, rel=0.01)
    assert high.endswith("to the same size")
    (low,) = warnings(0.03)
    assert "is negligible" in low
    assert suggested(low) == pytest.approx(1 / unit, rel=0.01)
    assert len(warnings(3.0, drown=2.0)) == 1
    (tiny,) = warnings(1e-5)
    assert suggested(tiny) == pytest.approx(1e-2 / unit, rel=0.01)
    assert tiny.endswith("nearer")


def test_warning_needs_three_in_a_row(teacher: str) -> None:
    model = kd_model(teacher)
    log = Log(model)
    hook = DistillMonitorHook()
    for ratio in (20, 20, 1, 20, 20, 0.01, 20, 20):
        hook._judge(log, "cls", ratio)  # type: ignore[arg-type]
    assert log.warnings == []
    hook._judge(log, "cls", 20)  # type: ignore[arg-type]
    hook._judge(log, "cls", 20)  # type: ignore[arg-type]
    assert len(log.warnings) == 1


def test_no_gradient_at_all(teacher: str) -> None:
    log = Log(kd_model(teacher))
    hook = DistillMonitorHook(interval=1)
    for _ in range(4):
        log.step(hook, batch((64, 64), boxes=0))  # no object, no foreground
    assert log.scalars["train/kd_ratio_cls"] == 0
    assert "train/kd_cosine_cls" not in log.scalars
    assert len(log.warnings) == 1
    assert "gives no gradient on" in log.warnings[0]


def test_a_schedule_is_no_reason_for_a_warning(teacher: str) -> None:
    model = kd_model(teacher, distill={"cls": {"type": "DistillationLoss", "loss_weight": 0.5}})
    schedule = DistillScheduleHook()
    schedule.base = {"cls": 0.5}
    model.distill["cls"].loss_weight = 0.005
    log = Log(model, schedule)
    hook = DistillMonitorHook()
    for _ in range(3):
        hook._judge(log, "cls", 0.02)  # type: ignore[arg-type]
    assert log.warnings == []
    for _ in range(3):
        hook._judge(log, "cls", 0.2)  # type: ignore[arg-type]
    assert "its gradient is 20 times theirs" in log.warnings[0]
    assert "loss_weight=0.025 instead of 0.5" in log.warnings[0]


def test_processes_share_one_value(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of two processes give what one with both images would."""
    data = batch((64, 64), (64, 64))
    terms = {"cls": {"type": "DistillationLoss", "region": "all", "normalizer": "batch"}}
    model = kd_model(teacher, distill=terms).eval()
    sums: list[torch.Tensor] = []

    def all_reduce(tensor: torch.Tensor, op: str) -> None:
        assert op == "sum"
        sums.append(tensor.clone())

    monkeypatch.setattr("mmkd.balance.all_reduce", all_reduce)
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
        Log(model).step(DistillMonitorHook(interval=1), {key: value[part] for key, value in data.items()})
    # What a batch of one image gives of the distillation is twice that of its half of the batch of two.
    kd = 1
    assert (sums[0] + sums[1])[kd] / 4 == pytest.approx(float(sums[2][kd]), rel=1e-3)
    torch.testing.assert_close((sums[0] + sums[1])[-2:], sums[2][-2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a whole number"),
        ({"interval": 2.0}, "interval must be a whole number"),
        ({"interval": True}, "interval must be a whole number"),
        ({"drown": 1}, "drown must be a number above 1"),
        ({"drown": float("inf")}, "drown must be a number above 1"),
        ({"drown": "10"}, "drown must be a number above 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillMonitorHook(**options)


def test_a_model_that_is_not_distilled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DistillMonitorHook needs a distilled model[\s\S]*ToyModel"):
        toy_runner(tmp_path, DistillMonitorHook()).train()
