"""Any student learns from boxes, whoever found them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmkd.errors import UserError
from mmkd.losses import TeacherBoxesLoss

from ..conftest import build, save_teacher, tiny_atss
from ..detectors.test_kd_detector import batch, small, transformer, two_stage
from ..detectors.test_kd_single_stage import train

CLASSES = ["a", "b", "c"]


def mask_rcnn() -> Any:
    cfg = small("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    cfg.neck.out_channels = cfg.rpn_head.in_channels = cfg.rpn_head.feat_channels = 16
    cfg.roi_head.bbox_roi_extractor.out_channels = cfg.roi_head.bbox_head.in_channels = 16
    cfg.roi_head.mask_roi_extractor.out_channels = cfg.roi_head.mask_head.in_channels = 16
    cfg.roi_head.bbox_head.update(fc_out_channels=16, num_classes=3)
    cfg.roi_head.mask_head.update(conv_out_channels=16, num_classes=3)
    return cfg


def fcos() -> Any:
    cfg = small("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    cfg.bbox_head.num_classes = 3
    return cfg


STUDENTS = [tiny_atss, fcos, two_stage, mask_rcnn, transformer]


def on_annotations(images: list[Any]) -> list[dict[str, Any]]:
    """A teacher that knows the annotations of the batch by heart, and one box that is wrong."""
    answers = []
    for instances in on_annotations.known:  # type: ignore[attr-defined]
        wrong = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
        answers.append(
            {
                "boxes": torch.cat([instances.bboxes, wrong]),
                "scores": torch.tensor([0.9] * len(instances.bboxes) + [0.3]),
                "labels": torch.cat([instances.labels, torch.tensor([0])]),
            }
        )
    assert len(images) == len(answers)
    return answers


def student_of(cfg: Any, **loss: Any) -> Any:
    return ConfigDict(
        {
            **cfg,
            "type": "KDDetector",
            "student": cfg.type,
            "teacher": {"type": "CallableTeacher", "function": on_annotations, "classes": CLASSES},
            "distill": {"boxes": {"type": "TeacherBoxesLoss", **loss}},
        }
    )


def ready(cfg: Any, **loss: Any) -> tuple[Any, Any]:
    """A student whose teacher knows a batch."""
    data = batch()
    masks = cfg.get("roi_head", {}).get("mask_head") is not None
    if masks:
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(2, [[3, 96, 128], [3, 80, 96]], num_classes=3, with_mask=True)
    on_annotations.known = [sample.gt_instances for sample in data["data_samples"]]  # type: ignore[attr-defined]
    model = build(student_of(cfg, **loss)).train()
    model._classes_checked = True
    for module in model.modules():  # the second pass is then the first
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.Dropout)):
            module.eval()
    return model, data


def losses_of(model: Any, data: Any) -> dict[str, Any]:
    torch.manual_seed(7)
    data = model.data_preprocessor(data, True)
    return dict(model.loss(data["inputs"], data["data_samples"]))


def total(losses: dict[str, Any], without: tuple[str, ...] = ()) -> torch.Tensor:
    values = [x for key, x in losses.items() if "loss" in key and "loss_kd" not in key and key not in without]
    return sum(part.sum() for x in values for part in (x if isinstance(x, list) else [x]))


@pytest.mark.parametrize("student", STUDENTS)
def test_boxes_that_are_the_annotations_give_the_students_own_losses(student: Any) -> None:
    model, data = ready(student())
    # Regions are drawn anew, and so is the dropout of attention.
    draws = "roi_head" in student() or "encoder" in student()
    losses = losses_of(model, data)
    torch.testing.assert_close(
        losses["loss_kd_boxes"],
        total(losses, without=("loss_mask",)),
        rtol=0.2 if draws else 1e-5,
        atol=0,
    )
    losses["loss_kd_boxes"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    with_masks = hasattr(model, "roi_head") and model.roi_head.with_mask
    assert with_masks == (student is mask_rcnn), "the mask head is back"


def test_weight_zero_is_the_stock_student() -> None:
    model, data = ready(tiny_atss(), loss_weight=0)
    stock = build(tiny_atss()).train()
    for module in stock.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    own, alone = train(model, data), train(stock, data)
    for a, b in zip(own, alone):
        assert a.pop("loss_kd_boxes") == 0
        assert all(torch.equal(a[key], b[key]) for key in b)


def chosen(loss: TeacherBoxesLoss, *scores: float) -> tuple[list[int], list[int]]:
    """Which boxes are targets, and which are ignored; a box is its own number."""
    numbers = torch.arange(len(scores)).float()
    found = InstanceData(
        bboxes=numbers[:, None].repeat(1, 4), scores=torch.tensor(scores), labels=numbers.long()
    )
    taken, ignored = loss._chosen(found)
    assert taken.labels.tolist() == taken.bboxes[:, 0].tolist()
    return taken.labels.tolist(), ignored.bboxes[:, 0].long().tolist()


def test_hard_boxes_above_a_threshold_and_ignored_ones_between_two() -> None:
    scores = (0.9, 0.2, 0.5, 0.4)
    assert chosen(TeacherBoxesLoss(), *scores) == ([0, 2], [])
    assert chosen(TeacherBoxesLoss(min_score=0.6, ignore_score=0.4), *scores) == ([0], [2, 3])
    assert chosen(TeacherBoxesLoss(min_score=0, ignore_score=0), *scores) == ([0, 1, 2, 3], [])


def test_soft_boxes_take_part_as_often_as_they_are_sure() -> None:
    loss = TeacherBoxesLoss(min_score=0.1, soft=True)
    torch.manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[chosen(loss, 0.05, 0.3, 0.8, 1.0)[0]] += 1
    torch.testing.assert_close(counts / 4000, torch.tensor([0.0, 0.3, 0.8, 1.0]), atol=0.03, rtol=0)


def test_ignored_boxes_are_no_background() -> None:
    """Without the ignored box its priors are negatives, and the loss is another."""
    values = {}
    for ignore_score in (None, 0.2):
        model, data = ready(two_stage(), min_score=0.5, ignore_score=ignore_score)
        assigner = model.rpn_head.assigner
        before = assigner.ignore_iof_thr
        values[ignore_score] = losses_of(model, data)["loss_kd_boxes"]
        assert assigner.ignore_iof_thr == before
    assert values[None] != values[0.2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_score": 2}, "min_score"),
        ({"ignore_score": -1}, "ignore_score"),
        ({"min_score": 0.3, "ignore_score": 0.5}, "at most min_score"),
        ({"min_score": float("nan")}, "min_score"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        TeacherBoxesLoss(**options)


def test_who_cannot_ignore_says_so() -> None:
    with pytest.raises(UserError, match="assigner does not support ignored boxes"):
        build(student_of(transformer(), ignore_score=0.2))


def test_who_learns_masks_elsewhere_says_so() -> None:
    cfg = small("solo/solo_r50_fpn_1x_coco.py")
    with pytest.raises(UserError, match="learns masks"):
        build(student_of(cfg))


def test_a_live_detector_teaches_its_boxes(tmp_path: Path) -> None:
    cfg = student_of(two_stage(), min_score=0.0)
    teacher = tiny_atss()
    names = {"dataset_meta": {"classes": CLASSES}}
    checkpoint = save_teacher(tmp_path / "teacher.pth", teacher, **names)
    cfg.teacher = {"config": {"model": teacher}, "checkpoint": checkpoint}
    model = build(cfg).train()
    found = losses_of(model, batch())
    assert found["loss_kd_boxes"] > 0
    found["loss_kd_boxes"].backward()


def test_a_loss_on_features_shares_the_live_teachers_pass(tmp_path: Path) -> None:
    teacher = tiny_atss()
    checkpoint = save_teacher(tmp_path / "teacher.pth", teacher)
    cfg = student_of(tiny_atss(), min_score=0.0)
    cfg.teacher = {"config": {"model": teacher}, "checkpoint": checkpoint}
    cfg.distill.neck = {"type": "PKDLoss"}
    cfg.distill.cls = {"type": "DistillationLoss"}
    model = build(cfg).train()
    data = batch()
    losses_of(model, data)  # its first question is asked twice, to confirm what was left out
    calls = []
    model.teacher.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = losses_of(model, data)
    assert len(calls) == 1
    assert found["loss_kd_boxes"] > 0
    assert found["loss_kd_neck"] > 0
