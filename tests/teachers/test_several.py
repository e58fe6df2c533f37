from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.hooks.teacher_cache import cached_teachers
from mmkd.structures import DenseOutputs, HeadSpec
from mmkd.teachers import (
    AveragedTeacher,
    CachedTeacher,
    NamedTeachers,
    asked_by,
    build_teacher,
    single_teachers,
    teacher_entries,
    teacher_model_and_checkpoint,
)
from mmkd.teachers.several import average

from ..conftest import batch, build, losses_of, save_teacher, tiny_atss, tiny_teacher

ALL: frozenset[Any] = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})
LOGITS: frozenset[Any] = frozenset({"cls_logits"})
NARROW = {"neck__out_channels": 32, "bbox_head__in_channels": 32}
CLS = {"type": "DistillationLoss"}
SPEC = HeadSpec(1, 1, True, ((8, 8),), (1,), (2,))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [save_teacher(tmp_path / f"{seed}.pth", tiny_teacher(), seed) for seed in (1, 2)]


def entry(path: str | None, cfg: Any = None, **options: Any) -> dict[str, Any]:
    return {"config": cfg or tiny_teacher(), "checkpoint": path, "precision": "fp32", **options}


def student(teacher: Any, **options: Any) -> Any:
    options.setdefault("distill", {"cls": CLS})
    return build({**tiny_atss(), "type": "KDSingleStageDetector", "teacher": teacher, **options})


def question(*shapes: tuple[int, int]) -> tuple[torch.Tensor, list[Any]]:
    shapes = shapes or ((64, 96), (64, 96))
    return torch.randn(len(shapes), 3, *shapes[0]), batch(*shapes)["data_samples"]


def answer_of(value: float, known: list[bool] | None = None, size: int = 2) -> DenseOutputs:
    def one(channels: int) -> tuple[torch.Tensor, ...]:
        return (torch.full((1, channels, 1, size), float(value)),)

    return DenseOutputs(
        SPEC,
        feats=one(2),
        cls_logits=one(1),
        bbox_pred=one(4),
        boxes=one(4),
        extra={"centerness": one(1)},
        known_N=None if known is None else torch.tensor(known),
    )


def test_the_mean_by_hand() -> None:
    mean = average([answer_of(1), answer_of(2), answer_of(6)], ALL)
    assert len(mean.levels()) == 5
    assert all((level == 3).all() for level in mean.levels())
    assert mean.known_N is None
    assert mean.feats[0].shape == (1, 2, 1, 2)


def test_what_is_not_read_is_left_out() -> None:
    mean = average([answer_of(1), answer_of(5)], frozenset({"cls_logits", "boxes"}))
    assert mean.bbox_pred is None
    assert not mean.extra
    assert mean.cls_logits is not None
    assert (mean.cls_logits[0] == 3).all()
    assert (mean.feats[0] == 1).all(), "no arithmetic on features that are not read"


def test_a_prior_counts_if_all_know_it() -> None:
    answers = [answer_of(0, [True, False]), answer_of(0), answer_of(0, [True, True])]
    assert average(answers, ALL).known_N.tolist() == [True, False]  # type: ignore[union-attr]


def test_maps_of_different_sizes() -> None:
    with pytest.raises(UserError, match="differ in size"):
        average([answer_of(0), answer_of(0, size=3)], ALL)


def test_the_mean_of_what_each_teacher_says(paths: list[str]) -> None:
    asked = question()
    members = [build_teacher(entry(path), ALL, build(tiny_atss())) for path in paths]
    both = build_teacher([entry(path) for path in paths], ALL, build(tiny_atss()))
    assert isinstance(both, AveragedTeacher)
    a, b, mean = (teacher.ask(*asked)() for teacher in (*members, both))
    for one, other, ours in zip(a.levels(), b.levels(), mean.levels(), strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(ours, (one + other) / 2)
        assert not ours.requires_grad
    assert mean.spec == a.spec
    assert mean.extra.keys() == a.extra.keys()


def test_twice_the_same_teacher_is_that_teacher(paths: list[str]) -> None:
    one, two = student(entry(paths[0])), student([entry(paths[0])] * 2)
    for name, value in losses_of(one, batch()).items():
        torch.testing.assert_close(losses_of(two, batch())[name], value)


def test_training_by_two(paths: list[str]) -> None:
    distill = {
        "cls": CLS,
        "box": {"type": "BoxIoULoss"},
        "neck": {"type": "PKDLoss"},
        "quality": {"type": "QualityLoss"},
    }
    model = student([entry(path) for path in paths], distill=distill)
    losses = losses_of(model, batch())
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(losses[f"loss_kd_{name}"] > 0 for name in distill)
    assert model.state_dict().keys() == build(tiny_atss()).state_dict().keys()
    assert copy.deepcopy(model).teacher is model.teacher
    model.to("meta")
    assert all(p.device.type == "meta" for m in model.teacher.members for p in m.model.parameters())


def test_members_may_differ_where_it_is_not_read(paths: list[str]) -> None:
    with_narrow = [entry(paths[0]), entry(None, tiny_teacher(**NARROW))]
    losses_of(student(with_narrow), batch())
    with pytest.raises(UserError, match=r"widths of the features(.|\n)*\[64, 64(.|\n)*\[32, 32"):
        student(with_narrow, distill={"neck": {"type": "FitNetsLoss"}})
    with pytest.raises(UserError, match="differ in strides"):
        student([entry(paths[0]), entry(paths[1], levels=[0, 1])], distill={"neck": {"type": "PKDLoss"}})


def test_boxes_of_other_heads_are_averaged_when_they_are_decoded(paths: list[str]) -> None:
    """GFL says distributions, 17 bins for each side; ATSS says offsets."""
    gfl = tiny_teacher()
    head = {key: gfl.bbox_head[key] for key in ("num_classes", "in_channels", "feat_channels")}
    gfl.bbox_head = {**head, "type": "GFLHead", "stacked_convs": 1, "reg_max": 16}
    gfl.bbox_head.anchor_generator = tiny_teacher().bbox_head.anchor_generator
    teachers = [entry(paths[0]), entry(None, gfl)]
    asked = question()
    boxes: frozenset[Any] = frozenset({"boxes"})
    each = [build_teacher(one, boxes, build(tiny_atss())).ask(*asked)().flat_boxes() for one in teachers]
    mean = build_teacher(teachers, boxes, build(tiny_atss())).ask(*asked)()
    torch.testing.assert_close(mean.flat_boxes(), (each[0] + each[1]) / 2)
    assert mean.bbox_pred is None
    with pytest.raises(UserError, match=r"channels of the box output(.|\n)*\[4(.|\n)*\[68"):
        build_teacher(teachers, frozenset({"bbox_pred"}), build(tiny_atss()))
    with pytest.raises(UserError, match=r"further outputs(.|\n)*centerness(.|\n)*\[\]"):
        build_teacher(teachers, LOGITS | {"extra"}, build(tiny_atss()))


def test_each_has_its_own_classes(tmp_path: Path) -> None:
    names = ["cat", "dog", "pig"]
    more = ["dog", "bird", "kitty", "pig"]
    cfg = tiny_teacher(bbox_head__num_classes=4)
    first = save_teacher(tmp_path / "a.pth", tiny_teacher(), dataset_meta={"classes": names})
    second = save_teacher(tmp_path / "b.pth", cfg, dataset_meta={"classes": more})
    entries = [entry(first), entry(second, cfg, class_map={"cat": "kitty"})]
    model = student(entries)
    assert [member.awaits_classes for member in model.teacher.members] == [False, True]
    model.check_class_names({"classes": names})
    assert not any(member.awaits_classes for member in model.teacher.members)
    assert [member.class_index for member in model.teacher.members] == [None, [2, 0, 3]]
    losses_of(model, batch())
    with pytest.raises(UserError, match="lacks some"):
        student([entry(first), entry(second, cfg)]).check_class_names({"classes": names})
    model = student(entries)
    with pytest.raises(UserError, match="the data set has no class names"):
        model.check_class_names({})


def test_each_has_its_own_cache(paths: list[str], tmp_path: Path) -> None:
    asked = question()
    for index, sample in enumerate(asked[1]):
        (tmp_path / f"{index}.jpg").touch()
        flip = {"flip": False, "flip_direction": None}
        sample.set_metainfo({"img_path": str(tmp_path / f"{index}.jpg"), **flip})
    cache = {"dir": str(tmp_path / "cache"), "dtype": "fp32", "top": 5}
    model = student([entry(paths[0], cache=cache), entry(paths[1])])
    cached, live = single_teachers(model.teacher)
    assert isinstance(cached, CachedTeacher)
    assert cached_teachers(model) == [cached]
    cached.for_pipeline("LoadImageFromFile()")
    first, again = model.teacher.ask(*asked)(), model.teacher.ask(*asked)()
    assert (cached.computed, cached.read) == (2, 2)
    assert first.known_N is not None
    assert first.known_N.sum() == 10
    assert torch.equal(first.flat_cls_logits(), again.flat_cls_logits())
    known, alone = first.known_N, live.ask(*asked)()
    both = (cached.inner.ask(*asked)().flat_cls_logits() + alone.flat_cls_logits()) / 2
    torch.testing.assert_close(first.flat_cls_logits()[known], both[known])


def test_the_inside_of_several_heads_is_refused(paths: list[str]) -> None:
    with pytest.raises(UserError, match="need a single teacher"):
        student(
            [entry(path) for path in paths],
            distill={"cross": {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": CLS}}},
        )
    teacher = student([entry(path) for path in paths]).teacher
    with pytest.raises(UserError, match="AveragedTeacher has no layers"):
        teacher.through(lambda model, x: x, torch.zeros(1))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([], "empty list"),
        ([{"ema": {}}, {"ema": {}}], "one EMA teacher, found 2"),
        ([{"checkpoint": "a.pth"}], r"teacher\[0\]: `teacher` has no config"),
        ([["a"]], r"teacher\[0\]: teacher\[0\]: "),
    ],
)
def test_wrong_lists(teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        student(teacher)


def test_tools_that_need_one_teacher_say_so() -> None:
    with pytest.raises(UserError, match="a list of 2"):
        teacher_model_and_checkpoint([{}, {}])  # type: ignore[arg-type]


def test_facts_of_all(paths: list[str]) -> None:
    facts = student([entry(path) for path in paths]).teacher.facts
    assert facts["checkpoint"] == paths[0]
    assert [each["checkpoint"] for each in facts["teachers"]] == paths
    named = student(
        {"a": entry(paths[0]), "b": entry(paths[1])},
        distill={"cls": {**CLS, "teacher": "b"}, "neck": {"type": "PKDLoss", "teacher": "a"}},
    ).teacher.facts
    assert named["checkpoint"] == paths[0]
    assert [named["teachers"][name]["checkpoint"] for name in "ab"] == paths


def test_inherit_takes_the_first_ones_weights(tmp_path: Path) -> None:
    paths = [save_teacher(tmp_path / f"{seed}.pth", tiny_atss(), seed) for seed in (1, 2)]
    model = student([entry(path, tiny_atss()) for path in paths], inherit=["neck"])
    expected = torch.load(paths[0])["state_dict"]["neck.lateral_convs.0.conv.weight"]
    assert torch.equal(model.neck.lateral_convs[0].conv.weight, expected)


def test_each_loss_learns_from_the_teacher_that_it_names(paths: list[str]) -> None:
    by_name = {"big": entry(paths[0]), "other": entry(paths[1])}
    neck = {"type": "PKDLoss"}
    distill = {"cls": {**CLS, "teacher": "other"}, "neck": {**neck, "teacher": "big"}}
    model = student(by_name, distill=distill)
    assert isinstance(model.teacher, NamedTeachers)
    ours = losses_of(model, batch())
    big = losses_of(student(by_name["big"], distill={"cls": CLS, "neck": neck}), batch())
    other = losses_of(student(by_name["other"], distill={"cls": CLS, "neck": neck}), batch())
    assert torch.equal(ours["loss_kd_neck"], big["loss_kd_neck"])
    assert torch.equal(ours["loss_kd_cls"], other["loss_kd_cls"])
    assert not torch.equal(big["loss_kd_cls"], other["loss_kd_cls"])
    assert all(torch.equal(a, b) for a, b in zip(ours["loss_cls"], big["loss_cls"], strict=True))
    assert list(ours)[-2:] == ["loss_kd_cls", "loss_kd_neck"], "in the order of the config"
    # Each computes what its own losses read.
    assert model.teacher.teachers["big"].needs == {"feats"}
    assert model.teacher.teachers["other"].needs == {"cls_logits"}
    assert copy.deepcopy(model).teacher is model.teacher
    model.to("meta")
    assert all(p.device.type == "meta" for t in single_teachers(model.teacher) for p in t.model.parameters())


def test_a_named_teacher_may_be_crossed_or_an_average(paths: list[str]) -> None:
    teacher = {"mean": [entry(path) for path in paths], "deep": entry(paths[0])}
    distill = {
        "cls": {**CLS, "teacher": "mean"},
        "cross": {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": CLS}, "teacher": "deep"},
    }
    losses = losses_of(student(teacher, distill=distill), batch())
    assert losses["loss_kd_cross"] > 0
    assert losses["loss_kd_cls"] > 0
    assert len(teacher_entries(teacher)) == 3


def test_a_teacher_whose_losses_rest_is_not_asked(paths: list[str]) -> None:
    distill = {"cls": {**CLS, "teacher": "b"}, "neck": {"type": "PKDLoss", "teacher": "a"}}
    model = student({"a": entry(paths[0]), "b": entry(paths[1])}, distill=distill)
    model.terms["neck"].loss_weight = 0
    a, b = model.teacher.teachers.values()
    assert asked_by(model.teacher, ["cls"]) == [(b, ["cls"])]
    a.ask = None
    losses = losses_of(model, batch())
    assert losses["loss_kd_neck"] == 0
    assert losses["loss_kd_cls"] > 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((None, "b"), r"distill.cls does not name its teacher(.|\n)*one of: a, b(.|\n)*found:    none"),
        (("a", "c"), r"distill.neck does not name its teacher(.|\n)*one of: a, b(.|\n)*found:    'c'"),
        (("a", ["b"]), r"distill.neck does not name its teacher"),
        (("a", "a"), r"No loss uses teacher.b"),
    ],
)
def test_wrong_names(names: tuple[Any, Any], message: str) -> None:
    distill = {
        name: {"type": kind} if asked is None else {"type": kind, "teacher": asked}
        for (name, kind), asked in zip({"cls": "DistillationLoss", "neck": "PKDLoss"}.items(), names)
    }
    with pytest.raises(UserError, match=message):
        student({"a": entry(None), "b": entry(None)}, distill=distill)


def test_an_error_names_the_teacher() -> None:
    with pytest.raises(UserError, match=r"^teacher.a: (.|\n)*has no option prec"):
        student({"a": entry(None, prec=1)}, distill={"cls": {**CLS, "teacher": "a"}})
    two = {name: {"ema": {}} for name in "ab"}
    distill = {"cls": {**CLS, "teacher": "a"}, "more": {**CLS, "teacher": "b"}}
    with pytest.raises(UserError, match="one EMA teacher, found 2"):
        student(two, distill=distill)
    with pytest.raises(UserError, match="has no losses"):
        student({"a": entry(None)}, distill={})
    with pytest.raises(UserError, match="not a distillation loss"):
        student({"a": entry(None)}, distill={"cls": "DistillationLoss"})
    with pytest.raises(UserError, match="has no option teacher"):
        student(entry(None), distill={"cls": {**CLS, "teacher": "a"}})
