from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.outputs.mask_queries import on_image
from mmkd.structures import DistillContext, RowOutputs

from ..conftest import build
from ..detectors.test_kd_detector import distilled
from .queries import OF_MASKS, batch, last_part, losses_of, parts, tiny, twins, unsettle
from .test_queries import on_logits

PIXELS = {"type": "DistillationLoss", "region": "all", "loss_weight": 1.0}


def rows_of(model: Any, data: Any = None) -> tuple[RowOutputs, RowOutputs, DistillContext]:
    """What the loss named ``masks`` is given in one step."""
    seen = []
    handle = model.distill.masks.register_forward_pre_hook(lambda _, args: seen.append(args))
    losses_of(model, data)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", OF_MASKS)
def test_a_student_that_is_its_teacher_has_the_same_masks(tmp_path: Path, family: str) -> None:
    place = {"place": f"query_masks.{last_part(family)}"}
    model = twins(tiny(family), tmp_path, masks={**PIXELS, **place})
    found = losses_of(model)["masks"]
    assert found < 1e-5
    unsettle(model)
    moved = losses_of(model)["masks"]
    assert moved > 10 * found
    moved.backward()
    for part in parts(model).values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("family", OF_MASKS)
def test_a_row_is_a_pixel_of_a_query_with_an_object(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, masks={**PIXELS, "place": "query_masks"})
    data = batch()
    own, taught, context = rows_of(model, copy.deepcopy(data))
    objects = sum(len(sample.gt_instances) for sample in data["data_samples"])
    pixels = (96 // 4) * (128 // 4)
    assert len(own.cls_logits_NK) == objects * pixels * (last_part(family) + 1)
    assert own.cls_logits_NK.shape == taught.cls_logits_NK.shape
    assert own.image_N.shape == context.valid_N.shape
    assert context.valid_N[own.image_N == 0].all(), "the first image fills the batch"
    share = context.valid_N[own.image_N == 1].float().mean()
    assert share == 80 * 96 / (96 * 128)


def test_classes_and_masks_are_asked_and_matched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = {"masks": {**PIXELS, "place": "query_masks"}}
    calls: list[str] = []

    def steps(**losses: Any) -> list[str]:
        model = twins(tiny("Mask2Former"), tmp_path, **losses)
        losses_of(model)  # in the first step the teacher makes sure of its accelerations
        model.teacher.model.panoptic_head.register_forward_hook(lambda *_: calls.append("teacher"))
        assigner = model.panoptic_head.assigner
        assign = assigner.assign
        monkeypatch.setattr(assigner, "assign", lambda *a, **k: calls.append("match") or assign(*a, **k))
        calls.clear()
        losses_of(model)
        return sorted(calls)

    alone = steps(**masks)
    assert alone.count("teacher") == 1
    assert alone.count("match") > 0
    assert steps(cls=on_logits("Mask2Former"), **masks) == alone


def test_pixels_in_the_padding() -> None:
    class Sample:
        img_shape, batch_input_shape = (6, 5), (8, 8)

    found = on_image(torch.zeros(1, 4, 4), [Sample()])
    assert found[0].tolist() == [[True, True, True, False]] * 3 + [[False] * 4]


def test_masks_of_another_size() -> None:
    teacher = tiny("Mask2Former", queries=14)
    teacher.backbone.out_indices, teacher.backbone.strides = (0, 1, 2, 3), (2, 2, 2, 2)
    cfg = distilled(tiny("Mask2Former"), None, distill={"masks": {**PIXELS, "place": "query_masks"}})
    cfg.teacher.config.model = teacher
    own, taught, _ = rows_of(build(cfg).train())
    assert len(own.cls_logits_NK) == len(taught.cls_logits_NK) > 0


def test_images_without_objects(tmp_path: Path) -> None:
    model = twins(tiny("Mask2Former"), tmp_path, masks={**PIXELS, "place": "query_masks"})
    data = batch()
    for sample in data["data_samples"]:
        sample.gt_instances = sample.gt_instances[:0]
    value = losses_of(model, data)["masks"]
    value.backward()
    assert value == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_students_random_numbers_stay() -> None:
    after = []
    for weight in (0, 1):
        losses = {"cls": on_logits("Mask2Former", loss_weight=weight)}
        model = build(distilled(tiny("Mask2Former"), None, distill=losses)).train()
        torch.manual_seed(1)
        losses_of(model)
        after.append(torch.rand(1))
    assert after[0] == after[1]


def test_what_is_refused() -> None:
    masks = {"masks": {**PIXELS, "place": "query_masks"}}
    with pytest.raises(UserError, match="it has no mask queries"):
        build(distilled(tiny("DABDETR"), None, distill=masks))
    cfg = distilled(tiny("Mask2Former"), None, distill={"box": {"type": "BoxIoULoss", "place": "queries"}})
    with pytest.raises(UserError, match=r"place='queries' of the student(.|\n)*needs boxes"):
        build(cfg)
    cfg.distill = {"cls": on_logits("Mask2Former")}
    cfg.teacher.config.model = tiny("DETR")
    with pytest.raises(UserError, match=r"represent different things(.|\n)*masks(.|\n)*boxes"):
        build(cfg)
