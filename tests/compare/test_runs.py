from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mmengine.config import Config

from mmkd.compare import runs as module
from mmkd.compare.plan import Plan
from mmkd.compare.records import EVALUATION, PREDICTIONS, read_record
from mmkd.compare.runs import Runs
from mmkd.errors import UserError

from ..conftest import only_soak
from .fabricated import FAILURE, FakeTools, cache_configs, plan

KD = {"kd": "configs/bccd/kd.py"}


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    fake = FakeTools()
    cache_configs(monkeypatch)
    monkeypatch.setattr(module, "call", fake)
    monkeypatch.setattr("tests.compare.fabricated.write_predictions", lambda cfg, path, missed: path.touch())
    return fake


def small(**content: Any) -> Plan:
    return plan(**{"variants": KD, **content})


@only_soak
def test_every_run_is_made_once(tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(small(), tmp_path)
    records = runs.make()
    assert tools.calls == [
        ("test", "teacher", -1),
        *((tool, name, seed) for seed in (0, 1) for name in ("student", "kd") for tool in ("train", "test")),
    ]
    assert all(record.finished for record in records)
    assert (records[1].member, records[1].seed) == ("student", 0)
    assert records[1].checkpoint == str(tmp_path / "student/seed_0/epoch_3.pth")
    assert records[1].metrics["coco/bbox_mAP"] == 0.4
    command = records[2].command or ""
    assert command.startswith("python tools/train.py configs/bccd/kd.py --work-dir ")
    assert command.endswith("randomness.seed=0")
    assert "[2/5] student, seed 0\n    mAP 0.400, AP50 0.600" in capsys.readouterr().out

    before = len(tools.calls)
    assert Runs(small(), tmp_path).make() == records
    assert len(tools.calls) == before, "what is finished is skipped"
    assert "5 of 5 runs are finished already" in capsys.readouterr().out

    Runs(small(seeds=[0, 1, 4]), tmp_path).make()
    assert {seed for _, _, seed in tools.calls[before:]} == {4}, "a further seed trains itself alone"

    before = len(tools.calls)
    Runs(small(evaluate="val"), tmp_path).make()
    assert not tools.calls[before:], "BCCD's two splits are the same images"
    (tmp_path / "kd/seed_1" / EVALUATION / PREDICTIONS).unlink()
    Runs(small(), tmp_path).make()
    assert tools.calls[before:] == [("test", "kd", 1)], "an evaluation that is lost is made again"


def test_a_changed_config_is_refused(tools: FakeTools, tmp_path: Path) -> None:
    Runs(small(seeds=[0]), tmp_path).make()
    changed = Runs(small(seeds=[0], **{"cfg-options": {"train_dataloader.num_workers": 0}}), tmp_path)
    with pytest.raises(UserError, match="config of some runs has changed") as caught:
        changed.make()
    assert "--rerun student kd" in str(caught.value)
    before = len(tools.calls)
    changed.make(only="teacher")  # for a probe, which does not need the others
    assert len(tools.calls) == before
    changed.make(rerun=["student", "kd"])
    assert len(tools.calls[before:]) == 4


def test_failed_run_does_not_stop_the_others(
    tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.failing["student", 0] = FAILURE
    records = Runs(small(seeds=[0]), tmp_path).make()
    assert [record.finished for record in records] == [True, False, True]
    assert "failed: The loss is not finite." in capsys.readouterr().out
    tools.failing.clear()
    before = len(tools.calls)
    assert all(record.finished for record in Runs(small(seeds=[0]), tmp_path).make())
    assert tools.calls[before:] == [("train", "student", 0), ("test", "student", 0)]


def test_interruption_is_gone_on_from(tools: FakeTools, tmp_path: Path) -> None:
    tools.failing["kd", 0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Runs(small(seeds=[0]), tmp_path).make()
    record = read_record(tmp_path / "kd/seed_0")
    assert record is not None
    assert not record.trained
    tools.failing.clear()
    assert all(record.finished for record in Runs(small(seeds=[0]), tmp_path).make())
    assert tools.calls.count(("train", "student", 0)) == 1


def test_stopped_run_is_not_taken_for_finished(tools: FakeTools, tmp_path: Path) -> None:
    def stopped(tool: str, arguments: Any, log: Path, *more: Any) -> None:
        tools(tool, arguments, log, *more)
        if tool == "train":
            (log.parent / "last_checkpoint").write_text(str(log.parent / "interrupted.pth"))

    module.call = stopped  # type: ignore[assignment]
    records = Runs(small(seeds=[0]), tmp_path).make()
    assert "it was interrupted" in (records[1].error or "")
    module.call = tools  # type: ignore[assignment]


def test_trained_teacher_teaches_the_variants(tools: FakeTools, tmp_path: Path) -> None:
    made = small(teacher="configs/bccd/teacher.py", seeds=[3])
    records = Runs(made, tmp_path).make()
    assert tools.calls[0] == ("train", "teacher", -1)
    assert records[0].seed == 3
    assert f"model.teacher.checkpoint={tmp_path}/teacher/epoch_3.pth" in (records[2].command or "")
    assert "model.teacher.checkpoint" not in (records[1].command or "")
    assert len(Runs(made, tmp_path).make()) == 3
    assert len(tools.calls) == 6


def test_another_checkpoint_of_the_teacher_is_evaluated(tools: FakeTools, tmp_path: Path) -> None:
    Runs(small(seeds=[0]), tmp_path).make()
    before = len(tools.calls)
    named = {"config": "configs/bccd/teacher.py", "checkpoint": "other.pth"}
    records = Runs(small(seeds=[0], teacher=named, teachers="differ"), tmp_path).make()
    assert tools.calls[before:] == [("test", "teacher", -1)]
    assert records[0].checkpoint == "other.pth"


def test_without_its_teacher_no_variant_is_trained(tools: FakeTools, tmp_path: Path) -> None:
    tools.failing["teacher", -1] = FAILURE
    records = Runs(small(teacher="configs/bccd/teacher.py", seeds=[0]), tmp_path).make()
    assert [record.error for record in records] == [str(FAILURE), None, "its teacher was not trained"]


def test_evaluation_config_is_one_that_the_tool_reads(tools: FakeTools, tmp_path: Path) -> None:
    Runs(small(seeds=[0]), tmp_path).make()
    teacher = Config.fromfile(tmp_path / "teacher/evaluation_config.py")
    assert teacher.model.neck.in_channels == Config.fromfile("configs/bccd/teacher.py").model.neck.in_channels
    assert teacher.test_evaluator.classwise
    assert Config.fromfile(tmp_path / "kd/seed_0/evaluation_config.py").model.type == "SingleStageDetector"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    runs = Runs(small(), tmp_path)
    with FileLock(str(tmp_path / ".lock")), pytest.raises(UserError, match="another comparison is running"):
        runs.make()


def test_broken_record_is_an_error(tools: FakeTools, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/run.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="not a run record"):
        Runs(small(), tmp_path).make()
