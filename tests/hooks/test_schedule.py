from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner

from mmkd import UserError
from mmkd.hooks.schedule import DistillScheduleHook
from mmkd.registry import HOOKS

from ..conftest import save_teacher, tiny_teacher
from .kd_runner import kd_model, kd_runner, logged
from .toy import Call, toy_runner

TWO = {
    "cls": {"type": "DistillationLoss", "loss_weight": 2.0},
    "cls_all": {"type": "DistillationLoss", "loss_weight": 0.5, "region": "all"},
}


def weights(hook: DistillScheduleHook, total: int, stop: int | None = None) -> list[float]:
    return [hook.factor(done, total, stop) for done in range(total)]


def recorder(found: list[dict[str, float]]) -> Any:
    """A hook that notes the weights with which each iteration was computed."""

    def note(runner: Runner, *_: Any, **__: Any) -> None:
        found.append({name: term.loss_weight for name, term in runner.model.terms.items()})

    hook = Call("after_run", 0, None)
    vars(hook)["after_train_iter"] = note
    return hook


def test_it_is_registered() -> None:
    assert HOOKS.get("DistillScheduleHook") is DistillScheduleHook


def test_warmup_is_linear_from_zero() -> None:
    assert weights(DistillScheduleHook(warmup=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert weights(DistillScheduleHook(warmup=0.5, start=2), 8) == [0, 0.5, 1, 1.5, 2, 2, 2, 2]
    assert weights(DistillScheduleHook(warmup=1), 3) == [0, 1, 1]


def test_decay() -> None:
    assert weights(DistillScheduleHook(kind="linear"), 4) == [1, 0.75, 0.5, 0.25]
    assert weights(DistillScheduleHook(kind="linear", start=1, end=3), 4) == [1, 1.5, 2, 2.5]
    assert weights(DistillScheduleHook(kind="linear", warmup=2, end=0.5), 4) == [0, 0.5, 1, 0.75]
    cosine = DistillScheduleHook(kind="cosine", start=2, end=1)
    expected = [1 + 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert weights(cosine, 10) == pytest.approx(expected)
    assert cosine.factor(10, 10) == 1


def test_stop_ends_the_decay_too() -> None:
    assert weights(DistillScheduleHook(kind="linear", end=0.5), 6, stop=4) == [1, 0.875, 0.75, 0.625, 0, 0]
    assert weights(DistillScheduleHook(), 4, stop=2) == [1, 1, 0, 0]


def test_one_term_and_all(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []
    hook = DistillScheduleHook(term="cls", kind="linear")
    kd_runner(tmp_path / "one", kd_model(None, distill=TWO), hook, recorder(found)).train()
    assert [each["cls"] for each in found] == pytest.approx([2 * (1 - i / 6) for i in range(6)])
    assert {each["cls_all"] for each in found} == {0.5}

    found.clear()
    model = kd_model(None, distill=TWO)
    runner = kd_runner(tmp_path / "all", model, DistillScheduleHook(stop_epoch=1), recorder(found))
    runner.train()
    assert found == [{"cls": 2.0, "cls_all": 0.5}] * 3 + [{"cls": 0.0, "cls_all": 0.0}] * 3
    assert model.distill["cls"].loss_weight == 0  # nothing is restored
    rows = logged(tmp_path / "all")
    assert [row["kd_weight_cls_all"] for row in rows] == [0.5] * 3 + [0.0] * 3
    values = runner.message_hub.log_scalars["train/loss_kd_cls_all"].data[0]
    assert [value > 0 for value in values] == [True] * 3 + [False] * 3


def test_iteration_based_loop(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []
    hook = DistillScheduleHook(kind="cosine", warmup=0.4)
    loop = {"by_epoch": False, "max_iters": 5}
    kd_runner(tmp_path, kd_model(None), hook, recorder(found), train_cfg=loop).train()
    expected = [0, 0.5, 1, 0.75, 0.25]
    assert [each["cls"] / 0.5 for each in found] == pytest.approx(expected)


@pytest.mark.parametrize("by_epoch", [True, False])
def test_resume_is_exact(tmp_path: Path, by_epoch: bool) -> None:
    teacher = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    options: dict[str, Any] = {
        "train_cfg": {"by_epoch": True, "max_epochs": 3} if by_epoch else {"by_epoch": False, "max_iters": 9},
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 1},
            "checkpoint": {"type": "CheckpointHook", "interval": 1 if by_epoch else 3, "by_epoch": by_epoch},
        },
    }

    def run(folder: str, *hooks: Any, **more: Any) -> tuple[Any, list[dict[str, float]]]:
        found: list[dict[str, float]] = []
        model = kd_model(teacher, distill={"cls": {"type": "DistillationLoss", "loss_weight": 5.0}})
        schedule = DistillScheduleHook(
            kind="cosine", warmup=4, end=0.2, stop_epoch=None if not by_epoch else 2
        )
        runner = kd_runner(tmp_path / folder, model, schedule, recorder(found), *hooks, **options, **more)
        with suppress(KeyboardInterrupt):
            runner.train()
        return model.state_dict(), found

    def interrupt(_: Runner) -> None:
        raise KeyboardInterrupt

    whole, weights_of_whole = run("whole")
    _, first = run("parts", Call("before_train_iter", 6, interrupt))  # the last checkpoint is after 3
    resumed, rest = run("parts", resume=True)
    assert weights_of_whole[3:] == rest
    assert first == weights_of_whole[:5]
    assert len({each["cls"] for each in weights_of_whole}) > 4
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_wrapped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    torch.nn.Module.__init__(wrapped)
    wrapped.module = kd_model(None)
    said: dict[str, float] = {}
    hub = SimpleNamespace(update_scalar=said.__setitem__)
    runner: Any = SimpleNamespace(model=wrapped, hooks=[], iter=1, max_iters=4, epoch=0, message_hub=hub)
    hook = DistillScheduleHook(term="cls", warmup=2)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert wrapped.module.distill["cls"].loss_weight == 0.25
    assert said == {"train/kd_weight_cls": 0.25}


def test_no_name_in_the_log_is_taken_for_a_loss() -> None:
    model = kd_model(None, distill={"loss_cls": {"type": "DistillationLoss"}})
    said: dict[str, float] = {}
    hub = SimpleNamespace(update_scalar=said.__setitem__)
    runner: Any = SimpleNamespace(model=model, hooks=[], iter=0, max_iters=4, epoch=0, message_hub=hub)
    hook = DistillScheduleHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert said == {"train/kd_weight_term_cls": 0.5}


def test_hooks_for_different_terms(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []
    hooks = [DistillScheduleHook(term="cls", warmup=6), DistillScheduleHook(term="cls_all", kind="linear")]
    kd_runner(tmp_path, kd_model(None, distill=TWO), *hooks, recorder(found)).train()
    assert [each["cls"] for each in found] == pytest.approx([2 * i / 6 for i in range(6)])
    assert [each["cls_all"] for each in found] == pytest.approx([0.5 * (1 - i / 6) for i in range(6)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"term": 3}, "term must be a name"),
        ({"kind": "step"}, "kind must be one of constant, linear, cosine, found 'step'"),
        ({"warmup": -1}, "warmup must be"),
        ({"warmup": 1.5}, "warmup must be"),
        ({"warmup": True}, "warmup must be"),
        ({"warmup": float("nan")}, "warmup must be"),
        ({"warmup": float("inf")}, "warmup must be"),
        ({"start": -0.1}, "start must be a number ≥ 0"),
        ({"end": float("inf")}, "end must be a number ≥ 0"),
        ({"end": "0"}, "end must be a number ≥ 0"),
        ({"stop_epoch": 1.5}, "stop_epoch must be a whole number"),
        ({"stop_epoch": -1}, "stop_epoch must be a whole number ≥ 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillScheduleHook(**options)


def test_what_does_not_fit_the_run(tmp_path: Path) -> None:
    def refused(message: str, *hooks: Any, **options: Any) -> None:
        model = kd_model(None, distill=TWO)
        with pytest.raises(UserError, match=message):
            kd_runner(tmp_path, model, *hooks, **options).train()

    refused(r"term, one of: cls, cls_all\n.*found: +box", DistillScheduleHook(term="box"))
    both = DistillScheduleHook(term="cls"), DistillScheduleHook()
    refused(r"schedule the same distillation loss[\s\S]*cls served twice", *both)
    loop = {"by_epoch": False, "max_iters": 5}
    refused("needs an epoch-based training loop", DistillScheduleHook(stop_epoch=1), train_cfg=loop)
    refused("before the end of warm-up", DistillScheduleHook(stop_epoch=1, warmup=4))
    with pytest.raises(UserError, match=r"needs a distilled model[\s\S]*ToyModel"):
        toy_runner(tmp_path, DistillScheduleHook()).train()
