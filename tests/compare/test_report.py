from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mmkd.compare import report as module
from mmkd.compare import runs as runs_module
from mmkd.compare.measure import Cost
from mmkd.compare.report import Report
from mmkd.compare.runs import Runs

from .fabricated import FAILURE, FakeTools, cache_configs, plan


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_configs(monkeypatch)
    monkeypatch.setattr(module, "IMAGES_SHOWN", 1)

    def measure(members: Any) -> dict[str, Cost]:
        return {name: Cost(1_200_000, 7.6e8, (256, 320), 0.02) for name in members}

    monkeypatch.setattr(module, "measure", measure)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white picture in place of each."""
    for name in ("draw_boxes", "draw_classes", "draw_curves", "draw_losses", "draw_split"):
        monkeypatch.setattr(module, name, lambda *given: Image.new("RGB", (9, 9)).save(given[-1]))


def report(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tools: FakeTools, **content: Any
) -> tuple[str, Any]:
    """The page and its JSON."""
    monkeypatch.setattr(runs_module, "call", tools)
    runs = Runs(plan(**content), folder)
    runs.make()
    page = Report(runs, folder / "report").write()
    return page.read_text(encoding="utf-8"), json.loads((folder / "report/results.json").read_text())


def words(page: str) -> str:
    """What a person reads."""
    text = re.sub(r"<(style|title)>.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def value(member: str, seed: int) -> float:
    return {"student": 0.4, "boxes": 0.43, "inherit": 0.47}[member] + 0.01 * seed * (member != "student")


@pytest.mark.slow
def test_whole_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, figures = report(monkeypatch, tmp_path, FakeTools(value))
    text = words(page)
    assert "mAP of inherit 0.475 ± 0.007 student alone: 0.400 ± 0.000" in text
    assert "+0.075 better in 2 of 2 seeds; 95 % interval +0.011 to +0.139" in text
    assert "of the teacher–student gap 50 %" in text
    assert "5 epochs, batch size 4 for each student · seeds 0, 1" in text
    assert "training step cost 1.20 ×" in text
    assert re.search(r"of the training time to the student's mAP \d+ % on the validation split", text)
    assert "AP small" not in text, "no image has such objects"
    assert not re.search(r"\b(None|nan)\b", text)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page needs no other file"
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", page))
    assert figures["summary"][3]["recipe"] == "inherit"

    folder = tmp_path / "report"
    pictures = {path.name for path in folder.glob("*.png")}
    assert {"curves.png", "classes.png", "losses_student.png", "losses_boxes.png"} <= pictures
    assert {"gain_1_ground_truth.png", "gain_1_inherit.png", "loss_1_student.png"} <= pictures
    assert len(pictures) + 1 == len(re.findall("<img", page)) == 2 + 3 + 2 * 4 + 1
    assert page.count("data:image/gif;base64,") == 1
    with Image.open(folder / "side_by_side.gif") as gif:
        assert gif.n_frames == 8  # type: ignore[attr-defined]
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300, name
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["recipe"].tolist() == ["teacher", "student", "boxes", "inherit"]
    assert summary["metrics mAP mean"].round(3).tolist() == [0.55, 0.4, 0.435, 0.475]
    assert len(pd.read_csv(folder / "runs.csv")) == 7
    assert len(pd.read_csv(folder / "curves.csv")) == 3 * 2 * 3
    losses = pd.read_csv(folder / "losses.csv").groupby(["member", "seed", "step"])["share"].sum()
    assert losses.round(6).eq(1).all()


@pytest.mark.usefixtures("quick")
def test_one_seed_a_failed_run_and_a_weak_teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = FakeTools(lambda member, seed: 0.56, {("inherit", 0): FAILURE})
    page, _ = report(monkeypatch, tmp_path, tools, seeds=[0])
    text = words(page)
    assert "Only one seed: no spread and no confidence interval" in text
    assert "inherit, seed 0, has no results: The loss is not finite." in text
    assert "The teacher is not at least 0.005 mAP better than the student alone (−0.010)" in text
    assert "mAP of boxes 0.560 student alone: 0.560" in text
    assert "of the teacher–student gap" not in text
    assert not re.search(r"\b(None|nan)\b", text)


@pytest.mark.usefixtures("quick")
def test_no_curve_of_one_validation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "curve", lambda rows: [(5, 0.4)])
    (tmp_path / "report").mkdir()
    (tmp_path / "report/curves.png").touch()
    page, _ = report(monkeypatch, tmp_path, FakeTools(value), seeds=[0])
    assert "Learning curves" not in page
    assert not (tmp_path / "report/curves.png").exists(), "of an earlier report"
    assert len(pd.read_csv(tmp_path / "report/curves.csv")) == 3


@pytest.mark.usefixtures("quick")
def test_only_the_teacher_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = FakeTools(value, {(name, 0): FAILURE for name in ("student", "boxes", "inherit")})
    page, _ = report(monkeypatch, tmp_path, tools, seeds=[0])
    assert "no distilled student yet" in page
    assert not re.search(r"\b(None|nan)\b", words(page))


@pytest.mark.usefixtures("quick")
def test_split_without_objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = FakeTools(value)
    tools.metrics = lambda value: {"coco/bbox_mAP": -1.0, "coco/RBC_precision": float("nan")}
    page, figures = report(
        monkeypatch, tmp_path, tools, seeds=[0], variants={"boxes": "configs/bccd/kd_boxes.py"}
    )
    assert "the test split has no annotated objects" in words(page)
    assert all(row["map_mean"] is None for row in figures["summary"])


@pytest.mark.usefixtures("quick")
def test_names_are_text_and_no_markup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variants = {"boxes": "configs/bccd/kd_boxes.py"}
    page, _ = report(
        monkeypatch,
        tmp_path,
        FakeTools(value),
        seeds=[0],
        variants=variants,
        dataset="<script>alert(1)</script>",
    )
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.usefixtures("quick")
def test_difference_of_budget_and_teacher_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"train_cfg.max_epochs": 9, "model.teacher.checkpoint": "data/bccd/../bccd/other.pth"}
    variants = {"boxes": {"config": "configs/bccd/kd_boxes.py", "cfg-options": options}}
    teacher = {
        "config": "configs/bccd/teacher.py",
        "checkpoint": "data/bccd/teacher_atss_r18_narrow.pth",
    }
    page, _ = report(
        monkeypatch,
        tmp_path,
        FakeTools(value),
        seeds=[0],
        variants=variants,
        teacher=teacher,
        budget="differs",
        teachers="differ",
    )
    text = words(page)
    assert "boxes differs from the student in more than distillation: train_cfg.max_epochs: 5 → 9" in text
    assert "boxes is distilled from data/bccd/../bccd/other.pth, not from the teacher in the table." in text
