from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub

from mmkd.compat import load_config
from mmkd.detectors.recipe import recommended
from mmkd.errors import UserError

from ..conftest import batch, build, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..heads.cases import CASES, STOCK_CONFIGS, Case, stock
from ..outputs import queries
from ..outputs.two_stage import CASCADE_MASK, FASTER, MASK, small
from ..outputs.two_stage import batch as two_stage_batch
from ..outputs.two_stage import losses_of as step
from ..zoo import batch as batch_of_one_size
from ..zoo import small as without_weights

AUTO = {"loss_weight": "auto"}
NECK = {"type": "PKDLoss", **AUTO}


def recipe(folder: Path, student: Any, teacher: Any, classes: Any = None, **meta: Any) -> dict[str, Any]:
    model = build(teacher)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, folder / "teacher.pth")
    entry = {"config": teacher, "checkpoint": str(folder / "teacher.pth")}
    found = recommended(student, entry, classes)
    cfg = ConfigDict({"teacher": entry, **copy.deepcopy(student), **found, "type": "KDSingleStageDetector"})
    MessageHub.get_current_instance().update_info("epoch", 0)  # which TOOD asks
    losses = losses_of(build(cfg), batch())
    assert all(torch.isfinite(losses[f"loss_kd_{name}"]) for name in found["distill"])
    return found


@pytest.mark.parametrize("case", [c for c in CASES if c.trains], ids=lambda case: case.head)
def test_every_head_gets_what_fits_and_trains(case: Case, tmp_path: Path) -> None:
    if case.head == "VFNetHead":
        pytest.skip("its deformable convolutions need larger images than these")
    cfg = stock(case.config)
    found = recipe(tmp_path, cfg, cfg)
    losses = found["distill"]
    assert {"cls", "box"} <= set(losses)
    assert ("quality" in losses) == bool(case.quality)
    assert ("region" in losses["cls"]) == (not case.labels)
    assert (losses["box"]["type"] == "LocalizationDistillationLoss") == (case.head == "GFLHead")
    assert found["inherit"] == ["neck", "bbox_head"]


def test_of_two_atss(tmp_path: Path) -> None:
    found = recipe(tmp_path, tiny_atss(), tiny_teacher())
    assert found == {
        "inherit": ["neck", "bbox_head"],
        "distill": {
            "cls": {"type": "DistillationLoss", **AUTO},
            "box": {"type": "BoxIoULoss", **AUTO},
            "quality": {"type": "QualityLoss", **AUTO},
            "neck": NECK,
        },
    }


def test_classes_that_the_teacher_does_not_know_leave_out_their_logits(tmp_path: Path) -> None:
    known = {"dataset_meta": {"classes": ("a", "b", "c")}}
    assert "cls" in recipe(tmp_path, tiny_atss(), tiny_teacher(), ("a", "b", "c"), **known)["distill"]
    assert "cls" not in recipe(tmp_path, tiny_atss(), tiny_teacher(), ("a", "b", "d"), **known)["distill"]


def test_another_head_gives_boxes_and_features(tmp_path: Path) -> None:
    retina = stock("retinanet/retinanet_r18_fpn_1x_coco.py")
    found = recipe(tmp_path, tiny_atss(), retina)
    assert set(found["distill"]) == {"neck"}, "nine base priors against one"
    fcos = stock("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    assert {"box", "neck"} <= set(recipe(tmp_path, tiny_atss(), fcos)["distill"])


@pytest.mark.parametrize(
    "student", ["retinanet/retinanet_r50_fpn_1x_coco.py", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"]
)
def test_features_pass_through_another_head_if_they_fit(tmp_path: Path, student: str) -> None:
    atss = stock("atss/atss_r50_fpn_1x_coco.py", deep=True)
    found = recipe(tmp_path, stock(student, deep=True), atss)
    losses = {"cls": {"type": "BCKDLoss"}, "box": {"type": "BoxIoULoss"}, "quality": {"type": "QualityLoss"}}
    if "retinanet" in student:  # its assigned objects are at other priors
        losses["cls"].update(normalizer="batch")
        losses["quality"].update(region="teacher")
    assert found["distill"] == {
        "cross": {"type": "CrossKDLoss", "losses": losses, **AUTO},
        "neck": {**NECK, "share": 2.0},
    }
    same = {"neck": "neck", "bbox_head": "bbox_head"}
    renamed = {
        "bbox_head.conv_cls": "bbox_head.atss_cls",
        "bbox_head.conv_centerness": "bbox_head.atss_centerness",
    }
    # RetinaNet has nine anchors at each place, so its last layers have other shapes.
    assert found["inherit"] == ({**same, **renamed} if "fcos" in student else list(same))
    wider = stock(student, deep=True)
    wider.bbox_head.update(feat_channels=2 * wider.bbox_head.feat_channels)
    assert "cross" not in recipe(tmp_path, wider, atss)["distill"]


def test_features_of_another_backbone_pass_through_the_teachers_head(tmp_path: Path) -> None:
    teacher = stock("atss/atss_r50_fpn_1x_coco.py", deep=True)
    student = copy.deepcopy(teacher)
    student.backbone = ConfigDict(type="MobileNetV2", widen_factor=0.25, out_indices=(1, 2, 4, 6))
    student.neck.in_channels = [8, 8, 24, 80]
    found = recipe(tmp_path, student, teacher)
    losses = {"cls": {"type": "BCKDLoss"}, "box": {"type": "BoxIoULoss"}, "quality": {"type": "QualityLoss"}}
    assert found == {
        "inherit": ["neck", "bbox_head"],
        "distill": {"cross": {"type": "CrossKDLoss", "losses": losses, **AUTO}, "neck": NECK},
    }
    student.bbox_head.stacked_convs = teacher.bbox_head.stacked_convs = 1  # too few to cross
    assert list(recipe(tmp_path, student, teacher)["distill"]) == ["cls", "box", "quality", "neck"]
    student.backbone = ConfigDict({**teacher.backbone, "type": "ResNeXt", "groups": 2, "depth": 50})
    student.neck.in_channels = [32, 64, 128, 256]
    student.bbox_head.stacked_convs = teacher.bbox_head.stacked_convs = 4
    assert "cross" not in recipe(tmp_path, student, teacher)["distill"], "a ResNeXt is a ResNet"


def test_where_only_the_classes_stop_crossed_features_outputs_are_compared(tmp_path: Path) -> None:
    names = tuple(str(index) for index in range(80))
    known = {"dataset_meta": {"classes": names}}
    fcos = stock("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", deep=True)
    atss = stock("atss/atss_r50_fpn_1x_coco.py", deep=True)
    assert "cross" in recipe(tmp_path, fcos, atss, names, **known)["distill"]
    found = recipe(tmp_path, fcos, atss, (*names[1:], "another"), **known)["distill"]
    assert found == {"quality": {"type": "QualityLoss", **AUTO}, "neck": NECK}


def of_two_stages(folder: Path, student: str, teacher: str) -> dict[str, Any]:
    """The recipe, after a step of training with it."""
    own, theirs = small(student), small(teacher)
    checkpoint = folder / "teacher.pth"
    torch.save({"meta": {}, "state_dict": build(theirs).state_dict()}, checkpoint)
    entry = {"config": {"model": theirs}, "checkpoint": str(checkpoint)}
    found = recommended(own, entry, None)
    cfg = copy.deepcopy(own)
    cfg.update({"teacher": entry, **copy.deepcopy(found), "type": "KDDetector", "student": own.type})
    losses = step(build(cfg), two_stage_batch())
    assert all(losses[f"loss_kd_{name}"] > 0 for name in found["distill"])
    return found


def test_two_stages_learn_on_their_regions(tmp_path: Path) -> None:
    cls = {"type": "DistillationLoss", "activation": "softmax", "region": "all", **AUTO}
    losses = {"cls": cls, "box": {"type": "BoxIoULoss", **AUTO}, "neck": NECK}
    found = of_two_stages(tmp_path, FASTER, FASTER)
    assert found == {"inherit": ["neck", "rpn_head", "roi_head"], "distill": losses}
    found = of_two_stages(tmp_path, FASTER, CASCADE_MASK)
    assert found == {"inherit": ["neck", "rpn_head"], "distill": losses}
    masks = {"type": "DistillationLoss", "place": "masks", "region": "all", **AUTO}
    assert of_two_stages(tmp_path, MASK, CASCADE_MASK)["distill"] == {**losses, "mask": masks}
    grid = "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py"
    assert set(of_two_stages(tmp_path, grid, FASTER)["distill"]) == {"cls", "neck"}


def of_queries(folder: Path, student: Any, teacher: Any) -> dict[str, Any]:
    """The recipe, after a step of training with it."""
    entry = {
        "config": {"model": teacher},
        "checkpoint": queries.opinionated(folder / "teacher.pth", teacher),
    }
    found = recommended(student, entry, None)
    cfg = copy.deepcopy(student)
    cfg.update({"teacher": entry, **copy.deepcopy(found), "type": "KDDetector", "student": student.type})
    model = build(cfg).train()
    taught, inherited = model.teacher.model.state_dict(), tuple(found.get("inherit", ()))
    for name, value in model.state_dict().items():
        if inherited and name.startswith(inherited) and name in taught and taught[name].shape == value.shape:
            assert torch.equal(value, taught[name]), name
    losses = queries.losses_of(model)
    assert losses.keys() == found["distill"].keys()
    assert all(value > 0 for value in losses.values())
    return found


@pytest.mark.parametrize("family", ["DETR", "DABDETR", "DINO"])
def test_the_students_decoder_answers_the_teachers_queries(tmp_path: Path, family: str) -> None:
    found = of_queries(tmp_path, queries.tiny(family), queries.tiny(family, queries=12, layers=3))
    softmax = {"activation": "softmax"} if family == "DETR" else {}
    shared = {"place": "shared_queries"}
    assert found["distill"] == {
        "cls": {"type": "DistillationLoss", **softmax, "region": "teacher", **shared, **AUTO},
        "box": {"type": "BoxL1Loss", **shared, **AUTO},
        "iou": {"type": "BoxIoULoss", **shared, **AUTO},
        "neck": NECK,
    }
    assert {"neck", "encoder", "decoder", "bbox_head"} <= set(found["inherit"])
    assert ("level_embed" in found["inherit"]) == (family == "DINO")
    assert "query_embedding" not in found["inherit"] or family == "DINO", "the teacher has more queries"


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("ConditionalDETR", "DABDETR"), ("DINO", "DDQDETR"), ("SparseRCNN", "QueryInst")],
)
def test_queries_that_cannot_be_shared_are_matched(tmp_path: Path, student: str, teacher: str) -> None:
    found = of_queries(tmp_path, queries.tiny(student), queries.tiny(teacher))
    assert found["distill"] == {
        "cls": {"type": "DistillationLoss", "region": "teacher", **AUTO},
        "box": {"type": "BoxL1Loss", **AUTO},
        "iou": {"type": "BoxIoULoss", **AUTO},
        "neck": NECK,
    }


def test_queries_for_masks_are_matched_by_them(tmp_path: Path) -> None:
    cls = {"type": "DistillationLoss", "activation": "softmax", "region": "teacher", **AUTO}
    mask = {"type": "DistillationLoss", "place": "query_masks", "region": "all", **AUTO}
    found = of_queries(tmp_path, queries.tiny("MaskFormer"), queries.tiny("Mask2Former"))
    assert found["distill"] == {"cls": cls, "mask": mask, "neck": NECK}
    found = of_queries(tmp_path, queries.tiny("Mask2Former"), queries.tiny("DeformableDETR"))
    assert found["distill"] == {"neck": NECK}, "those of the teacher find boxes"
    assert found["teacher"]["levels"] == [None, 0, 1, 2]


def test_levels_are_chosen_for_features_beside_queries(tmp_path: Path) -> None:
    """As those of a DINO of five scales for one of four."""
    student, teacher = queries.tiny("DINO"), queries.tiny("DINO")
    teacher.num_feature_levels = teacher.neck.num_outs = 5
    teacher.backbone.out_indices = (0, 1, 2, 3)
    teacher.neck.in_channels = [8, *teacher.neck.in_channels]
    teacher.encoder.layer_cfg.self_attn_cfg.num_levels = 5
    teacher.decoder.layer_cfg.cross_attn_cfg.num_levels = 5
    found = of_queries(tmp_path, student, teacher)
    assert list(found["distill"]) == ["cls", "box", "iou", "neck"]
    assert found["teacher"]["levels"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", ["cls", "box", "mask", "neck"]),
        ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", ["cls", "box", "quality", "mask", "neck"]),
        ("solo/solo_r50_fpn_1x_coco.py", ["cls", "mask", "neck"]),
    ],
)
def test_one_stage_instance_segmentation(name: str, losses: list[str]) -> None:
    model = without_weights(load_config(STOCK_CONFIGS / name).model)
    if model.backbone.type == "ResNet":
        model.backbone.update(depth=18, base_channels=16)
        model.neck.in_channels = [16, 32, 64, 128]
    entry = {"config": {"model": model}, "checkpoint": None}
    found = recommended(model, entry, None)
    assert list(found["distill"]) == losses
    cfg = {**model, "type": "KDDetector", "student": model.type, "teacher": entry}
    detector = build(ConfigDict({**cfg, "distill": found["distill"]})).train()
    step = losses_of(detector, batch_of_one_size(model, 128))
    assert all(step[f"loss_kd_{loss}"] > 0 for loss in losses)


def test_a_one_stage_teacher_of_two_stages_gives_the_levels_that_both_have(tmp_path: Path) -> None:
    teacher = tiny_atss(neck__out_channels=16, bbox_head__in_channels=16)
    path = save_teacher(tmp_path / "teacher.pth", teacher)
    found = recommended(small(FASTER), {"config": teacher, "checkpoint": path}, None)
    assert set(found["distill"]) == {"neck"}
    assert found["teacher"]["levels"] == [None, 0, 1, 2, 3]


def test_a_two_stage_teacher_gives_the_levels_that_both_have(tmp_path: Path) -> None:
    teacher = load_two_stage()
    found = recipe(tmp_path, tiny_atss(), teacher)
    assert set(found["distill"]) == {"neck"}
    assert found["teacher"]["levels"] == [1, 2, 3, 4]


def load_two_stage() -> Any:
    cfg = load_config(STOCK_CONFIGS / "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py").model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=64)
    cfg.rpn_head.update(in_channels=64, feat_channels=64)
    cfg.roi_head.bbox_roi_extractor.out_channels = 64
    cfg.roi_head.bbox_head.update(in_channels=64, fc_out_channels=32)
    return cfg


def test_a_teacher_that_does_not_load_is_said(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "t.pth", tiny_atss())
    with pytest.raises(UserError, match="does not fit the model"):
        recommended(tiny_atss(), {"config": tiny_teacher(), "checkpoint": path}, None)
