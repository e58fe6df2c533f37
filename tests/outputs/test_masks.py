from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads import CascadeRoIHead
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs import default_place

from ..conftest import build
from .test_rois import MASKS, recorded, teacher_maps
from .two_stage import CASCADE_MASK, FASTER, HTC, MASK, MASK_C4, SCNET, batch, losses_of, pair, small

POINT_REND = "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py"


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all elements of logits."""
    q = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, q) - F.binary_cross_entropy_with_logits(teacher, q)
    return cross


def loss_masks(model: Any, data: Any) -> tuple[dict[str, Any], list[Tensor], list[tuple[Any, ...]]]:
    """The losses, and for each stage the regions of its masks and what its mask loss was given."""
    heads = model.roi_head.mask_head
    heads = list(heads) if isinstance(heads, torch.nn.ModuleList) else [heads]
    extractors = model.roi_head.mask_roi_extractor
    extractors = list(extractors) if isinstance(extractors, torch.nn.ModuleList) else [extractors]
    rois: list[Tensor] = []
    given: list[tuple[Any, ...]] = []
    handles = [e.register_forward_pre_hook(lambda _, args: rois.append(args[1])) for e in extractors]
    handles += [h.loss_mask.register_forward_pre_hook(lambda _, args: given.append(args)) for h in heads]
    found = losses_of(model, data)
    for handle in handles:
        handle.remove()
    return found, rois, given


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    return masks[torch.arange(len(labels)), labels]


def test_values_by_hand(tmp_path: Path) -> None:
    losses = {"all": MASKS, "object": {**MASKS, "region": "foreground"}}
    model = pair(tmp_path, small(MASK), small(MASK), losses)
    data = batch()
    found, (rois,), ((masks, target, labels),) = loss_masks(model, data)
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
    own, taught = of_class(masks, labels), of_class(said, labels)
    torch.testing.assert_close(found["loss_kd_all"], bernoulli_kl(own, taught) * 0.5)
    within = target > 0.5
    assert within.any()
    assert (~within).any()
    torch.testing.assert_close(found["loss_kd_object"], bernoulli_kl(own[within], taught[within]) * 0.5)


def test_masks_of_another_size_are_resized_to_the_students(tmp_path: Path) -> None:
    teacher = small(MASK)
    teacher.roi_head.mask_head.upsample_cfg = {"type": None}
    model = pair(tmp_path, small(MASK), teacher, {"mask": MASKS})
    data = batch()
    found, (rois,), ((masks, _, labels),) = loss_masks(model, data)
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
        assert said.shape[-1] == 14
        said = F.interpolate(of_class(said, labels)[:, None], (28, 28), mode="bilinear")[:, 0]
    torch.testing.assert_close(found["loss_kd_mask"], bernoulli_kl(of_class(masks, labels), said) * 0.5)


def test_a_cascade_teaches_another_student_the_mean_of_its_scores(tmp_path: Path) -> None:
    model = pair(tmp_path, small(MASK), small(CASCADE_MASK), {"mask": MASKS})
    data = batch()
    found, (rois,), ((masks, _, labels),) = loss_masks(model, data)
    roi_head = model.teacher.model.roi_head
    assert isinstance(roi_head, CascadeRoIHead)
    maps = teacher_maps(model, data)
    with torch.no_grad():
        scores = sum(roi_head._mask_forward(i, maps, rois)["mask_preds"].sigmoid() for i in range(3)) / 3
    taught = of_class(scores.logit(), labels)
    expected = bernoulli_kl(of_class(masks, labels), taught) * 0.5
    torch.testing.assert_close(found["loss_kd_mask"], expected, rtol=1e-4, atol=1e-6)


def test_a_cascade_learns_stage_by_stage(tmp_path: Path) -> None:
    losses = {"all": MASKS, "last": {**MASKS, "place": "masks.2"}}
    model = pair(tmp_path, small(CASCADE_MASK), small(CASCADE_MASK), losses)
    data = batch()
    found, rois, given = loss_masks(model, data)
    maps = teacher_maps(model, data)
    own, taught = [], []
    for stage, (rois_R5, (masks, _, labels)) in enumerate(zip(rois, given)):
        with torch.no_grad():
            said = model.teacher.model.roi_head._mask_forward(stage, maps, rois_R5)["mask_preds"]
        own.append(of_class(masks, labels))
        taught.append(of_class(said, labels))
    torch.testing.assert_close(found["loss_kd_last"], bernoulli_kl(own[2], taught[2]) * 0.5)
    torch.testing.assert_close(found["loss_kd_all"], bernoulli_kl(torch.cat(own), torch.cat(taught)) * 0.5)


def test_class_agnostic_masks(tmp_path: Path) -> None:
    agnostic = small(MASK)
    agnostic.roi_head.mask_head.class_agnostic = True
    data = batch()
    model = pair(tmp_path, small(MASK), agnostic, {"mask": MASKS})
    found, (rois,), ((masks, _, labels),) = loss_masks(model, data)
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
    torch.testing.assert_close(found["loss_kd_mask"], bernoulli_kl(of_class(masks, labels), said[:, 0]) * 0.5)

    model = pair(tmp_path, agnostic, small(MASK), {"mask": MASKS})
    with recorded(model) as seen:
        found, (rois,), ((masks, _, _),) = loss_masks(model, data)
    labels = seen["labels"][0][seen["labels"][0] < 3]
    assert len(labels) == len(masks)
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
    torch.testing.assert_close(found["loss_kd_mask"], bernoulli_kl(masks[:, 0], of_class(said, labels)) * 0.5)


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    meta = {"dataset_meta": {"classes": ("d", "c", "b", "a")}}
    model = pair(tmp_path, small(MASK), small(MASK, 4), {"mask": MASKS}, **meta)
    model.check_class_names({"classes": ("a", "b", "c")})
    model._classes_checked = True
    data = batch()
    found, (rois,), ((masks, _, labels),) = loss_masks(model, data)
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
    expected = bernoulli_kl(of_class(masks, labels), of_class(said, 3 - labels)) * 0.5
    torch.testing.assert_close(found["loss_kd_mask"], expected)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(MASK, HTC), (HTC, MASK), (SCNET, CASCADE_MASK), (MASK, SCNET), (POINT_REND, MASK), (CASCADE_MASK, HTC)],
)
def test_pairs_of_families(student: str, teacher: str, tmp_path: Path) -> None:
    model = pair(tmp_path, small(student), small(teacher), {"mask": MASKS})
    value = losses_of(model, batch())["loss_kd_mask"]
    assert value > 0
    value.backward()
    grads = [p.grad for p in model.roi_head.mask_head.parameters() if p.grad is not None]
    assert sum(grad.abs().sum() for grad in grads) > 0


def test_regions_of_a_shared_extractor(tmp_path: Path) -> None:
    """Mask R-CNN C4 takes the features of the box head's regions for its masks."""
    model = pair(tmp_path, small(MASK_C4), small(MASK_C4), {"mask": MASKS})
    assert model.roi_head.share_roi_extractor
    data = batch()
    with recorded(model) as seen:
        found, _, ((masks, _, labels),) = loss_masks(model, data)
    rois = seen["rois"][0][seen["labels"][0] < 3]
    with torch.no_grad():
        said = model.teacher.model.roi_head._mask_forward(teacher_maps(model, data), rois)["mask_preds"]
    expected = bernoulli_kl(of_class(masks, labels), of_class(said, labels)) * 0.5
    torch.testing.assert_close(found["loss_kd_mask"], expected, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit(tmp_path: Path) -> None:
    assert default_place(build(small(MASK))) == "rois"
    with pytest.raises(UserError, match="does not support place='masks'(.|\n)*boxes"):
        pair(tmp_path, small(MASK), small(MASK), {"box": {"type": "BoxIoULoss", "place": "masks"}})
    with pytest.raises(UserError, match="softmax"):
        pair(tmp_path, small(MASK), small(MASK), {"mask": {**MASKS, "activation": "softmax"}})
    with pytest.raises(UserError, match="different classes"):
        pair(tmp_path, small(MASK), small(MASK, 4), {"mask": MASKS})
    with pytest.raises(UserError, match="has no mask head"):
        pair(tmp_path, small(FASTER), small(MASK), {"mask": MASKS})
    agnostic = small(HTC)
    for head in agnostic.roi_head.mask_head:
        head.class_agnostic = True
    with pytest.raises(UserError, match="does not expose their classes"):
        pair(tmp_path, agnostic, small(HTC), {"mask": MASKS})
