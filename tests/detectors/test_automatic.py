"""Weights that set themselves, in a detector: the gradient on the neck that each term is left with."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from mmkd.amp import BFloat16OptimWrapper
from mmkd.balance import task_loss
from mmkd.errors import UserError
from mmkd.hooks import DistillMonitorHook, DistillScheduleHook, DistillStateHook
from mmkd.losses import registered_losses
from mmkd.losses.automatic import DEFAULT_SHARE

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..distributed import gfl
from ..heads.methods import term
from ..hooks.kd_runner import kd_model, kd_runner, logged
from ..hooks.toy import Call
from ..outputs import queries, two_stage

AUTO = {"type": "DistillationLoss", "region": "all", "loss_weight": "auto"}
SHARE = 0.3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


def shares(model: Any, data: Any) -> dict[str, float]:
    """Of each term the norm of its gradient on the neck's output, by the task's; each by a backward pass."""
    maps: list[tuple[Tensor, ...]] = []
    extract_feat = model.extract_feat

    def kept(pixels: Tensor) -> Any:
        maps.append(extract_feat(pixels))
        return maps[0]

    vars(model)["extract_feat"] = kept
    losses = losses_of(model, data)
    vars(model).pop("extract_feat")

    def norm(loss: Tensor) -> float:
        for level in maps[0]:
            level.grad = None
            level.retain_grad()
        loss.backward(retain_graph=True)
        return float(sum(level.grad.square().sum() for level in maps[0] if level.grad is not None)) ** 0.5

    task = norm(task_loss(losses, model.terms))
    return {name: norm(losses[f"loss_kd_{name}"]) / task for name in model.terms}


def weight_of(losses: Any, name: str = "x") -> float:
    return float(losses[f"kd_weight_{name}"])


@pytest.mark.parametrize("loss", registered_losses())
def test_every_loss_gets_its_share(loss: str, teacher: str) -> None:
    cfg = {**term(loss), "loss_weight": "auto", "share": SHARE}
    cfg.update({"CrossKDLoss": {"layer": 1}, "TeacherBoxesLoss": {"min_score": 0.1}}.get(loss, {}))
    if loss == "LocalizationDistillationLoss":
        model = build(distilled(gfl(tiny_atss()), gfl(tiny_teacher()), distill={"x": cfg}))
    else:
        model = kd_model(teacher, distill={"x": cfg})
    data = batch((64, 96), (96, 64))
    assert shares(model.train(), data) == {"x": pytest.approx(SHARE, rel=1e-3)}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "two-stage": (
        two_stage.MASK,
        {
            "cls": {"type": "DistillationLoss", "place": "rois", "activation": "softmax", "region": "all"},
            "box": {"type": "BoxIoULoss", "place": "rois", "region": "teacher"},
            "rpn": {"type": "DistillationLoss", "region": "all"},
            "mask": {"type": "DistillationLoss", "place": "masks", "region": "all"},
            "neck": {"type": "PKDLoss"},
        },
    ),
    "DINO": (
        "DINO",
        {
            "cls": {"type": "DistillationLoss", "region": "teacher"},
            "box": {"type": "BoxL1Loss", "region": "teacher"},
            "memory": {"type": "PKDLoss"},
        },
    ),
    "Mask2Former": (
        "Mask2Former",
        {"mask": {"type": "DistillationLoss", "place": "query_masks", "region": "all"}},
    ),
    "SparseRCNN": (
        "SparseRCNN",
        {"box": {"type": "BoxIoULoss", "region": "teacher"}, "neck": {"type": "PKDLoss"}},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_head(family: str, tmp_path: Path) -> None:
    """Losses on regions, queries, masks and memory, in one model."""
    name, terms = FAMILIES[family]
    terms = {key: {**cfg, "share": 0.05 * (i + 1)} for i, (key, cfg) in enumerate(terms.items())}
    if family == "two-stage":
        cfg = two_stage.small(name)
        model, data = two_stage.pair(tmp_path, cfg, cfg, copy.deepcopy(terms)), two_stage.batch()
        torch.nn.init.normal_(
            model.roi_head.bbox_head.fc_reg.weight, std=0.05
        )  # mmdet's 0.001 sends nothing on
    else:
        cfg = queries.tiny(name)
        checkpoint = queries.opinionated(tmp_path / "teacher.pth", cfg)
        model = build(queries.distilled(cfg, checkpoint, distill=terms)).train()
        queries.unsettle(model)
        data = queries.batch()
    expected = {key: pytest.approx(cfg["share"], rel=1e-3) for key, cfg in terms.items()}
    assert shares(model, data) == expected


def test_no_raw_value_of_a_loss_enters_training(teacher: str) -> None:
    """PGD's first one is in the hundreds where the task's is 2."""
    raw = losses_of(kd_model(teacher, distill={"x": {"type": "PGDLoss", "loss_weight": 100.0}}), batch())
    assert raw["loss_kd_x"] > 700
    tamed = losses_of(kd_model(teacher, distill={"x": {"type": "PGDLoss", "share": 0.5}}), batch())
    task = task_loss(tamed, ["x"])
    assert 0 < tamed["loss_kd_x"] < 0.5 * task
    assert weight_of(tamed) < 0.01


def test_a_small_gradient_does_not_blow_the_weight_up(teacher: str) -> None:
    """The value is held at ten times its share of the task's, where the head hardly sends a gradient on."""
    model = kd_model(teacher, distill={"x": {**AUTO, "share": 0.2}})
    torch.nn.init.normal_(model.bbox_head.atss_cls.weight, std=1e-6)
    losses = losses_of(model, batch())
    assert float(losses["loss_kd_x"]) == pytest.approx(2 * float(task_loss(losses, ["x"])), rel=1e-4)


def test_fixed_weights_know_nothing_of_it(teacher: str) -> None:
    """The same value to the last digit, whether another term is automatic or not, and nothing more."""
    fixed = {"type": "PKDLoss", "loss_weight": 0.3}
    alone = losses_of(kd_model(teacher, distill={"x": fixed}), batch())
    beside = losses_of(kd_model(teacher, distill={"x": fixed, "y": AUTO}), batch())
    assert not [key for key in alone if "kd_weight" in key]
    assert {key: value for key, value in beside.items() if key in alone} == alone
    assert beside.keys() - alone.keys() == {"loss_kd_y", "kd_weight_y"}


def test_a_batch_without_a_gradient_changes_nothing(teacher: str) -> None:
    cfg = {"type": "DistillationLoss", "region": "foreground", "loss_weight": "auto"}
    model = kd_model(teacher, distill={"x": cfg})
    auto = model.terms["x"].auto
    empty = batch(boxes=0)
    assert weight_of(losses_of(model, empty)) == 0
    first = weight_of(losses_of(model, batch()))
    assert first > 0
    auto.done = 50
    losses = losses_of(model, empty)
    assert losses["loss_kd_x"] == 0
    assert (weight_of(losses), auto.silent) == (first, 1)
    with torch.no_grad():  # as in a validation: nothing is measured, nothing counted
        losses_of(model, batch())
    assert auto.done == 51


def test_a_term_that_never_has_a_gradient_is_reported(teacher: str, caplog: pytest.LogCaptureFixture) -> None:
    model = kd_model(teacher, distill={"x": {"type": "DistillationLoss", "loss_weight": "auto"}})
    model.terms["x"].auto.silent = 49
    losses_of(model, batch(boxes=0))
    assert model.terms["x"].auto.silent == 50


def test_what_cannot_be_weighed_is_refused(teacher: str) -> None:
    with pytest.raises(UserError, match=r"(?s)share of its gradient.*automatic weights for x"):
        kd_model(teacher, distill={"x": AUTO}, task_loss_weight=0)
    model = kd_model(teacher, distill={"x": AUTO})
    for part in (model.backbone, model.neck):
        part.requires_grad_(False)
    with pytest.raises(UserError, match=r"(?s)need a gradient on the neck's output.*both frozen"):
        losses_of(model, batch())
    inner = {"cls": {"type": "DistillationLoss", "loss_weight": "auto"}}
    with pytest.raises(UserError, match="loss_weight must be a number ≥ 0, found 'auto'"):
        kd_model(teacher, distill={"x": {"type": "CrossKDLoss", "layer": 1, "losses": inner}})


def test_a_schedules_factor_multiplies_it(teacher: str, tmp_path: Path) -> None:
    model = kd_model(teacher, distill={"x": AUTO})
    hooks = [DistillScheduleHook(warmup=3, start=0.6), DistillMonitorHook(interval=1)]
    kd_runner(tmp_path, model, *hooks, epochs=2).train()
    rows = logged(tmp_path)
    assert rows[0]["kd_weight_x"] == rows[0]["loss_kd_x"] == 0
    assert rows[1]["kd_ratio_x"] == pytest.approx(DEFAULT_SHARE * 0.2, rel=1e-3)
    assert rows[-1]["kd_weight_x"] == pytest.approx(0.6 * model.terms["x"].auto.weight, rel=1e-4)


def test_a_resumed_training_has_the_same_weights(teacher: str, tmp_path: Path) -> None:
    terms = {"x": AUTO, "neck": {"type": "FitNetsLoss", "share": 0.2}}
    saving = {
        "logger": {"type": "LoggerHook", "interval": 1},
        "checkpoint": {"type": "CheckpointHook", "interval": 1},
    }

    def run(folder: str, *hooks: Any, **options: Any) -> Any:
        model = kd_model(teacher, distill=terms)
        options = {"default_hooks": saving, **options}
        runner = kd_runner(tmp_path / folder, model, DistillStateHook(), *hooks, epochs=3, **options)
        with suppress(KeyboardInterrupt):
            runner.train()
        return model

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    whole = run("whole")
    run("parts", Call("before_train_iter", 6, interrupt))  # the last checkpoint is after 3
    resumed = run("parts", resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    states = [model.distill.state_dict() for model in (whole, resumed)]
    assert states[0].keys() == states[1].keys() >= {"x.auto._extra_state", "neck.auto._extra_state"}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = [logged(tmp_path / folder) for folder in ("whole", "parts")]
    assert [row["kd_weight_neck"] for row in rows[0][3:]] == [row["kd_weight_neck"] for row in rows[1][-6:]]
    assert len({row["kd_weight_x"] for row in rows[0]}) > 3

    saved = torch.load(tmp_path / "whole" / "epoch_1.pth", weights_only=False)
    assert saved["state_dict"].keys() == build(tiny_atss()).state_dict().keys()
    # A training that begins with these weights, of another loss weight perhaps, measures anew.
    begun = kd_model(teacher, distill=terms)
    hook, runner = DistillStateHook(), SimpleNamespace(model=begun, _resume=False)
    hook.after_load_checkpoint(runner, saved)  # type: ignore[arg-type]
    assert not begun.terms["x"].auto.measured
    assert torch.equal(begun.distill.neck.aligns[0].weight, saved["distill_state"]["neck.aligns.0.weight"])
    runner._resume = True
    hook.after_load_checkpoint(runner, saved)  # type: ignore[arg-type]
    assert begun.terms["x"].auto.done == 3


def test_gradient_accumulation_and_half_precision(teacher: str) -> None:
    """The weight is that of the loss, whatever the step divides or scales it by."""
    found = []
    for wrapper in (None, BFloat16OptimWrapper):
        model = kd_model(teacher, distill={"x": AUTO}).train()
        if wrapper is None:
            found.append(weight_of(losses_of(model, batch())))
            continue
        optim = wrapper(torch.optim.SGD(model.parameters(), lr=0.01), accumulative_counts=2)
        optim.initialize_count_status(model, 0, 4)
        found.append(weight_of(model.train_step(batch(), optim)))
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_unscaled_gradients_of_half_precision(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the largest scale overflows, a smaller one serves."""
    scales: list[float] = []
    import mmkd.detectors.automatic as automatic

    real = automatic.compare_gradients

    def watched(task: Any, terms: Any, feats: Any, scale: float) -> Any:
        scales.append(scale)
        return real(task, terms, feats, float("inf") if scale > 300 else scale)

    monkeypatch.setattr(automatic, "in_float16", lambda _: True)
    monkeypatch.setattr(automatic, "compare_gradients", watched)
    model = kd_model(teacher, distill={"x": AUTO})
    assert shares(model, batch()) == {"x": pytest.approx(DEFAULT_SHARE, rel=1e-3)}
    assert scales == [2.0**16, 2.0**8]


def test_the_student_as_its_own_teacher(tmp_path: Path) -> None:
    """In the first step the average is the student, and a gradient that is next to nothing begins to grow."""
    from mmkd.hooks import EMATeacherHook

    cfg = {**distilled(tiny_atss(), tiny_atss()), "teacher": {"ema": {"momentum": 0.01}}}
    model = build({**cfg, "distill": {"x": AUTO}})
    kd_runner(tmp_path, model, EMATeacherHook(), DistillMonitorHook(interval=1), epochs=3).train()
    rows = logged(tmp_path)
    assert rows[-1]["kd_weight_x"] > 0
    assert all(row["kd_ratio_x"] <= 4 * DEFAULT_SHARE for row in rows)
