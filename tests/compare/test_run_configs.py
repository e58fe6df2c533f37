from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.cli.train import config_of, parse_args
from mmkd.compare.plan import Member
from mmkd.compare.run_configs import (
    budget_differences,
    check_budget,
    check_teachers,
    evaluation_config,
    fingerprint,
    option_text,
    options_of,
    training_config,
)
from mmkd.errors import UserError

from .fabricated import plan

STUDENT = Member("student", "student", "configs/bccd/student.py")


def configs(made: Any) -> dict[str, Config]:
    return {m.name: training_config(m, options_of(made, m, 0)) for m in made.members}


def test_the_command_trains_the_config() -> None:
    member = Member("kd", "distilled", "configs/bccd/kd.py", {"model.distill.cls.region": "all", "lr": 0.003})
    options = options_of(plan(**{"cfg-options": {"train_cfg.max_epochs": 2}}), member, 7)
    words = [option_text(key, value) for key, value in options.items()]
    args = parse_args([member.config, "--cfg-options", *words])
    trained, ours = config_of(args), training_config(member, options)
    for key in ("model", "optim_wrapper", "train_cfg", "randomness", "train_dataloader"):
        assert trained[key] == ours[key], key
    assert ours.optim_wrapper.optimizer.lr == 0.003
    assert ours.randomness.seed == 7


@pytest.mark.parametrize("value", ["all", "1", "a b", "1e-3", [1, 2], (0.5, 1), True, None, 1e-5, "[x"])
def test_options_come_back_from_their_text(value: Any) -> None:
    from mmkd.sweeps.overrides import KeepingDictAction

    text = option_text("key", value).removeprefix("key=")
    assert KeepingDictAction._parse_iterable(text) == value


def test_trained_teacher_goes_to_the_variants_alone() -> None:
    made = plan()
    given = {m.name: options_of(made, m, 0, "new.pth") for m in made.members}
    assert [name for name, options in given.items() if "model.teacher.checkpoint" in options] == [
        "boxes",
        "inherit",
    ]


def test_fingerprint_knows_config_and_weights(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pth"
    weights.write_bytes(b"one")
    member = Member("kd", "distilled", "configs/bccd/kd.py", {"model.teacher.checkpoint": str(weights)})
    first = fingerprint(training_config(member, member.options))
    assert first == fingerprint(training_config(member, member.options))
    assert first != fingerprint(training_config(member, {**member.options, "randomness.seed": 1}))
    weights.write_bytes(b"two")
    assert first != fingerprint(training_config(member, member.options))


def test_variants_of_the_demo_have_its_budget() -> None:
    made = plan()
    assert check_budget(made, configs(made)) == {}


def test_another_budget_is_refused_unless_it_is_said() -> None:
    kd = "configs/bccd/kd.py"
    made = plan(variants={"kd": kd})
    found = configs(made)
    for option, line in (
        ({"train_cfg.max_epochs": 9}, "train_cfg.max_epochs: 5 → 9"),
        ({"train_dataloader.batch_size": 2}, "train_dataloader.batch_size: 4 → 2"),
        ({"optim_wrapper.optimizer.lr": 1}, "optim_wrapper.optimizer.lr: 0.00166 → 1"),
        ({"model.backbone.base_channels": 8}, "model.backbone.base_channels: 16 → 8"),
        ({"param_scheduler.0.end": 3}, "param_scheduler.0.end: 20 → 3"),
    ):
        changed = copy.deepcopy(found["kd"])
        changed.merge_from_dict(option)
        assert budget_differences(found["student"], changed) == [line]
    with pytest.raises(UserError, match="model, data or budget differs") as caught:
        check_budget(made, {**found, "kd": changed})
    assert line in str(caught.value)
    said = dataclasses.replace(made, same_budget=False)
    assert check_budget(said, {**found, "kd": changed}) == {"kd": [line]}


def test_another_teacher_is_refused_unless_it_is_said() -> None:
    own = {"config": "configs/bccd/teacher.py", "checkpoint": "data/bccd/teacher_atss_r18_narrow.pth"}
    other = {"config": "configs/bccd/kd.py", "cfg-options": {"model.teacher.checkpoint": "other.pth"}}
    made = plan(teacher=own, variants={"own": "configs/bccd/kd.py", "other": other})
    with pytest.raises(UserError, match="^other: teacher differs from the plan's") as caught:
        check_teachers(made, configs(made))
    assert "other is distilled from other.pth" in str(caught.value)
    assert "model.teacher.checkpoint: data/bccd/teacher_atss_r18_narrow.pth" in str(caught.value)
    said = dataclasses.replace(made, same_teacher=False)
    assert check_teachers(said, configs(said)) == {"other": ["other.pth"]}
    trained = plan(teacher=own["config"], variants={"kd": "configs/bccd/kd.py"})
    assert check_teachers(trained, configs(trained)) == {}, "the trained one is given to each variant"
    same = {**own, "checkpoint": "data/../data/bccd/teacher_atss_r18_narrow.pth"}
    made = plan(teacher=same, variants={"kd": "configs/bccd/kd.py"})
    assert check_teachers(made, configs(made)) == {}


def test_another_teacher_than_the_one_that_is_trained_is_refused() -> None:
    pair = [{"config": "configs/bccd/teacher.py", "checkpoint": name} for name in ("a.pth", "b.pth")]
    for options, named in [
        ({"model.teacher.checkpoint": "other.pth"}, ["other.pth"]),
        ({"model.teacher": pair}, ["a.pth", "b.pth"]),
    ]:
        variants = {
            "own": "configs/bccd/kd.py",
            "other": {"config": "configs/bccd/kd.py", "cfg-options": options},
        }
        made = plan(teacher="configs/bccd/teacher.py", variants=variants)
        with pytest.raises(UserError, match="^other: teacher differs from the plan's") as caught:
            check_teachers(made, configs(made))
        assert "the one that the plan trains from configs/bccd/teacher.py" in str(caught.value)
        assert f"other is distilled from {', '.join(named)}" in str(caught.value)
        said = dataclasses.replace(made, same_teacher=False)
        assert check_teachers(said, configs(said)) == {"other": named}


def test_options_of_the_plan_are_no_difference() -> None:
    made = plan(**{"cfg-options": {"train_cfg.max_epochs": 2, "train_dataloader.batch_size": 2}})
    found = configs(made)
    assert found["student"].train_cfg.max_epochs == found["boxes"].train_cfg.max_epochs == 2
    assert budget_differences(found["student"], found["boxes"]) == []


def test_evaluation_is_of_the_plain_model_on_the_students_data() -> None:
    student, kd = (Config.fromfile(f"configs/bccd/{name}.py") for name in ("student", "kd"))
    student.val_dataloader.batch_size = 3
    student.data_preprocessor = {"type": "DetDataPreprocessor"}
    student.test_dataloader.batch_size = 4
    out = evaluation_config(kd, student, "val")
    assert out.model.type == "SingleStageDetector"
    assert "teacher" not in out.model
    assert out.test_dataloader.batch_size == 3
    assert out.test_evaluator.classwise
    assert "data_preprocessor" not in out
    assert not out.custom_hooks
    assert evaluation_config(kd, student, "test").test_dataloader.batch_size == 4
    assert "classwise" not in student.test_evaluator, "the student's own config is left alone"


def test_what_cannot_be_evaluated() -> None:
    student = Config.fromfile("configs/bccd/student.py")
    student.test_evaluator.format_only = True
    with pytest.raises(UserError, match="only writes files and computes no metrics"):
        evaluation_config(student, student, "test")
    student.test_evaluator = None
    with pytest.raises(UserError, match="no test_evaluator"):
        evaluation_config(student, student, "test")


@pytest.mark.parametrize("options", [{"optim_wrapper": {"type": "x"}}, {"train_cfg.max_epochs.a.b": 1}])
def test_bad_options_name_the_member(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="student"):
        training_config(STUDENT, options)
