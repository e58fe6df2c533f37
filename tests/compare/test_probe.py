from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.compare import runs as module
from mmkd.compare.plan import Plan
from mmkd.compare.probe import VERDICT, Probe
from mmkd.compare.runs import Runs
from mmkd.compare.verdict import LOSES, PAYS, page
from mmkd.errors import UserError

from .fabricated import FAILURE, FakeTools, cache_configs, plan

KD = {"kd": "configs/bccd/kd.py"}
# mAP of the student alone by share, around 0.46 - 0.02 / share.
CURVE = {"0.1": 0.26, "0.2": 0.36, "0.4": 0.41}


class ShortTools(FakeTools):
    """The tools, with figures that depend on the share and differ a little by seed."""

    def __call__(self, tool: str, arguments: Sequence[str], log: Path, *more: Any) -> None:
        share = log.parts[log.parts.index("probe") + 1] if "probe" in log.parts else ""
        self.value = lambda member, seed: (
            CURVE.get(share, 0.9) + 0.002 * (seed % 2) + (0.06 + 0.001 * seed) * (member == "kd")
        )
        super().__call__(tool, arguments, log, *more)
        if tool == "train" and log.parent.parent.name == "kd":
            file = next(log.parent.glob("*/vis_data/scalars.json"))
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                row.update({"kd_cosine_cls": -0.25} if "loss" in row else {})
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ShortTools:
    fake = ShortTools()
    cache_configs(monkeypatch)
    monkeypatch.setattr(module, "call", fake)
    monkeypatch.setattr("tests.compare.fabricated.write_predictions", lambda cfg, path, missed: path.touch())
    return fake


def small(**content: Any) -> Plan:
    return plan(**{"variants": KD, "seeds": [0, 1, 2], **content})


def probe(made: Plan, folder: Path, share: float = 0.4) -> Probe:
    return Probe(Runs(made, folder), share, lambda cfg: (400, 5))


@pytest.mark.slow
def test_short_trainings_and_a_verdict(tools: ShortTools, tmp_path: Path) -> None:
    one = probe(small(), tmp_path)
    found = one.make()
    student = [("student", seed) for seed in (0, 1, 2)]
    both = [(name, seed) for seed in (0, 1, 2) for name in ("student", "kd")]
    assert tools.calls == [
        ("test", "teacher", -1),
        *((tool, *run) for runs in (student, student, both) for run in runs for tool in ("train", "test")),
    ]
    assert json.loads((tmp_path / "probe/0.4" / VERDICT).read_text()) == found
    assert not (tmp_path / "student").exists(), "long runs are elsewhere"
    (kd,) = found["variants"]
    assert kd["difference"]["mean"] == pytest.approx(0.061)
    assert kd["verdict"] == PAYS
    # The teacher has 0.55, the student 0.411 now and 0.441 at the end.
    assert found["student"]["forecast"]["mean"] == pytest.approx(0.441, abs=0.002)
    assert kd["predicted"]["mean"] == pytest.approx(0.061 * (0.55 - 0.441) / (0.55 - 0.411), abs=0.002)
    assert kd["cosines"] == {"cls": [-0.25, -0.25, -0.25]}
    assert any("cls conflicts with the task loss" in reason for reason in kd["reasons"])
    # 400 iterations of 0.5 s, and each evaluation of five validations and one test.
    assert found["hours"]["of_members"]["student"] == pytest.approx(3 * 400 * 0.5 / 3600, rel=0.1)
    assert found["share"] == 0.4
    assert "kd: PAYS" in page(found)

    before = len(tools.calls)
    again = probe(small(), tmp_path).make()
    assert len(tools.calls) == before, "finished runs are kept"
    assert again["variants"] == found["variants"]
    probe(small(), tmp_path).make(rerun=["kd"])
    assert [call for call in tools.calls[before:] if call[0] == "train"] == [
        ("train", "kd", s) for s in (0, 1, 2)
    ]


def test_equal_budgets_train_once(tools: ShortTools, tmp_path: Path) -> None:
    """Of 100 epochs of four iterations, a tenth and a fifth are one iteration per epoch."""
    one = Probe(Runs(small(seeds=[0]), tmp_path), 0.4, lambda cfg: (400, 100))
    found = one.make()
    trained = [name for tool, name, _ in tools.calls if tool == "train"]
    assert trained == ["student", "student", "kd"]
    assert [row["share"] for row in found["student"]["curve"]] == [0.25, 0.5]
    assert found["iterations"] == 200


def test_configs_are_short(tools: ShortTools, tmp_path: Path) -> None:
    probe(small(seeds=[0], **{"cfg-options": {"optim_wrapper.optimizer.lr": 0.5}}), tmp_path, 0.2).make()
    for share, batches in (("0.05", 4), ("0.1", 8), ("0.2", 16)):
        cfg = Config.fromfile(tmp_path / "probe" / share / "configs/student.py")
        assert cfg.train_dataloader.batch_sampler.batches == batches
        assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert not (tmp_path / "probe/0.1/configs/kd.py").exists()


def test_a_teacher_that_the_student_passes(
    tools: ShortTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.CURVE", {share: value + 0.135 for share, value in CURVE.items()})
    (kd,) = probe(small(), tmp_path).make()["variants"]
    assert kd["verdict"] == LOSES
    assert kd["reasons"][0].startswith("the teacher is not better than the fully trained student")
    assert any("not better than the student on Platelets, RBC, WBC" in reason for reason in kd["reasons"])


def test_a_trained_teacher_is_the_plans(tools: ShortTools, tmp_path: Path) -> None:
    found = probe(small(teacher="configs/bccd/teacher.py", seeds=[3]), tmp_path).make()
    assert tools.calls[0] == ("train", "teacher", -1)
    cfg = Config.fromfile(tmp_path / "probe/0.4/configs/kd.py")
    assert cfg.model.teacher.checkpoint == str(tmp_path / "teacher/epoch_3.pth")
    assert found["variants"][0]["verdict"] == "undecided", "one seed"
    tools.failing["teacher", -1] = FAILURE
    with pytest.raises(UserError, match="the teacher has no results: The loss is not finite"):
        probe(small(teacher="configs/bccd/teacher.py", seeds=[3]), tmp_path / "other").make()


@pytest.mark.slow
def test_failures_are_named(tools: ShortTools, tmp_path: Path) -> None:
    tools.failing["kd", 1] = FAILURE
    found = probe(small(), tmp_path).make()
    assert found["failed"] == [f"kd, seed 1: {FAILURE}"]
    assert found["variants"][0]["difference"]["pairs"] == 2
    tools.failing |= {("student", seed): FAILURE for seed in (0, 1, 2)}
    with pytest.raises(UserError, match="no run of the student alone has results: The loss"):
        probe(small(), tmp_path / "other").make()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_share_out_of_range(share: float, tools: ShortTools, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--share is out of range"):
        probe(small(), tmp_path, share)
