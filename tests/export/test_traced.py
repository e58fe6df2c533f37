"""Each supported head, exported with random weights, finds what PyTorch finds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.errors import UserError
from mmkd.export import HEADS, OnnxDetector, check_exportable, export_onnx, torch_detector

from ..conftest import SOAK, build
from ..heads.cases import CASES, Case, built, stock

QUICK = ("FCOSHead", "GFLHead", "RetinaHead")
MORE = (
    Case("RTMDetHead", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py"),
    Case("RetinaSepBNHead", "nas_fpn/retinanet_r50_fpn_crop640-50e_coco.py"),
)
MARKS: dict[str, Any] = {**dict.fromkeys(QUICK, ()), "RTMDetSepBNHead": pytest.mark.slow}
SERVED = [case for case in (*CASES, *MORE) if case.head.partition(",")[0] in HEADS]


def same_boxes(found: Any, wanted: Any, slack: float = 1.0) -> bool:
    """Whether each box of one has its like in the other, in whatever order equal scores come."""
    near = (found.bboxes[:, None] - wanted.bboxes[None]).abs().amax(-1) < 1e-2 * slack
    near &= (found.scores[:, None] - wanted.scores[None]).abs() < 1e-4 * slack
    near &= found.labels[:, None] == wanted.labels[None]
    return len(found) == len(wanted) and bool(near.any(0).all() and near.any(1).all())


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.head, marks=MARKS.get(c.head, [pytest.mark.soak, SOAK])) for c in SERVED],
)
def test_every_head_that_is_said_to_be_served(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = of_head(case)
    # Ties at the limit are cut by chance.
    model.bbox_head.test_cfg.update(score_thr=0.001, max_per_img=10_000)
    images_N3HW = torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8)
    slack = 1.0
    if case.head.startswith(("RTMDet", "YOLOV3")):  # else what they find is the same everywhere
        small_N3HW = torch.rand(2, 3, 8, 12) * 255
        images_N3HW = F.interpolate(small_N3HW, (128, 192), mode="bilinear").to(torch.uint8)
        see(model, images_N3HW)
        slack = 10.0  # random weights and an exponential make much of the last digits
    export_onnx(model, tmp_path / "out.onnx", "abc", pixels="bgr")
    found = OnnxDetector(tmp_path / "out.onnx")
    # mmdet cannot take this size unless something pads; in the file nothing has to.
    model.data_preprocessor.pad_size_divisor = max(model.data_preprocessor.pad_size_divisor, 32)
    odd_N3HW = images_N3HW[:1, :, :115, :170] if hasattr(model.neck, "upsample") else images_N3HW[:1]
    for images in (images_N3HW, odd_N3HW):
        for ours, theirs in zip(found(images), torch_detector(model)(images), strict=True):
            assert len(theirs) > (20 if images is images_N3HW else 5)
            assert same_boxes(ours, theirs, slack)


def test_every_head_has_a_case() -> None:
    assert {case.head.partition(",")[0] for case in SERVED} == set(HEADS)


def of_head(case: Case) -> Any:
    """A detector whose head has opinions; those of `MORE` are in no stock config, or not among the cases."""
    if case not in MORE:
        return built.__wrapped__(case)[0]  # whichever test came first, the same weights
    cfg = stock(case.config)
    if case.head == "RTMDetHead":
        cfg.bbox_head.type = case.head
        for option in ("share_conv", "pred_kernel_size", "exp_on_reg"):
            cfg.bbox_head.pop(option, None)
    model = build(cfg).eval()
    for parameter in model.bbox_head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def see(model: Any, images_N3HW: Tensor) -> None:
    """Take the statistics of these images, so that what is found differs from place to place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    inputs = model.data_preprocessor({"inputs": list(images_N3HW), "data_samples": None}, False)["inputs"]
    model.train()
    with torch.no_grad():
        model.bbox_head(model.extract_feat(inputs))
    model.eval()


def test_no_box_at_all(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.head == "RetinaHead")
    model = copy.deepcopy(built(case)[0])
    model.bbox_head.test_cfg.score_thr = 0.9
    export_onnx(model, tmp_path / "out.onnx", "abc")
    (found,) = OnnxDetector(tmp_path / "out.onnx")(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    assert found.bboxes.shape == (0, 4)


def test_what_is_not_served() -> None:
    paa = build(stock(next(case.config for case in CASES if case.head == "PAAHead")))
    with pytest.raises(UserError, match="one of ATSSHead, .*\n.*with PAAHead"):
        check_exportable(paa)
    soft = copy.deepcopy(built(SERVED[0])[0])
    soft.bbox_head.test_cfg.nms = {"type": "soft_nms", "iou_threshold": 0.5}
    with pytest.raises(UserError, match="kind of NMS"):
        check_exportable(soft)
