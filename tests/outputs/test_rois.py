from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import roi_heads
from mmdet.models.roi_heads import SparseRoIHead
from mmdet.models.roi_heads.multi_instance_roi_head import MultiInstanceRoIHead
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from mmkd.errors import UserError
from mmkd.losses.row_base import Normalizer, Region
from mmkd.outputs import PLACES

from ..conftest import ROOT, build, only_soak
from .two_stage import (
    CASCADE,
    CASCADE_MASK,
    FASTER,
    HTC,
    MASK,
    MASK_C4,
    SCNET,
    TRIDENT,
    batch,
    losses_of,
    pair,
    small,
)

CLS = {"type": "DistillationLoss", "activation": "softmax", "region": "all"}
BOX = {"type": "BoxIoULoss", "region": "foreground", "loss_weight": 1.0}
MASKS = {"type": "DistillationLoss", "place": "masks", "region": "all"}

FAMILIES = (
    FASTER, MASK, MASK_C4, CASCADE, CASCADE_MASK, HTC, SCNET, TRIDENT,
    "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py",
    "fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py",
    "faster_rcnn/faster-rcnn_r50_fpn_giou_1x_coco.py",
    "faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py",
    "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py",
    "groie/faste-rcnn_r50_fpn_groie_1x_coco.py",
    "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
    "ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco.py",
    "openimages/faster-rcnn_r50_fpn_32xb2-1x_openimages.py",
    "pisa/mask-rcnn_r50_fpn_pisa_1x_coco.py",
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py",
    "seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1.py",
)  # fmt: skip
SLOW = (
    "cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py",
    "detectors/detectors_cascade-rcnn_r50_1x_coco.py",
    "detectors/detectors_htc-r50_1x_coco.py",
    "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py",
    "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
    "sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py",
)


def check_family(name: str, folder: Path) -> None:
    cfg = small(name)
    losses = {"cls": CLS}
    if cfg.roi_head.type != "GridRoIHead":  # whose box head does not regress
        losses["box"] = BOX
    if cfg.roi_head.get("mask_head"):
        losses["mask"] = MASKS
    model = pair(folder, cfg, cfg, losses, twins=True)
    data = batch(proposals=cfg.type == "FastRCNN")
    same = losses_of(model, data)
    assert all(abs(same[f"loss_kd_{loss}"]) < 1e-4 for loss in losses), "the teacher's opinion is its own"

    with torch.no_grad():
        for parameter in model.roi_head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other = losses_of(model, data)
    for loss in losses:
        assert other[f"loss_kd_{loss}"] > 1e-3
    sum(other[f"loss_kd_{loss}"] for loss in losses).backward()
    for part in ("bbox_head", "mask_head") if "mask" in losses else ("bbox_head",):
        grads = [p.grad for p in getattr(model.roi_head, part).parameters() if p.grad is not None]
        assert sum(grad.abs().sum() for grad in grads) > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())


@pytest.mark.parametrize("name", FAMILIES, ids=lambda name: name.split("/")[1].split("_1x")[0])
def test_every_family_learns_from_its_own_kind(name: str, tmp_path: Path) -> None:
    check_family(name, tmp_path)


@only_soak
@pytest.mark.parametrize("name", SLOW, ids=lambda name: name.split("/")[1].split("_1x")[0])
def test_other_families_learn_from_their_own_kind(name: str, tmp_path: Path) -> None:
    check_family(name, tmp_path)


@contextmanager
def recorded(model: Any) -> Iterator[dict[str, Any]]:
    """The student's regions, its head's outputs and assigned classes, by hooks of the test's own."""
    seen: dict[str, Any] = {"rois": [], "out": [], "labels": []}
    roi_head = model.roi_head
    several = isinstance(roi_head.bbox_head, torch.nn.ModuleList)
    heads = roi_head.bbox_head if several else [roi_head.bbox_head]
    extractors = roi_head.bbox_roi_extractor if several else [roi_head.bbox_roi_extractor]
    handles = []
    for extractor, head in zip(extractors, heads):
        handles += [
            extractor.register_forward_pre_hook(lambda _, args: seen["rois"].append(args[1])),
            head.register_forward_hook(lambda _, __, out: seen["out"].append(out)),
            head.loss_cls.register_forward_pre_hook(lambda _, args: seen["labels"].append(args[1])),
        ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def divergence(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    kl = F.kl_div(student_NK.log_softmax(1), teacher_NK.log_softmax(1), reduction="none", log_target=True)
    return kl.sum(dim=1).mean()


def teacher_maps(model: Any, data: Any) -> list[Tensor]:
    pixels = model.data_preprocessor(data, True)["inputs"]
    with torch.no_grad():
        return [level.contiguous() for level in model.teacher.model.extract_feat(pixels)]


def chosen(head: Any, rois_N5: Tensor, deltas: Tensor, class_N: Tensor) -> Tensor:
    """The box of a class by the head's coder."""
    if not head.reg_class_agnostic:
        deltas = deltas.reshape(len(deltas), -1, 4)[torch.arange(len(deltas)), class_N]
    boxes: Tensor = head.bbox_coder.decode(rois_N5[:, 1:], deltas)
    return boxes


def test_values_by_hand(tmp_path: Path) -> None:
    model = pair(tmp_path, small(FASTER), small(FASTER), {"cls": CLS, "box": {**BOX, "region": "teacher"}})
    data = batch()
    with recorded(model) as seen:
        found = losses_of(model, data)
    (rois_N5,), ((logits_NK, deltas),), (labels_N,) = seen["rois"], seen["out"], seen["labels"]
    teacher = model.teacher.model.roi_head
    with torch.no_grad():
        said = teacher._bbox_forward(teacher_maps(model, data), rois_N5)
    torch.testing.assert_close(found["loss_kd_cls"], divergence(logits_NK, said["cls_score"]) * 0.5)

    best_N = said["cls_score"][:, :3].argmax(dim=1)
    class_N = torch.where(labels_N < 3, labels_N, best_N)
    assert (labels_N < 3).any()
    assert (labels_N == 3).any()
    own = chosen(model.roi_head.bbox_head, rois_N5, deltas, class_N)
    taught = chosen(teacher.bbox_head, rois_N5, said["bbox_pred"], class_N)
    weight_N = said["cls_score"].softmax(1)[:, :3].amax(dim=1)
    giou_N = bbox_overlaps(own, taught, mode="giou", is_aligned=True)
    expected = (weight_N * (1 - giou_N)).sum() / weight_N.sum()
    torch.testing.assert_close(found["loss_kd_box"], expected, rtol=1e-4, atol=1e-6)


def test_a_cascade_refines_the_regions_of_another_student_as_it_tests(tmp_path: Path) -> None:
    model = pair(tmp_path, small(FASTER), small(CASCADE), {"cls": CLS, "box": BOX})
    data = batch()
    with recorded(model) as seen:
        found = losses_of(model, data)
    (rois_N5,), ((logits_NK, deltas),), (labels_N,) = seen["rois"], seen["out"], seen["labels"]
    teacher = model.teacher.model.roi_head
    metas = [sample.metainfo for sample in data["data_samples"]]
    counts = [int((rois_N5[:, 0] == image).sum()) for image in range(2)]
    with torch.no_grad():
        rois, scores, preds = teacher._refine_roi(teacher_maps(model, data), rois_N5, metas, counts)
    torch.testing.assert_close(found["loss_kd_cls"], divergence(logits_NK, torch.cat(scores)) * 0.5)
    object_N = labels_N < 3
    own = chosen(model.roi_head.bbox_head, rois_N5, deltas, labels_N.clamp(max=2))
    taught = chosen(teacher.bbox_head[-1], torch.cat(rois), torch.cat(preds), labels_N)
    giou_N = bbox_overlaps(own[object_N], taught[object_N], mode="giou", is_aligned=True)
    torch.testing.assert_close(found["loss_kd_box"], (1 - giou_N).mean(), rtol=1e-4, atol=1e-6)


def test_a_cascade_with_masks_teaches_by_features_too(tmp_path: Path) -> None:
    model = pair(
        tmp_path, small(FASTER), small(CASCADE_MASK), {"cls": CLS, "box": BOX, "neck": {"type": "PKDLoss"}}
    )
    found = losses_of(model, batch())
    assert all(found[f"loss_kd_{name}"] > 0 for name in ("cls", "box", "neck"))


def test_a_cascade_learns_stage_by_stage(tmp_path: Path) -> None:
    losses = {"all": CLS, **{f"s{i}": {**CLS, "place": f"rois.{i}"} for i in range(3)}}
    model = pair(tmp_path, small(CASCADE), small(CASCADE), losses)
    data = batch()
    with recorded(model) as seen:
        found = losses_of(model, data)
    maps = teacher_maps(model, data)
    values, sizes = [], []
    for stage, (rois_N5, (logits_NK, _)) in enumerate(zip(seen["rois"], seen["out"])):
        with torch.no_grad():
            said = model.teacher.model.roi_head._bbox_forward(stage, maps, rois_N5)["cls_score"]
        values.append(divergence(logits_NK, said) * 0.5)
        sizes.append(len(rois_N5))
        torch.testing.assert_close(found[f"loss_kd_s{stage}"], values[-1])
    mean = sum(value * size for value, size in zip(values, sizes)) / sum(sizes)
    torch.testing.assert_close(found["loss_kd_all"], mean)


def test_a_cascade_learns_from_one_head_in_each_stage(tmp_path: Path) -> None:
    model = pair(tmp_path, small(CASCADE), small(FASTER), {"cls": CLS, "box": BOX})
    data = batch()
    with recorded(model) as seen:
        found = losses_of(model, data)
    rois_N5 = torch.cat(seen["rois"])
    with torch.no_grad():
        said = model.teacher.model.roi_head._bbox_forward(teacher_maps(model, data), rois_N5)
    own = torch.cat([logits_NK for logits_NK, _ in seen["out"]])
    torch.testing.assert_close(found["loss_kd_cls"], divergence(own, said["cls_score"]) * 0.5)
    assert found["loss_kd_box"] > 0


def test_classes_are_found_by_name_and_boxes_with_them(tmp_path: Path) -> None:
    taught = ("d", "c", "b", "a")
    model = pair(
        tmp_path, small(FASTER), small(FASTER, 4), {"cls": CLS, "box": BOX}, dataset_meta={"classes": taught}
    )
    model.check_class_names({"classes": ("a", "b", "c")})
    model._classes_checked = True
    data = batch()
    with recorded(model) as seen:
        found = losses_of(model, data)
    (rois_N5,), ((logits_NK, deltas),), (labels_N,) = seen["rois"], seen["out"], seen["labels"]
    teacher = model.teacher.model.roi_head
    with torch.no_grad():
        said = teacher._bbox_forward(teacher_maps(model, data), rois_N5)
    logits = said["cls_score"][:, [3, 2, 1, 4]]
    torch.testing.assert_close(found["loss_kd_cls"], divergence(logits_NK, logits) * 0.5)
    object_N = labels_N < 3
    own = chosen(model.roi_head.bbox_head, rois_N5, deltas, labels_N.clamp(max=2))[object_N]
    taught_boxes = chosen(teacher.bbox_head, rois_N5, said["bbox_pred"], (3 - labels_N).clamp(min=0))[
        object_N
    ]
    giou_N = bbox_overlaps(own, taught_boxes, mode="giou", is_aligned=True)
    torch.testing.assert_close(found["loss_kd_box"], (1 - giou_N).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [MASK, CASCADE, HTC])
@pytest.mark.parametrize("weight", [0, 1])
def test_the_student_trains_as_it_would_alone(name: str, weight: float, tmp_path: Path) -> None:
    losses = {"cls": {**CLS, "loss_weight": weight}}
    if name != CASCADE:
        losses["mask"] = {**MASKS, "loss_weight": weight}
    model = pair(tmp_path, small(name), small(name), losses)
    stock = build(small(name))
    stock.train()
    for ours, theirs in zip(model.modules(), stock.modules()):
        theirs.training = ours.training
    data = batch()
    found, expected = losses_of(model, data), losses_of(stock, data)
    for loss in losses:
        value = found.pop(f"loss_kd_{loss}")
        assert (value == 0) == (weight == 0)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), key


def test_the_teacher_answers_once_for_all_losses(tmp_path: Path) -> None:
    losses = {"cls": CLS, "box": BOX, "dkd": {"type": "DKDLoss"}, "mask": MASKS}
    model = pair(tmp_path, small(MASK), small(MASK), losses)
    losses_of(model, batch())  # the first image is asked about twice
    calls: list[str] = []
    for name, module in model.teacher.model.named_modules():
        if name in ("backbone", "roi_head.bbox_head", "roi_head.mask_head", "roi_head.bbox_roi_extractor"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    losses_of(model, batch())
    assert sorted(calls) == sorted(set(calls))
    assert len(calls) == 4


def row_losses() -> dict[str, Any]:
    """Each loss on rows that fits a softmax head, in each region and with each divisor."""
    losses: dict[str, Any] = {
        "kl": CLS,
        "scored": {**CLS, "valid": "loss"},
        "padded": {**CLS, "valid": "pad"},
        "sigmoid": {"type": "DistillationLoss"},
        "z_scores": {**CLS, "standardize": True},
        "batch_relation": {"type": "DISTLoss", "activation": "softmax", "relation": "batch"},
        "levels": {**BOX, "every_level": False, "overlap": "diou"},
    }
    kinds = {"DistillationLoss": {"activation": "softmax"}, "DISTLoss": {"activation": "softmax"}}
    for kind in ("DistillationLoss", "DISTLoss", "DKDLoss", "BoxIoULoss"):
        for region in get_args(Region):
            losses[f"{kind}_{region}"] = {"type": kind, "region": region, **kinds.get(kind, {})}
        for normalizer in set(get_args(Normalizer)) - {"centerness"}:
            losses[f"{kind}_by_{normalizer}"] = {
                "type": kind,
                "normalizer": normalizer,
                **kinds.get(kind, {}),
            }
    return losses


@pytest.mark.parametrize("images", [2, 1])
def test_losses_on_rows(tmp_path: Path, images: int) -> None:
    losses = row_losses()
    model = pair(tmp_path, small(FASTER), small(FASTER), losses)
    found = losses_of(model, batch(images))
    weight = model.roi_head.bbox_head.shared_fcs[0].weight
    for name in losses:
        value = found[f"loss_kd_{name}"]
        assert torch.isfinite(value)
        assert value > 0, name
        (grad,) = torch.autograd.grad(value, weight, retain_graph=True)
        assert grad.abs().sum() > 0, name
    torch.testing.assert_close(found["loss_kd_scored"], found["loss_kd_kl"])
    torch.testing.assert_close(found["loss_kd_padded"], found["loss_kd_kl"])


def test_sigmoids_on_a_softmax_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mmkd.losses.base.print_log", lambda message, *_: said.append(message))
    losses = {"kl": {"type": "DistillationLoss"}, "dist": {"type": "DISTLoss"}, "softmax": CLS}
    pair(tmp_path, small(FASTER), small(FASTER), losses)
    assert [message.split(":")[0] for message in said] == ["DistillationLoss", "DISTLoss"]


@pytest.mark.parametrize("name", [FASTER, CASCADE, CASCADE_MASK])
def test_images_without_objects(tmp_path: Path, name: str) -> None:
    losses = {"cls": CLS, "box": BOX}
    if "mask" in name:
        losses["mask"] = MASKS
    model = pair(tmp_path, small(name), small(name), losses)
    data = batch()
    for sample in data["data_samples"]:
        sample.gt_instances = sample.gt_instances[:0]
        sample.ignored_instances = sample.ignored_instances[:0]
    found = losses_of(model, data)
    assert found["loss_kd_cls"] > 0, "background is a class"
    for loss in set(losses) - {"cls"}:
        assert found[f"loss_kd_{loss}"] == 0
        found[f"loss_kd_{loss}"].backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "loss", "message"),
    [
        (FASTER, FASTER, {"type": "PKDLoss", "place": "rois"}, "does not support place(.|\n)*needs feats"),
        (FASTER, FASTER, {"type": "PGDLoss"}, "does not support place='rois'"),
        (FASTER, FASTER, {"type": "QualityLoss"}, "does not support place='rois'(.|\n)*extra"),
        (FASTER, FASTER, {"type": "BCKDLoss"}, "softmax"),
        (FASTER, FASTER, {**CLS, "place": "rois.1"}, "rois.0 to rois.0"),
        (FASTER, FASTER, MASKS, "it has no mask head"),
        (MASK, FASTER, MASKS, "teacher has no predictions(.|\n)*no mask head"),
        (FASTER, "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py", BOX, "teacher provides no boxes"),
        ("grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py", FASTER, BOX, "does not support place(.|\n)*boxes"),
        (TRIDENT, TRIDENT, {**CLS, "place": "rpn", "activation": "sigmoid"}, "once per branch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_first_step(
    student: str, teacher: str, loss: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pair(tmp_path, small(student), small(teacher), {"loss": loss})


def test_all_places_at_once(tmp_path: Path) -> None:
    """The config of docs/heads.md, for a teacher that knows more classes."""
    losses = {
        "cls": CLS,
        "box": BOX,
        "mask": MASKS,
        "rpn": {"type": "DistillationLoss", "place": "rpn", "region": "teacher"},
    }
    losses["neck"] = {"type": "PKDLoss"}
    classes = {"dataset_meta": {"classes": ("d", "c", "b", "a")}}
    model = pair(tmp_path, small(MASK), small(MASK, 4), losses, **classes)
    model.check_class_names({"classes": ("a", "b", "c")})
    model._classes_checked = True
    found = losses_of(model, batch())
    assert all(found[f"loss_kd_{name}"] > 0 for name in losses)


def test_the_page_names_all_roi_heads() -> None:
    page = (ROOT / "docs/heads.md").read_text()
    kinds = [name for name in roi_heads.__all__ if name.endswith("RoIHead") and name != "BaseRoIHead"]
    assert len(kinds) > 10
    for name in kinds:
        (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line]
        kind = getattr(roi_heads, name)
        why = PLACES["rois"].lacks(SimpleNamespace(roi_head=kind.__new__(kind)))
        assert why is not None, "without modules it has no box head, at least"
        assert (why != f"its {name} has no box head") == ("–: " in row.split("|")[2])


def test_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="different classes(.|\n)*3 classes, softmax(.|\n)*4 classes, softmax"
    ):
        pair(tmp_path, small(FASTER), small(FASTER, 4), {"cls": CLS})


@pytest.mark.parametrize(
    ("head", "reason"), [(SparseRoIHead, "learned queries"), (MultiInstanceRoIHead, "several objects")]
)
def test_other_kinds_of_regions(head: type, reason: str) -> None:
    detector = SimpleNamespace(roi_head=head.__new__(head))
    assert reason in str(PLACES["rois"].lacks(detector))
    assert reason in str(PLACES["masks"].lacks(detector))
