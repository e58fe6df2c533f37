"""An EMA teacher in a training: it follows, is saved, and goes on where it was."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.hooks import EMATeacherHook
from mmkd.hooks.ema_teacher import KEY, ema_teacher

from ..conftest import build, tiny_atss
from .kd_runner import kd_model, kd_runner

MOMENTUM = 0.2


def student(seed: int = 0, **overrides: Any) -> Any:
    teacher = {"ema": {"momentum": MOMENTUM}}
    distill = {"cls": {"type": "DistillationLoss"}}
    kd = {"type": "KDSingleStageDetector", "teacher": teacher, "distill": distill}
    return build({**tiny_atss(**overrides), **kd}, seed)


class Follow(EMATeacherHook):
    """Keeps the student's weights after each step, and the teacher's at the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.students: list[dict[str, torch.Tensor]] = []

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self.student_at_first = copy.deepcopy(runner.model.state_dict())
        self.at_first = copy.deepcopy(runner.model.teacher.state_dict())

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self.students.append(copy.deepcopy(runner.model.state_dict()))


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Follow]:
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    work_dir, hook = tmp_path_factory.mktemp("uninterrupted"), Follow()
    model = student()
    kd_runner(work_dir, model, hook).train()
    return work_dir, model, hook


def test_is_the_average_over_all_steps(uninterrupted: tuple[Path, Any, Follow]) -> None:
    _, model, hook = uninterrupted
    assert equal(hook.at_first, hook.student_at_first)
    assert len(hook.students) == 6
    by_hand = hook.at_first
    for after in hook.students:
        by_hand = {name: (1 - MOMENTUM) * value + MOMENTUM * after[name] for name, value in by_hand.items()}
    parameters = [name for name, _ in model.named_parameters()]
    for name in parameters:
        torch.testing.assert_close(model.teacher.state_dict()[name], by_hand[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(model.teacher.state_dict()[n], hook.students[-1][n]) for n in parameters)


def test_is_saved_beside_the_student(uninterrupted: tuple[Path, Any, Follow]) -> None:
    work_dir, model, _ = uninterrupted
    saved = torch.load(work_dir / "epoch_2.pth")
    assert equal(saved[KEY], model.teacher.state_dict())
    assert saved["state_dict"].keys() == build(tiny_atss()).state_dict().keys()


def test_an_interrupted_training_goes_on_as_if_it_were_none(
    uninterrupted: tuple[Path, Any, Follow], tmp_path: Path
) -> None:
    work_dir, expected, _ = uninterrupted
    model = student(seed=5)
    hook = Follow()
    checkpoint = str(work_dir / "epoch_1.pth")
    kd_runner(tmp_path, model, hook, load_from=checkpoint, resume=True).train()
    assert len(hook.students) == 3
    assert not equal(hook.at_first, hook.student_at_first)
    assert equal(model.state_dict(), expected.state_dict())
    assert equal(model.teacher.state_dict(), expected.teacher.state_dict())


def test_load_from_begins_anew(uninterrupted: tuple[Path, Any, Follow], tmp_path: Path) -> None:
    work_dir, hook = uninterrupted[0], Follow()
    checkpoint = str(work_dir / "epoch_1.pth")
    kd_runner(tmp_path, student(seed=5), hook, epochs=1, load_from=checkpoint).train()
    assert equal(hook.at_first, torch.load(checkpoint)["state_dict"])


def test_a_checkpoint_without_it(
    uninterrupted: tuple[Path, Any, Follow], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = torch.load(uninterrupted[0] / "epoch_1.pth")
    del checkpoint[KEY]
    torch.save(checkpoint, tmp_path / "without.pth")
    hook = Follow()
    options = {"load_from": str(tmp_path / "without.pth"), "resume": True}
    runner = kd_runner(tmp_path, student(seed=5), hook, **options)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    runner.logger.addHandler(handler)
    runner.train()
    assert any("no EMA teacher" in text for text in records)
    assert equal(hook.at_first, checkpoint["state_dict"])


def test_that_of_another_student_is_refused(uninterrupted: tuple[Path, Any, Follow], tmp_path: Path) -> None:
    checkpoint = torch.load(uninterrupted[0] / "epoch_1.pth")
    checkpoint[KEY].popitem()
    torch.save(checkpoint, tmp_path / "other.pth")
    options = {"load_from": str(tmp_path / "other.pth"), "resume": True}
    with pytest.raises(UserError, match="do not match the config"):
        kd_runner(tmp_path, student(), EMATeacherHook(), **options).train()


def test_moves_when_the_optimizer_does(tmp_path: Path) -> None:
    """Three iterations per epoch, a step after the second, the fourth and the sixth."""
    model, steps = student(), []
    step = model.teacher.step
    hook = Follow()
    model.teacher.step = lambda student: (steps.append(len(hook.students)), step(student))
    optimizer = {"optimizer": {"type": "SGD", "lr": 0.01}, "accumulative_counts": 2}
    kd_runner(tmp_path, model, hook, optim_wrapper=optimizer).train()
    assert steps == [1, 3, 5]


def test_does_nothing_to_other_models(tmp_path: Path) -> None:
    model = kd_model(None)
    kd_runner(tmp_path, model, EMATeacherHook(), epochs=1).train()
    assert ema_teacher(model) is None
    assert KEY not in torch.load(tmp_path / "epoch_1.pth")
    assert ema_teacher(build(tiny_atss())) is None
