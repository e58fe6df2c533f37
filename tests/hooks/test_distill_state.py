"""The losses' own layers in a training: saved beside the student, resumed with it, published never."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner

from mmkd.cli.publish import main as publish
from mmkd.deployment import write_deployable
from mmkd.errors import UserError
from mmkd.hooks import DistillStateHook
from mmkd.hooks.distill_state import KEY

from ..conftest import build, distilled, save_teacher, tiny_atss, tiny_teacher
from .kd_runner import kd_model, kd_runner

WIDE = {"neck__out_channels": 96, "bbox_head__in_channels": 96, "bbox_head__feat_channels": 96}
EMA = {"type": "EMAHook", "momentum": 0.1}


def student(teacher: str, **loss: Any) -> Any:
    """Its neck has 64 channels, the teacher's 96: five convolutions of 64 → 96 belong to the loss."""
    terms = {"neck": {"type": "FitNetsLoss", **loss}, "cls": {"type": "DistillationLoss"}}
    return build(distilled(tiny_atss(), tiny_teacher(**WIDE), teacher, distill=terms))


def runner_of(work_dir: Path, model: Any, *hooks: Any, **options: Any) -> Runner:
    return kd_runner(work_dir, model, DistillStateHook(), *hooks, epochs=2, **options)


def own_layers(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.distill.named_parameters()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "wide.pth", tiny_teacher(**WIDE))


@pytest.fixture(scope="module")
def uninterrupted(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a training of two epochs, a checkpoint after each, and the model at its end."""
    work_dir = tmp_path_factory.mktemp("uninterrupted")
    model = student(teacher)
    runner_of(work_dir, model, EMA).train()
    return work_dir, model


@pytest.fixture
def first_epoch(uninterrupted: tuple[Path, Any]) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(uninterrupted[0] / "epoch_1.pth")
    return checkpoint


def resumed(work_dir: Path, model: Any, checkpoint: dict[str, Any], *hooks: Any) -> Runner:
    """A Runner that begins with a checkpoint of the first epoch."""
    torch.save(checkpoint, work_dir / "from.pth")
    return runner_of(work_dir, model, *hooks, load_from=str(work_dir / "from.pth"), resume=True)


def test_beside_the_students_weights_and_not_among_them(
    uninterrupted: tuple[Path, Any], first_epoch: dict[str, Any]
) -> None:
    stock = build(tiny_atss())
    keys = stock.state_dict().keys()
    last = torch.load(uninterrupted[0] / "epoch_2.pth")
    for checkpoint in (first_epoch, last):
        assert checkpoint["state_dict"].keys() == keys
        assert {key.removeprefix("module.") for key in checkpoint["ema_state_dict"]} == {*keys, "steps"}
        assert {tuple(value.shape) for value in checkpoint[KEY].values()} == {(96, 64, 1, 1), (96,)}
        assert len(checkpoint[KEY]) == 10
        stock.load_state_dict(checkpoint["state_dict"], strict=True)
    own = own_layers(uninterrupted[1])
    assert last[KEY].keys() == own.keys()
    for name, value in own.items():
        assert torch.equal(last[KEY][name], value)
        assert not torch.equal(first_epoch[KEY][name], value), "they train"
    # The hook of the moving average has put the averaged weights in the place of the student's.
    now, averaged = uninterrupted[1].state_dict(), last["state_dict"]
    weight = "bbox_head.atss_cls.weight"
    assert torch.equal(last["ema_state_dict"][f"module.{weight}"], now[weight])
    assert not torch.equal(averaged[weight], now[weight])
    torch.testing.assert_close(averaged[weight], now[weight], rtol=0, atol=0.1)


def test_resumed_ends_where_the_uninterrupted_does(
    uninterrupted: tuple[Path, Any], teacher: str, first_epoch: dict[str, Any], tmp_path: Path
) -> None:
    work_dir, ended = uninterrupted
    model = student(teacher)
    with torch.no_grad():  # whatever the new process has there, the checkpoint's replaces it
        for parameter in model.distill.parameters():
            parameter.fill_(0.5)
    runner = resumed(tmp_path, model, first_epoch, EMA)
    runner.train()
    assert runner.iter == 6
    for key, value in ended.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    own = own_layers(model)
    assert own
    for name, value in own_layers(ended).items():
        assert torch.equal(own[name], value), name
    of_both = [torch.load(folder / "epoch_2.pth") for folder in (work_dir, tmp_path)]
    for part in ("state_dict", "ema_state_dict", KEY):
        first, second = (checkpoint[part] for checkpoint in of_both)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), part


def test_without_them_they_begin_anew(
    teacher: str,
    first_epoch: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A checkpoint from before there was such a loss."""
    del first_epoch[KEY]
    model = student(teacher)
    before = own_layers(model)
    runner = resumed(tmp_path, model, first_epoch)
    runner.logger.addHandler(caplog.handler)
    runner.load_or_resume()
    (warning,) = (record for record in caplog.records if "distill_state" in record.getMessage())
    assert warning.levelno == logging.WARNING
    assert "start from scratch" in warning.getMessage()
    assert runner.iter == 3
    assert all(torch.equal(value, before[name]) for name, value in own_layers(model).items())


@pytest.mark.parametrize("other", ["shape", "missing", "superfluous"])
def test_those_of_other_losses_are_refused(
    teacher: str, first_epoch: dict[str, Any], tmp_path: Path, other: str
) -> None:
    saved = first_epoch[KEY]
    name = sorted(saved)[0]
    if other == "shape":
        saved[name] = saved[name][:48]
    elif other == "missing":
        del saved[name]
    else:
        name = "another.weight"
        saved[name] = torch.zeros(1)
    model = student(teacher)
    before = own_layers(model)
    with pytest.raises(
        UserError, match=rf"(?s)do not match the config.*expected.*10 tensors.*others: {name}"
    ):
        resumed(tmp_path, model, first_epoch).load_or_resume()
    assert all(torch.equal(value, before[key]) for key, value in own_layers(model).items())


def test_losses_without_layers_ask_for_none(
    first_epoch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither when saving nor when loading, be they in the checkpoint or not."""
    hook, runner = DistillStateHook(), kd_runner(tmp_path, kd_model(None))
    runner.logger.addHandler(caplog.handler)
    for model in (runner.model, build(tiny_atss())):
        runner.model = model
        checkpoint: dict[str, Any] = {}
        hook.before_save_checkpoint(runner, checkpoint)
        assert checkpoint == {}
        for loaded in (checkpoint, first_epoch):
            hook.after_load_checkpoint(runner, loaded)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_published_has_none(uninterrupted: tuple[Path, Any], tmp_path: Path) -> None:
    trained, out = str(uninterrupted[0] / "epoch_2.pth"), tmp_path / "out.pth"
    stock = build(tiny_atss())
    for write in (
        lambda: write_deployable(trained, out, half=False),
        lambda: publish([trained, str(out), "--full-precision"]),
    ):
        write()
        published = torch.load(out)
        assert published.keys() == {"meta", "state_dict"}
        assert published["state_dict"].keys() == stock.state_dict().keys()
        stock.load_state_dict(published["state_dict"], strict=True)
        out.unlink()
