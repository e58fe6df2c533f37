from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.hooks.ema_teacher import ema_teacher
from mmkd.teachers import EMATeacher

from ..conftest import batch, build, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..detectors.test_kd_detector import batch as kd_batch
from ..detectors.test_kd_detector import transformer, two_stage

CLS = {"type": "DistillationLoss", "region": "all"}


def student(momentum: float = 0.1, distill: Any = None, **options: Any) -> Any:
    cfg = {**tiny_atss(), "type": "KDSingleStageDetector", "teacher": {"ema": {"momentum": momentum}}}
    return build({**cfg, "distill": distill or {"cls": CLS}, **options})


def perturb(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(torch.rand(tensor.shape, generator=generator) * 0.02)


def test_follows_by_the_momentum_and_copies_buffers() -> None:
    model = student(momentum=0.25)
    model.teacher.begin(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    perturb(model)
    model.backbone.bn1.num_batches_tracked.fill_(7)
    first = copy.deepcopy(model.state_dict())
    model.teacher.step(model)
    perturb(model)
    second = copy.deepcopy(model.state_dict())
    model.teacher.step(model)
    parameters = {name for name, _ in model.named_parameters()}
    average = model.teacher.state_dict()
    assert average.keys() == before.keys()
    for name, value in average.items():
        if name in parameters:
            by_hand = 0.75 * (0.75 * before[name] + 0.25 * first[name]) + 0.25 * second[name]
            torch.testing.assert_close(value, by_hand)
        else:
            assert torch.equal(value, second[name]), name
    assert average["backbone.bn1.num_batches_tracked"] == 7


def test_says_what_the_student_in_eval_mode_said_before() -> None:
    everything: frozenset[Any] = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})
    model = student()
    teacher = EMATeacher({"ema": {}}, everything, model)
    teacher.begin(model.state_dict())
    inputs = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        cls, box, centerness = copy.deepcopy(model).eval()._forward(inputs)
    perturb(model)
    answer = teacher.ask(inputs, batch((64, 96), (64, 96))["data_samples"])()
    expected = [*cls, *box, *centerness]
    found = [*answer.cls_logits, *answer.bbox_pred, *answer.extra["centerness"]]  # type: ignore[misc]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert answer.boxes is not None
    assert not any(level.requires_grad or level.is_inference() for level in answer.levels())


def test_a_student_equal_to_its_average_has_nothing_to_learn_from_it() -> None:
    """In eval mode both are the same network."""
    model = student().eval()
    model.teacher.begin(model.state_dict())
    assert losses_of(model, batch())["loss_kd_cls"] < 1e-6
    perturb(model.bbox_head)
    assert losses_of(model, batch())["loss_kd_cls"] > 1e-4


def test_the_student_is_the_stock_student() -> None:
    model, alone = student(), build(tiny_atss())
    assert model.state_dict().keys() == alone.state_dict().keys()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in alone.named_parameters()]
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    of_teacher = (*model.teacher.model.parameters(), *model.teacher.model.buffers())
    assert not own & {id(tensor) for tensor in of_teacher}
    assert not any(p.requires_grad for p in model.teacher.model.parameters())
    assert copy.deepcopy(model).teacher is model.teacher
    model.train()
    assert not model.teacher.model.training
    model.to("meta")
    assert all(p.device.type == "meta" for p in model.teacher.model.parameters())


@pytest.mark.parametrize(
    "kind", [{"type": "PKDLoss"}, {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": CLS}}]
)
def test_other_losses(kind: dict[str, Any]) -> None:
    model = student(distill={"term": kind})
    model.teacher.begin(model.state_dict())
    perturb(model.teacher.model)
    losses = losses_of(model, batch())
    model.parse_losses(losses)[0].backward()
    assert losses["loss_kd_term"] > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_beside_a_trained_teacher() -> None:
    teacher = {
        "self": {"ema": {"momentum": 0.1}},
        "big": {"config": tiny_atss(), "checkpoint": None, "precision": "fp32"},
    }
    distill = {"cls": {**CLS, "teacher": "big"}, "own": {**CLS, "teacher": "self"}}
    model = student(teacher=teacher, distill=distill)
    model.teacher.teachers["self"].begin(model.state_dict())
    perturb(model.teacher.teachers["self"].model)
    assert losses_of(model, batch())["loss_kd_own"] > 0


def test_nothing_moves_it_without_the_hook() -> None:
    with pytest.raises(UserError, match="EMATeacherHook"):
        losses_of(student(), batch())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"ema": {"momentum": 0}}, r"momentum must be a number in \(0, 1\), found 0"),
        ({"ema": {"momentum": "fast"}}, "found 'fast'"),
        ({"ema": {"decay": 0.1}}, "teacher.ema has no option decay"),
        ({"ema": 0.1}, "teacher.ema must be a dict"),
        ({"ema": {}, "cache": {"dir": "x"}}, "Cannot cache"),
        ({"ema": {}, "precision": "bf16"}, "teacher has no option precision"),
    ],
)
def test_wrong_options(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        student(teacher=teacher)


def test_it_has_nothing_to_inherit() -> None:
    with pytest.raises(UserError, match="inherit needs a teacher with a checkpoint"):
        student(inherit=["neck"])
    assert student(teacher={"ema": None}).teacher.momentum == 0.001


def test_averaged_with_a_trained_detector(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "t.pth", tiny_atss(), seed=5)
    trained = {"config": tiny_atss(), "checkpoint": path, "precision": "fp32"}
    distill = {"cls": CLS, "neck": {"type": "PKDLoss"}, "box": {"type": "BoxIoULoss"}}
    cfg = {**tiny_atss(), "type": "KDSingleStageDetector", "distill": distill}
    model = build({**cfg, "teacher": [{"ema": {}}, trained]})
    assert ema_teacher(model) is model.teacher.members[0]
    model.teacher.members[0].begin(model.state_dict())
    asked = torch.randn(2, 3, 64, 96), batch((64, 96), (64, 96))["data_samples"]
    average, detector = (member.ask(*asked)() for member in model.teacher.members)
    both = model.teacher.ask(*asked)()
    for name in ("cls_logits", "feats", "boxes"):
        for mean, one, other in zip(getattr(both, name), getattr(average, name), getattr(detector, name)):
            torch.testing.assert_close(mean, (one + other) / 2)
    wider = {**trained, "config": tiny_teacher(neck__out_channels=32, bbox_head__in_channels=32)}
    with pytest.raises(UserError, match="widths of the features"):
        build({**cfg, "teacher": [{"ema": {}}, {**wider, "checkpoint": None}]})


@pytest.mark.parametrize("cfg", [two_stage(), transformer()], ids=["two stages", "transformer"])
def test_of_a_student_of_any_kind(cfg: Any) -> None:
    """In features, and where it predicts: an equal teacher has nothing to teach, a later student differs."""
    distill = {"neck": {"type": "PKDLoss"}, "cls": {"type": "DistillationLoss", "region": "all"}}
    if "roi_head" in cfg:
        distill["cls"]["activation"] = "softmax"
    options = {"type": "KDDetector", "student": cfg.type, "teacher": {"ema": {}}, "distill": distill}
    model = build({**cfg, **options}).train()
    model.teacher.begin(model.state_dict())
    assert model.teacher.state_dict().keys() == model.state_dict().keys()
    data = model.data_preprocessor(kd_batch(), True)
    perturb(model)
    losses = model.loss(data["inputs"], data["data_samples"])
    assert losses["loss_kd_neck"] > 0
    assert losses["loss_kd_cls"] > 0
    model.teacher.step(model)
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())
