from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmkd.compare.plan import Plan, plan_from, plan_of_configs, read_plan
from mmkd.compare.run_configs import check_budget, check_teachers, training_config
from mmkd.errors import UserError
from mmkd.losses import build_losses, split_shares
from mmkd.outputs import split_places
from mmkd.teachers import distills

from ..conftest import ROOT
from .fabricated import plan

STUDENT, KD, BOXES = (f"configs/bccd/{name}.py" for name in ("student", "kd", "kd_boxes"))


def test_shipped_plan() -> None:
    found = read_plan(ROOT / "configs/compare/bccd.yaml")
    assert [member.name for member in found.members] == [
        *("teacher", "student", "kd", "kd_boxes", "kd_inherit", "kd_features")
    ]
    assert found.seeds == (0, 1, 2)
    assert found.evaluate == "test"
    assert found.same_budget
    assert [variant.name for variant in found.variants if variant.recommended] == ["kd_features"]
    assert found.teacher is not None
    assert Path(found.teacher.checkpoint or "").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_plan_names_configs_and_losses_that_there_are(path: Path) -> None:
    found = read_plan(path)
    assert found.name == path.stem
    configs = {m.name: training_config(m, {**found.options, **m.options}) for m in found.members}
    distilled = [cfg.model for cfg in configs.values() if distills(cfg.model)]
    assert distilled
    for model in distilled:
        assert build_losses(split_shares(split_places(model.distill)[0])[0], "distill")
    check_budget(found, configs)
    check_teachers(found, configs)


def test_values_have_the_meaning_of_cfg_options(tmp_path: Path) -> None:
    text = (
        f"student: {STUDENT}\n"
        "cfg-options: {optim_wrapper.optimizer.lr: 1e-3, a: '1,2', b: true}\n"
        f"variants: {{kd: {{config: {KD}, cfg-options: {{model.distill.cls.loss_weight: 2}}}}}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = read_plan(path)
    assert found.name == found.dataset == "mine"
    assert found.seeds == (0,)
    assert found.options == {"optim_wrapper.optimizer.lr": 1e-3, "a": [1, 2], "b": True}
    assert found.variants[0].options == {"model.distill.cls.loss_weight": 2}


def test_teacher_is_that_of_the_variants() -> None:
    teacher = plan().teacher
    assert teacher is not None
    assert teacher.config == "mmkd::bccd/teacher.py"
    assert teacher.checkpoint == "data/bccd/teacher_atss_r18_narrow.pth"
    assert plan(variants={"same": STUDENT}).teacher is None
    trained = plan(teacher="configs/bccd/teacher.py").teacher
    assert trained is not None
    assert trained.checkpoint is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sead": [1]}, "A plan has no option sead"),
        ({"student": None}, "needs `student`"),
        ({"variants": {}}, "needs `variants`"),
        ({"variants": ["a.py"]}, "`variants` must be a mapping"),
        ({"variants": {"kd": {"confg": KD}}}, "kd has no option confg"),
        ({"variants": {"kd": {"recommended": True}}}, "kd needs a `config`"),
        ({"variants": {"kd": {"config": KD, "recommended": "yes"}}}, "`recommended` must be true or false"),
        ({"variants": {"kd": {"config": KD, "checkpoint": "a.pth"}}}, "kd has no option checkpoint"),
        ({"variants": {"student": KD}}, "reserved variant name: student"),
        ({"variants": {"a/b": KD}}, "folder name"),
        ({"variants": {"kd": 3}}, "kd must be a config"),
        ({"variants": {"kd": "nowhere.py"}}, "Cannot read the config of kd"),
        ({"name": "../up"}, "folder name"),
        ({"seeds": 3}, "`seeds` must be a list"),
        ({"seeds": [0, True]}, "`seeds` must be a list"),
        ({"seeds": []}, "`seeds` must be a list"),
        ({"seeds": [1, 1]}, "duplicates"),
        ({"evaluate": "train"}, "`evaluate` must be one of test, val"),
        ({"budget": False}, "`budget` must be one of same, differs"),
        ({"cfg-options": ["a=1"]}, "mapping of dotted keys"),
        ({"cfg-options": {"randomness.seed": 1}}, "use `seeds"),
        ({"teacher": {"config": STUDENT, "checkpoint": 3}}, "`checkpoint` must be a path"),
    ],
)
def test_mistakes(content: dict[str, Any], message: str) -> None:
    whole = {"student": STUDENT, "variants": {"kd": KD}, **content}
    with pytest.raises(UserError, match=message):
        plan_from(whole, "p")


def test_two_cannot_be_recommended() -> None:
    both = {name: {"config": KD, "recommended": True} for name in ("a", "b")}
    with pytest.raises(UserError, match="one variant can be `recommended`"):
        plan(variants=both)


@pytest.mark.parametrize("text", ["a: [", "- a", "", None])
def test_broken_files_are_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.yaml"):
        read_plan(path)


def test_plan_of_configs() -> None:
    found = plan_of_configs([STUDENT, KD, BOXES], seeds=[3], name=None)
    assert isinstance(found, Plan)
    assert found.name == "kd-kd_boxes"
    assert [member.name for member in found.members] == ["teacher", "student", "kd", "kd_boxes"]
    assert found.seeds == (3,)
    with pytest.raises(UserError, match="Nothing to compare"):
        plan_of_configs([STUDENT])
    with pytest.raises(UserError, match="same name"):
        plan_of_configs([STUDENT, KD, f"./{KD}"])
