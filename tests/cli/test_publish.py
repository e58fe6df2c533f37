from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmkd.cli.publish import main
from mmkd.cli.train import main as train

from ..conftest import ROOT, build, distilled, tiny_atss, tiny_teacher

# Another process, in which mmkd cannot be imported.
DETECT = """
import sys, torch
sys.modules["mmkd"] = None
from mmdet.apis import inference_detector, init_detector

image, *students = sys.argv[1:]
for student in students:
    model = init_detector(f"{student}.py", f"{student}.pth", device="cpu")
    found = inference_detector(model, image).pred_instances
    found = [found.bboxes, found.scores, found.labels, model.dataset_meta["classes"]]
    torch.save(found, f"{student}_found.pth")
assert not any(name.startswith("mmkd.") for name in sys.modules)
"""
IMAGE = "data/bccd/images/val/BloodImage_00007.jpg"


@pytest.mark.parametrize("full", [False, True])
def test_keeps_weights_and_classes_only(tmp_path: Path, full: bool) -> None:
    model = build(tiny_atss())
    meta = {"dataset_meta": {"classes": ("a", "b", "c")}, "cfg": "secret paths", "epoch": 3}
    torch.save({"meta": meta, "state_dict": model.state_dict(), "optimizer": {}}, tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    assert main([str(tmp_path / "in.pth"), str(out), *(["--full-precision"] if full else [])]) == 0
    published = torch.load(out)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"] == {"dataset_meta": {"classes": ("a", "b", "c")}}
    dtypes = {value.dtype for value in published["state_dict"].values()}
    assert dtypes == {torch.float32 if full else torch.float16, torch.int64}
    model.load_state_dict(published["state_dict"])


def test_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": 1}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]) == 2
    assert "no `state_dict`" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.slow
def test_a_trained_student_detects_without_mmkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same boxes as the distilled model's, whose checkpoint is the average that `EMAHook` keeps."""
    cfg = Config.fromfile("configs/bccd/student.py")
    cfg.model = distilled(tiny_atss(test_cfg__score_thr=0.0), tiny_teacher())
    cfg.custom_hooks = [{"type": "EMAHook", "momentum": 0.5}]
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.indices = 4
    cfg.train_cfg.max_epochs = 1
    for key in ("val_dataloader", "val_evaluator", "val_cfg", "load_from"):
        cfg[key] = None
    cfg.work_dir = str(tmp_path / "run")
    cfg.dump(tmp_path / "kd.py")
    assert train([str(tmp_path / "kd.py")]) == 0
    trained = tmp_path / "run/epoch_1.pth"
    students = [tmp_path / "half", tmp_path / "full"]
    DefaultScope._instance_dict.clear()  # as in a process of the tool
    assert main([str(trained), f"{students[0]}.pth"]) == 0
    assert main([str(trained), f"{students[1]}.pth", "--full-precision"]) == 0

    subprocess.run(
        [sys.executable, "-c", DETECT, str(ROOT / IMAGE), *map(str, students)],
        cwd=tmp_path,
        check=True,
        timeout=200,
    )
    init_default_scope("mmdet")
    model = build(cfg.model).eval()
    model.load_state_dict(torch.load(trained, weights_only=False)["state_dict"])
    model.cfg = cfg
    wanted = inference_detector(model, IMAGE).pred_instances
    assert len(wanted) > 0
    for student, close in zip(students, ({"rtol": 1e-2, "atol": 1e-2}, {"rtol": 0, "atol": 0})):
        bboxes, scores, labels, classes = torch.load(f"{student}_found.pth")
        assert classes == ("Platelets", "RBC", "WBC")
        torch.testing.assert_close(scores, wanted.scores, **close)
    assert torch.equal(bboxes, wanted.bboxes)
    assert torch.equal(labels, wanted.labels)
