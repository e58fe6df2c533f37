"""Projects are made as `mmkd-init` makes them; that of the compact pair takes a step of each training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmkd.compare.plan import read_plan
from mmkd.errors import UserError
from mmkd.project import make_project, use_teacher
from mmkd.project.fit import Machine
from mmkd.registry import MODELS
from mmkd.sweeps.sweep_file import read_sweep

from ..data.test_voc import voc
from .test_dataset import few

CPU = Machine("cpu", "no GPU, 2 CPU cores", 2)
GPU = Machine("cuda", "a GPU, 24 GiB", 16, 24.0)


def test_the_compact_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(tmp_path / "data", 6)
    monkeypatch.chdir(tmp_path)
    made = make_project("mine", "data", machine=CPU)
    files = ["README.md", "compare.yaml", "kd.py", "student.py", "sweep.yaml", "teacher.py"]
    assert sorted(path.name for path in Path("mine").iterdir()) == files
    assert not list(tmp_path.glob(".mine*"))

    teacher, student, kd = (Config.fromfile(f"mine/{name}.py") for name in ("teacher", "student", "kd"))
    assert teacher.model.backbone.base_channels == 2 * student.model.backbone.base_channels
    assert teacher.model.bbox_head.num_classes == kd.model.bbox_head.num_classes == 3
    assert teacher.train_dataloader.dataset.metainfo.classes == ("Platelets", "RBC", "WBC")
    assert teacher.train_dataloader.dataset.pipeline[2].scale == (320, 320)
    assert student.train_cfg.max_epochs == student.param_scheduler[1].T_max == made.fit.student_epochs.value
    assert set(kd.model.distill) == {"cls", "box", "quality", "neck"}
    assert kd.model.inherit == ["neck", "bbox_head"]
    assert kd.model.teacher.checkpoint == f"mine/work_dirs/teacher/epoch_{made.fit.teacher_epochs.value}.pth"
    assert {cfg.work_dir for cfg in (teacher, student, kd)} == {
        f"mine/work_dirs/{name}" for name in ("teacher", "student", "kd")
    }
    kd.model.teacher.checkpoint = None
    kd.model.pop("inherit")
    model = MODELS.build(kd.model)
    assert torch.is_tensor(next(model.parameters()))

    plan = read_plan("mine/compare.yaml")
    assert [member.name for member in plan.members] == ["teacher", "student", "kd"]
    assert read_sweep("mine/sweep.yaml").config == "mine/kd.py"
    text = "\n".join(made.lines())
    assert "mmkd-train mine/kd.py" in text
    assert "mmkd-train mine/kd.py" in Path("mine/README.md").read_text()
    assert "no GPU, 2 CPU cores" in text
    assert f"train     6 images, {made.data.splits['train'].box_count} boxes" in text


def test_a_validation_split_that_was_made_is_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(tmp_path / "data", 10, "train")
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()  # empty: it may be there
    make_project("mine", "data", machine=CPU)
    cfg = Config.fromfile("mine/teacher.py")
    assert cfg.val_dataloader.dataset.ann_file == cfg.val_evaluator.ann_file == "mine/annotations/val.json"
    assert len(json.loads(Path(cfg.val_evaluator.ann_file).read_text())["images"]) == 2
    assert "do not use it to choose a recipe" in Path("mine/compare.yaml").read_text()


def test_a_stock_pair_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    made = make_project("mine", "data", machine=GPU)
    teacher, student = (Config.fromfile(f"mine/{name}.py") for name in ("teacher", "student"))
    assert teacher.load_from.endswith("atss_r50_fpn_1x_coco_20200209-985f7bd0.pth")
    assert student.load_from is None
    assert (teacher.model.backbone.depth, student.model.backbone.depth) == (50, 18)
    assert student.model.bbox_head.num_classes == 2
    # SGD's 0.01 is for 16 images.
    assert teacher.optim_wrapper.optimizer.lr == pytest.approx(0.01 * made.fit.batch.value / 16, rel=0.05)
    assert "epoch_" in Config.fromfile("mine/kd.py").model.teacher.checkpoint


def test_named_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(tmp_path / "data", 4)
    monkeypatch.chdir(tmp_path)
    make_project(
        "mine",
        "data",
        student="mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
        teacher="mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py",
        machine=CPU,
    )
    student, kd = (Config.fromfile(f"mine/{name}.py") for name in ("student", "kd"))
    assert student.model.bbox_head.num_classes == 3
    assert student.model.data_preprocessor.batch_augments is None
    # What its mosaic needs is not there.
    assert [hook.type for hook in student.custom_hooks] == ["MetricsFileHook"]
    assert student.train_dataloader.dataset.type == "CocoDataset"
    assert (kd.model.type, kd.model.student) == ("KDDetector", "RTMDet")
    assert kd.model.teacher.config == "mine/teacher.py"
    assert "cls" in kd.model.distill


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty(?s:.)*notes\.txt"):
        make_project(folder, tmp_path, machine=CPU)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    few(tmp_path / "data", 4)
    for options, says in (
        (
            {"student": "mmdet::atss/atss_r50_fpn_1x_coko.py"},
            r"did you mean mmdet::atss/atss_r50_fpn_1x_coco\.py",
        ),
        ({"teacher": "mmdet::_base_/schedules/schedule_1x.py"}, "has no detector"),
    ):
        with pytest.raises(UserError, match=says):
            make_project(tmp_path / "mine", tmp_path / "data", machine=CPU, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("checkpoint", ['work_dirs/it\'s: "best".pth', "https://host/teacher.pth"])
def test_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    few(tmp_path / "data", 4)
    monkeypatch.chdir(tmp_path)
    folder = make_project(f"mine {'and ours ' * 20}", "data", machine=CPU).folder
    plan, kd = folder / "compare.yaml", folder / "kd.py"
    plan.write_text("# my note\n" + plan.read_text())
    before = read_plan(plan), Config.fromfile(kd)
    use_teacher(folder, checkpoint)
    use_teacher(folder, checkpoint)
    teacher, *others = before[0].members
    assert read_plan(plan).members == (replace(teacher, checkpoint=checkpoint), *others)
    assert plan.read_text().startswith("# my note\n")
    before[1].model.teacher.checkpoint = checkpoint
    assert Config.fromfile(kd).to_dict() == before[1].to_dict()
