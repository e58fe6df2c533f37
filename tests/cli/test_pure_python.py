"""Pure-Python configs: types are classes, and there is no default scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.cli import doctor, test, train
from mmkd.compare.run_configs import evaluation_config
from mmkd.compat import load_config

from ..conftest import ROOT

STUDENT = """
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import ATSS, ATSSHead, DetDataPreprocessor, FPN, ResNet
from mmdet.models import CrossEntropyLoss, FocalLoss
from mmdet.models.losses.iou_loss import GIoULoss
from mmdet.models.task_modules import AnchorGenerator, ATSSAssigner, DeltaXYWHBBoxCoder
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from torch.nn import BatchNorm2d
from torch.optim import SGD

default_scope = None
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name='visualizer')
load = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(128, 96), keep_ratio=True)]
boxes = dict(type=LoadAnnotations, with_bbox=True)
data = dict(type=CocoDataset, data_root='data/bccd/', metainfo=dict(classes=('Platelets', 'RBC', 'WBC')))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(**data, ann_file='annotations/train.json', data_prefix=dict(img='images/train/'),
                 pipeline=[load[0], boxes, load[1], dict(type=PackDetInputs)]))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(**data, ann_file='annotations/val.json', data_prefix=dict(img='images/val/'), test_mode=True,
                 pipeline=[*load, boxes, dict(
                     type=PackDetInputs,
                     meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file='data/bccd/annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=1e-3))
model = dict(
    type=ATSS,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=18, base_channels=8, norm_cfg=dict(type=BatchNorm2d), norm_eval=False),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=64, start_level=1,
              add_extra_convs='on_output', num_outs=5),
    bbox_head=dict(
        type=ATSSHead, num_classes=3, in_channels=64, feat_channels=64, stacked_convs=4,
        anchor_generator=dict(type=AnchorGenerator, ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
                              strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type=GIoULoss, loss_weight=2.0),
        loss_centerness=dict(type=CrossEntropyLoss, use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(assigner=dict(type=ATSSAssigner, topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type=nms, iou_threshold=0.6),
                  max_per_img=10))
"""
TEACHER = """
from mmengine.config import read_base
with read_base():
    from .student import *
from mmengine.model import PretrainedInit
model.update(dict(
    backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]),
    init_cfg=dict(type=PretrainedInit, checkpoint='data/bccd/teacher_atss_r18_narrow.pth')))
"""
KD = """
from mmengine.config import read_base
with read_base():
    from .student import *
from mmkd.detectors import KDSingleStageDetector
from mmkd.hooks import MetricsFileHook
from mmkd.losses import DistillationLoss, PKDLoss
model.update(dict(
    type=KDSingleStageDetector, inherit=['neck'], teacher=dict(config={teacher!r}),
    distill=dict(cls=dict(type=DistillationLoss), neck=dict(type=PKDLoss))))
custom_hooks = [dict(type=MetricsFileHook)]
"""
FEW = ["train_dataloader.dataset.indices=4", "val_dataloader.dataset.indices=4"]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    (tmp_path / "student.py").write_text(STUDENT)
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "kd.py").write_text(KD.format(teacher=str(tmp_path / "teacher.py")))
    return tmp_path


def trained(config: Path, work_dir: Path, *options: str) -> Any:
    arguments = [str(config), "--work-dir", str(work_dir), *options, "--cfg-options", *FEW]
    assert train.main(arguments) == 0
    return Config.fromfile(work_dir / config.name)


@pytest.mark.slow
def test_alone_distilled_and_tested(configs: Path) -> None:
    assert (ROOT / "data/bccd").is_dir()
    alone = trained(configs / "student.py", configs / "alone")
    assert "teacher" not in alone.model
    distilled = trained(configs / "kd.py", configs / "kd")
    assert [hook.type for hook in distilled.custom_hooks].count("mmkd.hooks.MetricsFileHook") == 1
    weights = str(configs / "kd/epoch_1.pth")
    for options in ([], ["--tta"]):
        tested = [str(configs / "kd.py"), weights, "--work-dir", str(configs / "kd"), *options]
        assert test.main([*tested, "--cfg-options", "test_dataloader.dataset.indices=4"]) == 0

    # What training wrote is a config that goes on, also where mmengine finds no class by its full name.
    assert "iou_loss.GIoULoss" in (configs / "kd/kd.py").read_text()
    again = [str(configs / "kd/kd.py"), "--work-dir", str(configs / "kd"), "--resume"]
    assert train.main([*again, "--cfg-options", "train_cfg.max_epochs=2"]) == 0
    assert (configs / "kd/epoch_2.pth").is_file()


def test_teacher_by_option(configs: Path) -> None:
    weights = "data/bccd/teacher_atss_r18_narrow.pth"
    teacher = ["--teacher", str(configs / "teacher.py"), "--teacher-checkpoint", weights]
    cfg = train.config_of(train.parse_args([str(configs / "student.py"), *teacher]))
    assert cfg.model.type == "mmdet.KDDetector"
    own = train.config_of(train.parse_args([str(configs / "kd.py"), *teacher]))
    assert set(own.model.distill) == {"cls", "neck"}


@pytest.mark.slow
def test_options_that_change_types(configs: Path) -> None:
    options = ["train_dataloader.dataset.indices=0.02"]
    arguments = [str(configs / "kd.py"), "--work-dir", str(configs / "w"), "--amp", "--cfg-options", *options]
    assert train.main([*arguments, "val_cfg=None", "val_dataloader=None", "val_evaluator=None"]) == 0


def test_evaluated_by_a_comparison(configs: Path) -> None:
    student, distilled = (load_config(configs / f"{name}.py") for name in ("student", "kd"))
    out = evaluation_config(distilled, student, "test")
    assert out.visualizer.type == "mmdet.DetLocalVisualizer", "there is no scope to find it in"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.update(type=NoSuchThing)", "Failed to import NoSuchThing from mmdet.models"),
        ("train_dataloader.update(collate_fn=dict(type=partial(NoSuchThing)))", "line 6 'train_dataloader"),
    ],
)
def test_what_mmengine_does_not_import_or_run(
    configs: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    head = "from functools import partial\nfrom mmengine.config import read_base\nwith read_base():\n"
    (configs / "c.py").write_text(
        f"{head}    from .student import *\nfrom mmdet.models import NoSuchThing\n{line}\n"
    )
    assert train.main([str(configs / "c.py"), "--work-dir", str(configs / "w")]) == 2
    told = capsys.readouterr().err
    assert "Cannot read" in told
    assert message in told


def test_doctor(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([str(configs / "kd.py"), "--images", "2"]) == 0, capsys.readouterr().out
