"""`teacher.every`: a teacher that is asked in every second iteration."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope

from mmkd.errors import UserError
from mmkd.hooks import DistillMonitorHook, DistillStateHook
from mmkd.losses.automatic import DEFAULT_SHARE

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..hooks.kd_runner import kd_runner
from ..hooks.toy import Call
from .test_mixed import mixed

TERMS = {
    "cls": {"type": "DistillationLoss", "region": "all", "loss_weight": 0.5},
    "neck": {"type": "FitNetsLoss"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


def entry(teacher: str, **options: Any) -> dict[str, Any]:
    return {"config": tiny_teacher(), "checkpoint": teacher, "precision": "fp32", **options}


def student(teacher: Any, **options: Any) -> Any:
    cfg = distilled(tiny_atss(), tiny_teacher(), **{"distill": TERMS, **options})
    cfg.teacher = teacher
    return build(cfg)


def asked(model: Any) -> list[int]:
    """The sizes of the batches that the teacher is asked about from now on."""
    sizes: list[int] = []
    ask = model.teacher.ask

    def counted(inputs: Any, samples: Any) -> Any:
        sizes.append(len(inputs))
        return ask(inputs, samples)

    vars(model.teacher)["ask"] = counted
    return sizes


def test_in_turn_at_the_same_mean_weight(teacher: str) -> None:
    always, third = student(entry(teacher)), student(entry(teacher, every=3))
    sizes = asked(third)
    seen = []
    for _ in range(4):
        wanted, found = losses_of(always, batch()), losses_of(third, batch())
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            if "kd" not in key:
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[key])), key
        seen.append([float(found[f"loss_kd_{name}"]) for name in TERMS])
    per_turn = [pytest.approx(3 * float(wanted[f"loss_kd_{name}"])) for name in TERMS]
    assert seen == [per_turn, [0, 0], [0, 0], per_turn]
    assert sizes == [2, 2]


def test_what_is_no_training_is_not_counted(teacher: str) -> None:
    model = student(entry(teacher, every=2))
    with torch.no_grad():
        for _ in range(2):
            assert losses_of(model, batch())["loss_kd_cls"] > 0
    losses_of(model, batch())
    assert losses_of(model, batch())["loss_kd_cls"] == 0


def test_each_named_teacher_has_its_own(teacher: str) -> None:
    named = {"often": entry(teacher), "seldom": entry(teacher, every=2)}
    terms = {"cls": {**TERMS["cls"], "teacher": "often"}, "neck": {**TERMS["neck"], "teacher": "seldom"}}
    model = student(named, distill=terms)
    seen = [losses_of(model, batch()) for _ in range(3)]
    assert [bool(losses["loss_kd_cls"] > 0) for losses in seen] == [True, True, True]
    assert [bool(losses["loss_kd_neck"] > 0) for losses in seen] == [True, False, True]


def test_every_parameter_of_a_loss_gets_a_gradient_between_turns(teacher: str) -> None:
    """DistributedDataParallel waits for all."""
    model = student(entry(teacher, every=2), distill={"neck": {"type": "FitNetsLoss", "align": "conv"}})
    losses_of(model, batch())
    model.parse_losses(losses_of(model, batch()))[0].backward()
    found = [parameter.grad for parameter in model.distill.parameters()]
    assert found
    assert all(grad is not None and not grad.any() for grad in found)


def test_unlabelled_images_wait_for_their_turn(teacher: str) -> None:
    """Between turns the student learns from the labelled images alone."""
    model = student(entry(teacher, every=2))
    sizes = asked(model)
    assert losses_of(model, mixed(1))["loss_kd_cls"] > 0
    assert sizes == [len(mixed(1)["inputs"])], "all images"
    between = losses_of(model, mixed(1))
    assert between["loss_kd_cls"] == 0
    assert torch.isfinite(model.parse_losses(between)[0])
    assert len(sizes) == 1


def test_automatic_weights_and_the_monitor_see_the_turns(teacher: str, tmp_path: Path) -> None:
    """The share is that of the mean over iterations; in its turn the term counts twice."""
    terms = {"x": {**TERMS["cls"], "loss_weight": "auto"}}
    model = student(entry(teacher, every=2), distill=terms)
    sizes = asked(model)
    runner = kd_runner(tmp_path, model, DistillMonitorHook(interval=2), epochs=2)
    runner.train()
    assert len(sizes) == model.terms["x"].auto.done == 3
    # Due in the 2nd and 4th iteration, none of its turns: measured in the 3rd and 5th.
    measured, number = runner.message_hub.get_scalar("train/kd_ratio_x").data
    assert number.tolist() == [1, 1]
    assert measured[0] == pytest.approx(2 * DEFAULT_SHARE, rel=0.3)


def test_a_resumed_training_keeps_the_turns(teacher: str, tmp_path: Path) -> None:
    """An epoch has three iterations, so every second epoch begins between turns."""
    saving = {
        "logger": {"type": "LoggerHook", "interval": 1},
        "checkpoint": {"type": "CheckpointHook", "interval": 1},
    }

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    def run(folder: str, *hooks: Any, **options: Any) -> Any:
        model = student(entry(teacher, every=2))
        hooks = (DistillStateHook(), *hooks)
        runner = kd_runner(tmp_path / folder, model, *hooks, epochs=2, default_hooks=saving, **options)
        with suppress(KeyboardInterrupt):
            runner.train()
        return model

    whole = run("whole")
    run("parts", Call("before_train_iter", 4, interrupt))
    resumed = run("parts", resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert whole.terms["cls"].turns.done == resumed.terms["cls"].turns.done == 6
    saved = torch.load(tmp_path / "whole" / "epoch_1.pth", weights_only=False)
    assert saved["state_dict"].keys() == build(tiny_atss()).state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([{"every": 0}], "teacher.every must be a whole number ≥ 1, found 0"),
        ([{"every": "2"}], "teacher.every must be a whole number ≥ 1, found '2'"),
        ([{"every": 2}, {}], r"(?s)averaged must be asked in the same iterations.*found: +2, 1"),
    ],
)
def test_what_is_refused(teacher: str, options: list[dict[str, Any]], message: str) -> None:
    entries = [entry(teacher, **one) for one in options]
    with pytest.raises(UserError, match=message):
        student(entries if len(entries) > 1 else entries[0])
