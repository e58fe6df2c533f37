from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmkd.errors import UserError
from mmkd.outputs.mask_readers import _logit_of_product

from ..conftest import build
from ..detectors.test_kd_detector import distilled
from ..heads.cases import stock
from .instances import FAMILIES, batch, losses_of, opinionated, tiny, twins, unsettle
from .test_grid import rows_of

PIXELS = {"type": "DistillationLoss", "place": "prior_masks", "region": "all"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_the_same_masks(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, masks=PIXELS)
    own, taught, _ = rows_of(model, "masks")
    assert own.cls_logits_NK.shape == taught.cls_logits_NK.shape
    assert len(own.cls_logits_NK) > 1000
    assert own.cls_logits_NK.std() > 0.01
    torch.testing.assert_close(own.cls_logits_NK, taught.cls_logits_NK, rtol=1e-3, atol=5e-3)
    unsettle(model)
    found = losses_of(model)["loss_kd_masks"]
    assert found > 2e-5
    found.backward()
    for part in (
        model.backbone,
        model.neck,
        model.mask_head if hasattr(model, "mask_head") else model.bbox_head,
    ):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "BoxInst"])  # it scores projections
def test_they_are_the_masks_that_the_students_own_loss_scores(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, masks=PIXELS)
    head = model.mask_head if hasattr(model, "mask_head") else model.bbox_head
    scored: list[torch.Tensor] = []
    if family == "YOLACT":  # whose loss is a function
        head.register_forward_hook(
            lambda _, __, output: scored.extend(masks_hwR.permute(2, 0, 1) for masks_hwR in output[0])
        )
    else:
        head.loss_mask.register_forward_pre_hook(lambda _, args: scored.append(args[0]))
    own, _, _ = rows_of(model, "masks")
    logits_N = own.cls_logits_NK[:, 0]
    if family == "RTMDet-Ins":  # which enlarges them first
        masks_Rhw = logits_N.reshape(1, -1, 16, 16)
        logits_N = F.interpolate(masks_Rhw, scale_factor=2, mode="bilinear", align_corners=False).flatten()
    if family == "YOLACT" or family.startswith("Decoupled"):
        logits_N = logits_N.sigmoid()
    if family == "SOLOv2":  # object by object; a cell of two objects twice
        own_Rp, wanted_Rp = logits_N.reshape(-1, 32 * 32), torch.cat(scored).flatten(1)
        distance_RR = (own_Rp[:, None] - wanted_Rp).abs().amax(dim=2)
        assert distance_RR.min(dim=1).values.max() < 0.01
        assert distance_RR.min(dim=0).values.max() < 0.01
        return
    wanted_N = torch.cat([part.flatten() for part in scored])
    torch.testing.assert_close(logits_N, wanted_N, rtol=1e-4, atol=1e-4)


def test_yolact_is_compared_where_it_learns_a_mask(tmp_path: Path) -> None:
    model = twins(tiny("YOLACT"), tmp_path, masks=PIXELS)
    cut = []
    crop = model.mask_head.crop_mask_preds
    model.mask_head.crop_mask_preds = lambda *args: cut.append(crop(*args)) or cut[-1]
    _, _, context = rows_of(model, "masks")
    assert torch.equal(context.valid_N, torch.cat([(one != 0).flatten() for one in cut[0]]))
    assert 0 < context.valid_N.float().mean() < 1


@pytest.mark.parametrize("family", ["SOLO", "SOLOv2", "CondInst"])
def test_pixels_in_the_padding_do_not_count(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, masks=PIXELS)
    own, _, context = rows_of(model, "masks", batch(128, one_size=False))
    assert context.valid_N[own.image_N == 0].all()
    share = context.valid_N[own.image_N == 1].float().mean()
    assert share == pytest.approx(0.75 * 0.5)  # 96 × 64 of 128 × 128


@pytest.mark.parametrize("family", ["SOLO", "SOLOv2", "CondInst", "RTMDet-Ins"])
def test_images_without_objects(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, masks=PIXELS)
    data = batch()
    for sample in data["data_samples"]:
        sample.gt_instances = sample.gt_instances[:0]
    value = losses_of(model, data)["loss_kd_masks"]
    value.backward()
    assert value == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_masks_of_another_size(tmp_path: Path) -> None:
    teacher = tiny("CondInst")
    teacher.mask_head.mask_out_stride = 8
    cfg = distilled(tiny("CondInst"), opinionated(tmp_path / "t.pth", teacher), distill={"masks": PIXELS})
    cfg.teacher.config.model = teacher
    own, taught, _ = rows_of(build(cfg).train(), "masks")
    assert len(own.cls_logits_NK) == len(taught.cls_logits_NK) > 0


def test_classes_need_not_agree() -> None:
    cfg = distilled(tiny("RTMDet-Ins"), None, distill={"masks": PIXELS})
    cfg.teacher.config.model = tiny("RTMDet-Ins", classes=5)
    assert torch.isfinite(losses_of(build(cfg).train())["loss_kd_masks"])


def test_the_logit_of_a_product() -> None:
    x, y = torch.randn(2, 100, dtype=torch.float64).mul(3).float()
    wanted = (x.double().sigmoid() * y.double().sigmoid()).logit()
    torch.testing.assert_close(_logit_of_product(x, y).double(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(_logit_of_product(torch.tensor(40.0), torch.tensor(40.0)))


def test_what_is_refused() -> None:
    teachers = {
        "CondInst": [
            (tiny("RTMDet-Ins"), "differ in levels"),
            (stock("retinanet/retinanet_r18_fpn_1x_coco.py"), "predicts no masks from points"),
        ],
        "SOLO": [(tiny("SOLOv2"), "different grids"), (tiny("CondInst"), "differ in levels")],
    }
    teachers["SOLO"][0][0].mask_head.num_grids = [8, 8, 6, 4, 3]
    for student, pairs in teachers.items():
        cfg = distilled(tiny(student), None, distill={"masks": PIXELS})
        for model, message in pairs:
            cfg.teacher.config.model = model
            with pytest.raises(UserError, match=message):
                build(cfg)
    with pytest.raises(UserError, match=r"place='prior_masks': it predicts no masks from points"):
        build(distilled(stock("retinanet/retinanet_r18_fpn_1x_coco.py"), None, distill={"masks": PIXELS}))
