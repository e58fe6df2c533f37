"""One-stage detectors that find masks: what they predict at each position is distilled as dense maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.outputs import default_place, has_dense_head

from ..conftest import build
from ..detectors.test_kd_detector import distilled
from ..outputs.instances import DENSE, FAMILIES, batch, losses_of, opinionated, tiny, twins, unsettle
from .cases import stock


def losses(family: str, **options: Any) -> dict[str, Any]:
    """On all that its default place gives."""
    softmax = {"activation": "softmax"} if family == "YOLACT" else {}
    found = {
        "cls": {"type": "DistillationLoss", "region": "all", **softmax, **options},
        "assigned": {"type": "DistillationLoss", **softmax, **options},
        "neck": {"type": "PKDLoss", **options},
    }
    return {**found, "box": {"type": "BoxIoULoss", **options}} if family in DENSE else found


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_the_stock_student_bit_for_bit(family: str) -> None:
    masks = {"type": "DistillationLoss", "place": "prior_masks", "region": "all", "loss_weight": 0}
    distill = {**losses(family, loss_weight=0), "masks": masks}
    ours, stock_student = build(distilled(tiny(family), None, distill=distill)), build(tiny(family))
    found = []
    for model in (ours.train(), stock_student.train()):
        torch.manual_seed(1)
        values = losses_of(model)
        model.parse_losses(values)[0].backward()
        found.append((values, {name: p.grad for name, p in model.named_parameters()}, torch.rand(1)))
    (own, own_grads, own_random), (wanted, grads, random) = found
    assert all(own.pop(f"loss_kd_{name}") == 0 for name in distill)
    assert own.keys() == wanted.keys()
    for key, value in wanted.items():
        pairs = zip(own[key], value) if isinstance(value, list) else [(own[key], value)]
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(
        own_grads[name] is None if grad is None else torch.equal(own_grads[name], grad)
        for name, grad in grads.items()
    )
    assert own_random == random
    assert ours.state_dict().keys() == stock_student.state_dict().keys()


@pytest.mark.parametrize("family", DENSE)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path, family: str) -> None:
    model = twins(tiny(family), tmp_path, **losses(family))
    assert has_dense_head(model)
    names = [f"loss_kd_{name}" for name in model.distill]
    same = losses_of(model)
    assert all(abs(same[name]) < (1e-3 if name == "loss_kd_box" else 1e-6) for name in names)
    unsettle(model)
    with torch.no_grad():
        for parameter in model.neck.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    moved = losses_of(model)
    assert all(moved[name] > 1e-5 + 10 * abs(same[name]) for name in names)
    sum(moved[name] for name in names).backward()
    for part in (model.backbone, model.neck, model.bbox_head):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_rtmdet_learns_from_rtmdet_ins(tmp_path: Path) -> None:
    teacher = tiny("RTMDet-Ins")
    checkpoint = opinionated(tmp_path / "teacher.pth", teacher)
    cfg = distilled(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco.py"), checkpoint, distill=losses("RTMDet-Ins"))
    cfg.teacher.config.model = teacher
    cfg.teacher.precision = "fp32"
    model = build(cfg).train()
    data = model.data_preprocessor(batch(), True)
    for sample in data["data_samples"]:
        del sample.gt_instances.masks  # RTMDet is trained without
    seen = []
    model.distill.box.register_forward_pre_hook(lambda _, args: seen.append(args))
    found = model.loss(data["inputs"], data["data_samples"])
    assert all(torch.isfinite(found[f"loss_kd_{name}"]) for name in model.distill)
    with torch.no_grad():
        cls, bbox, *_ = model.teacher.model.bbox_head(model.teacher.model.extract_feat(data["inputs"]))
    _, taught, _ = seen[0]
    for ours, theirs in zip(taught.cls_logits or (), cls):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    widths_N2 = taught.flat_boxes()[:, 2:] - taught.flat_boxes()[:, :2]
    distances_N4 = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 4) for level in bbox])
    torch.testing.assert_close(widths_N2, distances_N4[:, :2] + distances_N4[:, 2:], rtol=1e-3, atol=1e-2)
    found["loss_kd_box"].backward()
    assert model.bbox_head.rtm_reg[0].weight.grad.any()
    assert default_place(model) == "dense"
