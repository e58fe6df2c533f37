"""A teacher that is no detector of mmdet, as one in a user's project."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs import dense_layout
from mmkd.registry import TEACHERS
from mmkd.structures import DenseOutputs
from mmkd.teachers import (
    AveragedTeacher,
    CachedTeacher,
    FrozenTeacher,
    Teacher,
    build_teacher,
    single_teachers,
    teacher_model_and_checkpoint,
)
from mmkd.teachers.config import is_detector

from ..conftest import batch, build, losses_of, save_teacher, tiny_atss, tiny_teacher

LOGITS: frozenset[Any] = frozenset({"cls_logits"})
NAMES = ("cat", "dog", "pig", "cow")


class ConstantTeacher(Teacher):
    """Says the same of each prior: its class logits are these."""

    gives = frozenset({"cls_logits", "boxes"})

    def __init__(self, logits: Sequence[float], student: Any, names: Sequence[str] | None = None) -> None:
        own = dense_layout(student)
        self.logits, self.strides = torch.tensor(logits), own.strides
        self.spec = own.select_classes(len(logits))
        self.class_names = None if names is None else tuple(names)
        self.asked: list[tuple[int, ...]] = []

    @property
    def identity(self) -> list[Any]:
        return [type(self).__name__, self.logits.tolist()]

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        self.asked.append(tuple(inputs_BCHW.shape))
        B, _, height, width = inputs_BCHW.shape
        sizes = [(-(-height // y), -(-width // x)) for x, y in self.strides]
        return DenseOutputs(
            self.spec,
            feats=(),
            cls_logits=tuple(self.logits[:, None, None].expand(B, -1, *size).half() for size in sizes),
            boxes=tuple(torch.full((B, 4, *size), 7.0, requires_grad=True) for size in sizes),
        )


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    TEACHERS.register_module(module=ConstantTeacher)
    yield
    TEACHERS.module_dict.pop("ConstantTeacher")


def entry(**options: Any) -> dict[str, Any]:
    return {"type": "ConstantTeacher", "logits": [1.0, 2.0, 3.0], **options}


def model(teacher: Any, **distill: Any) -> Any:
    terms = distill or {"cls": {"type": "DistillationLoss"}}
    return build(
        ConfigDict(**{**tiny_atss(), "type": "KDSingleStageDetector", "teacher": teacher, "distill": terms})
    )


def question(*shapes: tuple[int, int]) -> tuple[Tensor, list[Any]]:
    shapes = shapes or ((64, 96), (64, 96))
    return torch.randn(len(shapes), 3, *shapes[0]), batch(*shapes)["data_samples"]


def test_a_student_learns_from_it() -> None:
    student = model(entry(), cls={"type": "DistillationLoss", "region": "all"}, box={"type": "BoxIoULoss"})
    losses = losses_of(student, batch())
    assert losses["loss_kd_cls"] > 0
    assert losses["loss_kd_box"] > 0
    (losses["loss_kd_cls"] + losses["loss_kd_box"]).backward()
    assert student.bbox_head.atss_cls.weight.grad.abs().sum() > 0
    outputs = student.teacher.ask(*question())()
    assert {level.dtype for level in outputs.levels()} == {torch.float32}
    assert not any(level.requires_grad for level in outputs.levels())
    assert [tuple(level.shape[-2:]) for level in outputs.feats] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert outputs.feats[0].is_meta, "only the sizes"
    assert student.teacher.needs == {"cls_logits", "boxes"}
    assert student.teacher.facts["detector"] == "ConstantTeacher"
    assert student.teacher.facts["checkpoint"] is None
    assert not [name for name in student.state_dict() if "teacher" in name]
    assert copy.deepcopy(student).teacher is student.teacher


def test_it_is_found_in_every_scope() -> None:
    for kind in ("ConstantTeacher", "mmdet.ConstantTeacher", "mmkd.ConstantTeacher", ConstantTeacher):
        teacher = build_teacher(entry(type=kind), LOGITS, build(tiny_atss()))
        assert isinstance(single_teachers(teacher)[0].inner, ConstantTeacher)
    assert not is_detector(entry())
    assert not is_detector({"ema": {}})
    assert is_detector({"config": "a.py", "checkpoint": None})
    assert is_detector(tiny_atss()), "a model config with its weights as init_cfg"


def test_classes_by_name_and_levels() -> None:
    teacher = entry(logits=[0.0, 1.0, 2.0, 3.0], names=NAMES, class_map={"kitty": "cat"})
    student = model(teacher)
    student.check_class_names({"classes": ("pig", "kitty", "dog")})
    logits = student.teacher.ask(*question())().flat_cls_logits()
    assert logits.unique(dim=0).tolist() == [[2, 0, 1]]
    with pytest.raises(UserError, match="lacks some"):
        student.check_class_names({"classes": ("pig", "cat", "cod")})
    with pytest.raises(UserError, match="different classes"):
        model(entry(logits=[0.0] * 4))
    with pytest.raises(UserError, match="from 0 to 4"):
        model(entry(levels=[0, 1, 2, 3, 5]))


def test_its_answers_are_cached(tmp_path: Path) -> None:
    asked = question()
    for index, sample in enumerate(asked[1]):
        (tmp_path / f"{index}.jpg").touch()
        sample.set_metainfo({"img_path": str(tmp_path / f"{index}.jpg")})
    needs: frozenset[Any] = frozenset({"cls_logits", "boxes"})
    cache = {"dir": str(tmp_path / "cache")}
    live = build_teacher(entry(), needs, build(tiny_atss())).ask(*asked)()
    for turn in range(2):
        teacher: Any = build_teacher(entry(cache=cache), needs, build(tiny_atss()))
        assert isinstance(teacher, CachedTeacher)
        teacher.for_pipeline("LoadImageFromFile()")
        outputs = teacher.ask(*asked)()
        assert (teacher.read, teacher.computed) == (2 * turn, 2 - 2 * turn)
        assert torch.equal(outputs.flat_cls_logits(), live.flat_cls_logits())
        assert torch.equal(outputs.flat_boxes(), live.flat_boxes())
    other: Any = build_teacher(entry(logits=[0.0] * 3, cache=cache), needs, build(tiny_atss()))
    other.for_pipeline("LoadImageFromFile()")
    other.ask(*asked)()
    assert other.computed == 2


@pytest.mark.parametrize("cached", [False, True])
def test_autocast_of_the_student_does_not_reach_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cached: bool
) -> None:
    seen: list[torch.dtype] = []
    answer = ConstantTeacher.answer

    def watched(*args: Any) -> DenseOutputs:
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return answer(*args)

    monkeypatch.setattr(ConstantTeacher, "answer", watched)
    data = batch()
    (tmp_path / "image.jpg").touch()
    for sample in data["data_samples"]:
        sample.set_metainfo({"img_path": str(tmp_path / "image.jpg")})
    student = model(entry(**({"cache": {"dir": str(tmp_path / "cache")}} if cached else {})))
    if cached:
        student.teacher.for_pipeline("LoadImageFromFile()")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(student, data)
    assert losses["loss_kd_cls"] > 0
    assert set(seen) == {torch.float32}


def test_without_an_identity_there_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ConstantTeacher, "identity", None)
    with pytest.raises(UserError, match=r"it has no `identity`(.|\n)*ConstantTeacher"):
        model(entry(cache={"dir": str(tmp_path)}))


def test_it_is_averaged_with_others(tmp_path: Path) -> None:
    trained = {
        "config": tiny_teacher(),
        "checkpoint": save_teacher(tmp_path / "t.pth", tiny_teacher()),
        "precision": "fp32",
    }
    asked = question()
    student = model([entry(), trained])
    assert isinstance(student.teacher, AveragedTeacher)
    constant, detector = student.teacher.members
    assert isinstance(detector.inner, FrozenTeacher)
    expected = (constant.ask(*asked)().flat_cls_logits() + detector.ask(*asked)().flat_cls_logits()) / 2
    assert torch.equal(student.teacher.ask(*asked)().flat_cls_logits(), expected)
    by_name = {"a": entry(), "b": [entry(), [entry(), {"ema": {}}]]}
    distill = {name: {"type": "DistillationLoss", "teacher": name} for name in by_name}
    student = model(by_name, **distill)
    assert len(single_teachers(student.teacher)) == 4


@pytest.mark.parametrize(
    ("options", "distill", "message"),
    [
        ({"logit": 1}, {}, r"teacher has no option logit(.|\n)*did you mean logits"),
        ({"type": "ConstantTeacher", "logits": ...}, {}, "teacher lacks logits"),
        (
            {},
            {"cross": {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": {"type": "DistillationLoss"}}}},
            r"ConstantTeacher does not provide(.|\n)*layers, towers",
        ),
        ({}, {"neck": {"type": "PKDLoss"}}, r"does not provide(.|\n)*needs feats"),
    ],
)
def test_mistakes(options: dict[str, Any], distill: dict[str, Any], message: str) -> None:
    teacher = {key: value for key, value in {**entry(), **options}.items() if value is not ...}
    with pytest.raises(UserError, match=message):
        model(teacher, **distill)


def test_what_is_registered_must_be_a_teacher() -> None:
    @TEACHERS.register_module()
    class NoTeacher:
        pass

    try:
        with pytest.raises(
            UserError, match=r"registered as a teacher but is not one(.|\n)*NoTeacher, object"
        ):
            model({"type": "NoTeacher"})
    finally:
        TEACHERS.module_dict.pop("NoTeacher")


def test_tools_that_read_a_detectors_weights_say_so() -> None:
    with pytest.raises(UserError, match="ConstantTeacher is not an MMDetection detector"):
        teacher_model_and_checkpoint(entry())


def test_a_student_may_inherit_its_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "t.pth", tiny_atss(), seed=5)
    monkeypatch.setattr(ConstantTeacher, "checkpoint", path)
    cfg = {**tiny_atss(), "type": "KDSingleStageDetector", "teacher": entry(), "inherit": ["neck"]}
    student = build(ConfigDict({**cfg, "distill": {"cls": {"type": "DistillationLoss"}}}))
    expected = torch.load(path)["state_dict"]["neck.fpn_convs.0.conv.weight"]
    assert torch.equal(student.neck.fpn_convs[0].conv.weight, expected)
