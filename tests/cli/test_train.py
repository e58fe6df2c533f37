from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.cli.train import add_teacher, config_of, main, parse_args
from mmkd.errors import UserError

from ..conftest import ROOT

STUDENT = "configs/bccd/student.py"
TEACHER = [
    "--teacher",
    "configs/bccd/teacher.py",
    "--teacher-checkpoint",
    "data/bccd/teacher_atss_r18_narrow.pth",
]


def cfg_of(*argv: str) -> Any:
    return config_of(parse_args(argv))


def test_mmdets_options() -> None:
    cfg = cfg_of(STUDENT, "--amp", "--resume", "--cfg-options", "optim_wrapper.optimizer.lr=0.5")
    assert cfg.optim_wrapper.type in ("AmpOptimWrapper", "BFloat16OptimWrapper")
    assert cfg.resume is True
    assert cfg.load_from is None
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert {"type": "ProgressHook"} in cfg.custom_hooks
    assert cfg.custom_imports.imports == ["mmkd"]

    named = cfg_of(STUDENT, "--resume", "some.pth")
    assert (named.resume, named.load_from) == (True, "some.pth")

    with pytest.raises(UserError, match="base_batch_size"):
        cfg_of(STUDENT, "--auto-scale-lr")
    scaled = cfg_of(STUDENT, "--auto-scale-lr", "--cfg-options", "auto_scale_lr.base_batch_size=8")
    assert scaled.auto_scale_lr.enable is True


WITHOUT_DATA = ["--cfg-options", "train_dataloader=None", "val_dataloader=None"]


def test_any_stock_config_becomes_a_distilled_one() -> None:
    cfg = cfg_of(STUDENT, *TEACHER)
    assert (cfg.model.type, cfg.model.student) == ("KDDetector", "ATSS")
    assert cfg.model.teacher.config == "configs/bccd/teacher.py"
    assert cfg.model.distill.cls.type == "DistillationLoss"

    overridden = cfg_of(STUDENT, *TEACHER, "--cfg-options", "temperature=2.5")
    expected = {"type": "DistillationLoss", "temperature": 2.5, "loss_weight": "auto"}
    assert overridden.model.distill.cls == expected

    zoo = cfg_of("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py", *TEACHER, *WITHOUT_DATA)
    assert zoo.custom_imports.imports == ["mmkd"]
    assert (zoo.model.type, zoo.model.student) == ("KDDetector", "RetinaNet")

    changed = cfg_of("configs/bccd/kd.py", "--cfg-options", "model.distill.cls.temperature=2.5", *TEACHER)
    assert changed.model.distill.cls.temperature == 2.5


def test_teacher_needs_both_and_a_detector() -> None:
    with pytest.raises(UserError, match="both its config and its checkpoint"):
        cfg_of(STUDENT, "--teacher", "configs/bccd/teacher.py")
    with pytest.raises(UserError, match=r"--teacher cannot distil this config(.|\n)*model.type=ResNet"):
        add_teacher(Config({"model": {"type": "ResNet"}}), "teacher.py", "teacher.pth")
    two_stage = cfg_of("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", *TEACHER, *WITHOUT_DATA).model
    assert (two_stage.type, two_stage.student) == ("KDDetector", "FasterRCNN")
    assert list(two_stage.distill) == ["neck"], "a teacher without regions gives features"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.teacher.checkpoint=nowhere.pth"], "Checkpoint file not found"),
        (["model.teacher.checkpoint=README.md"], "Cannot read checkpoint README.md"),
        (["model.bbox_head.num_classes=4"], "num_classes is 4; the data set has 3"),
        (["model.distill.cls.type=KLLoss"], "one of: BCKDLoss, BoxIoULoss"),
        (["model.distill.cls.temperature=-4"], "temperature must be a number above 0"),
        (["train_dataloader.dataset.data_root=nowhere/"], "no folder nowhere/"),
    ],
)
def test_mistakes_end_in_one_clear_error(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code = main(["configs/bccd/kd.py", "--work-dir", str(tmp_path), "--cfg-options", *options])
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("**/*.pth"))


@pytest.mark.parametrize("given", ["dict(imports='mmkd.losses')", "dict(imports=['mmkd.losses'])"])
def test_imports_of_the_config_are_kept(tmp_path: Path, given: str) -> None:
    config = tmp_path / "c.py"
    config.write_text(f"_base_ = [{str(ROOT / STUDENT)!r}]\ncustom_imports = {given}\n")
    assert cfg_of(str(config)).custom_imports.imports == ["mmkd.losses", "mmkd"]
    config.write_text(f"_base_ = [{str(ROOT / STUDENT)!r}]\ncustom_imports = None\n")
    assert cfg_of(str(config)).custom_imports.imports == ["mmkd"]


def types(parts: Any) -> list[str]:
    return [part["type"] for part in parts]


def test_wandb_is_added_when_asked_for_and_in_its_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "WandbSweepHook" not in types(cfg_of(STUDENT).custom_hooks)
    assert "StopHook" in types(cfg_of(STUDENT).custom_hooks)
    monkeypatch.setenv("MMKD_SWEEP", "local")
    assert "WandbSweepHook" not in types(cfg_of(STUDENT).custom_hooks), "no account, no W&B"
    asked = cfg_of(STUDENT, "--wandb")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for cfg in (asked, cfg_of(STUDENT)):
        assert types(cfg.custom_hooks).count("WandbSweepHook") == 1
        assert types(cfg.visualizer.vis_backends) == ["LocalVisBackend", "WandbBackend"]


def test_wandb_settings_of_the_config_are_kept(tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text(f"""
_base_ = [{str(ROOT / STUDENT)!r}]
visualizer = dict(vis_backends=[
    dict(type='WandbVisBackend', init_kwargs=dict(project='mine'), commit=True, log_code_name='x')])
custom_hooks = [dict(type='WandbSweepHook', num_images=2), dict(type='StopHook', preempt_signals=[])]
""")
    cfg = cfg_of(str(config), "--wandb")
    assert cfg.visualizer.vis_backends == [{"type": "WandbBackend", "init_kwargs": {"project": "mine"}}]
    assert types(cfg.custom_hooks) == [
        "WandbSweepHook",
        "StopHook",
        "SomeDataHook",
        "ReproducibleHook",
        "ProgressHook",
        "FreshMetricsHook",
        "ResumeHook",
    ]
    assert cfg.default_hooks.checkpoint.type == "DurableCheckpointHook"
    assert cfg.custom_hooks[0]["num_images"] == 2


def test_a_run_of_a_sweep_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    command = [STUDENT, "--work-dir", str(tmp_path), "--cfg-options", "load_from=pretrained.pth"]
    cfg = cfg_of(*command)
    assert (cfg.resume, cfg.load_from) == (False, "pretrained.pth")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "last_checkpoint").write_text(str(tmp_path / "r/interrupted.pth"))
    cfg = cfg_of(*command)
    assert (cfg.resume, cfg.load_from) == (True, None)


@pytest.mark.slow
def test_training_tells_of_a_file_with_exchanged_names(tmp_path: Path) -> None:
    content = json.loads((ROOT / "data/bccd/annotations/train.json").read_text())
    for box in content["annotations"]:
        box["score"] = 0.9
    one, other = (x for x in content["categories"] if x["name"] in ("RBC", "WBC"))
    one["name"], other["name"] = other["name"], one["name"]
    (tmp_path / "teacher.json").write_text(json.dumps(content))
    (tmp_path / "kd.py").write_text(
        f"_base_ = [{str(ROOT / STUDENT)!r}]\n"
        f"teacher = dict(predictions={str(tmp_path / 'teacher.json')!r})\n"
        "model = dict(type='KDDetector', student='ATSS', teacher=teacher,\n"
        "             distill=dict(boxes=dict(type='TeacherBoxesLoss')))\n"
    )
    few = ["train_dataloader.dataset.indices=30", "val_dataloader.dataset.indices=1"]
    quick = ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    options = [*few, *quick, "train_cfg.max_epochs=1", "train_dataloader.batch_size=10"]
    assert (
        main([str(tmp_path / "kd.py"), "--work-dir", str(tmp_path / "out"), "--cfg-options", *options]) == 0
    )
    (log,) = (tmp_path / "out").rglob("*.log")
    said = log.read_text()
    assert "WARNING - teacher: class order: it was trained with another class order" in said
    assert "{'WBC': 'RBC', 'RBC': 'WBC'}" in said or "{'RBC': 'WBC', 'WBC': 'RBC'}" in said
