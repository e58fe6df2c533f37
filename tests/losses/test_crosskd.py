from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from mmkd.errors import UserError
from mmkd.functional.crossed import match_statistics
from mmkd.functional.kl import kl_divergence
from mmkd.heads import adapter_for
from mmkd.losses.crosskd import CrossKDLoss
from mmkd.registry import MODELS
from mmkd.structures import OF_CONTEXT, DenseOutputs, Need, Valid

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..heads.cases import stock
from .contract import only, only_of_context
from .rows import NORMALIZERS, REGIONS, row_case, row_loss

KL = {"type": "DistillationLoss", "region": "all", "normalizer": "priors", "loss_weight": 1}


def crossed(layer: int = 1, **losses: Any) -> dict[str, Any]:
    return {"x": {"type": "CrossKDLoss", "layer": layer, "losses": losses or {"cls": KL}}}


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "LocalizationDistillationLoss"},
        {"type": "LocalizationDistillationLoss", "region": "main"},
        {"type": "LocalizationDistillationLoss", "region": "vlr"},
        *({"type": "BoxIoULoss", "region": r} for r in ("teacher", "foreground", "teacher_foreground")),
        *({"type": "DistillationLoss", "region": r} for r in ("all", "foreground", "teacher")),
        {"type": "BCKDLoss"},
        {"type": "DKDLoss"},
        {"type": "DISTLoss"},
    ],
    ids=lambda loss: "-".join(map(str, loss.values())),
)
def test_each_loss_on_outputs_alone(loss: dict[str, Any]) -> None:
    """What crosses has the parts that the one loss reads, and no others."""
    cfg = stock("gfl/gfl_r50_fpn_1x_coco.py", deep=True)
    model = build(distilled(cfg, cfg, distill=crossed(x=loss)))
    value = losses_of(model, batch())["loss_kd_x"]
    assert torch.isfinite(value)
    value.backward()


@pytest.mark.parametrize("layer", [1, 2])
def test_written_out_for_atss(tmp_path: Path, layer: int) -> None:
    """The student's features go through what is left of the teacher's towers and its predictors."""
    student_cfg = tiny_atss(bbox_head__stacked_convs=2)
    checkpoint = save_teacher(tmp_path / "t.pth", tiny_teacher())
    model = build(distilled(student_cfg, tiny_teacher(), checkpoint, distill=crossed(layer)))
    teacher = build(tiny_teacher()).eval()
    teacher.load_state_dict(torch.load(checkpoint)["state_dict"])
    data = batch((96, 128), (96, 128))
    found = losses_of(model, data)["loss_kd_x"]

    inputs = model.data_preprocessor(data, True)["inputs"]
    head, taught_head = model.bbox_head, teacher.bbox_head
    all_crossed, all_taught = [], []
    with torch.no_grad():
        for own, taught in zip(model.extract_feat(inputs), teacher.extract_feat(inputs)):
            for conv in head.cls_convs[:layer]:
                own = conv(own)
            for conv in taught_head.cls_convs[:layer]:
                taught = conv(taught)
            mean_s, std_s = own.mean((0, 2, 3), True), own.std((0, 2, 3), keepdim=True)
            mean_t, std_t = taught.mean((0, 2, 3), True), taught.std((0, 2, 3), keepdim=True)
            own = F.relu((own - mean_s) / (std_s + 1e-6) * std_t + mean_t)
            for conv in taught_head.cls_convs[layer:]:
                own, taught = conv(own), conv(taught)
            for x, logits in ((own, all_crossed), (taught, all_taught)):
                logits.append(taught_head.atss_cls(x).permute(0, 2, 3, 1).reshape(-1, 3))
    # Every prior of these images is valid.
    wanted = kl_divergence(torch.cat(all_crossed), torch.cat(all_taught), activation="sigmoid")
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_gradient_reaches_the_students_towers_and_no_further_than_the_layer(tmp_path: Path) -> None:
    checkpoint = save_teacher(tmp_path / "t.pth", tiny_teacher())
    losses = {"cls": KL, "box": {"type": "BoxIoULoss"}, "quality": {"type": "QualityLoss"}}
    student = tiny_atss(bbox_head__stacked_convs=2)
    model = build(distilled(student, tiny_teacher(), checkpoint, distill=crossed(1, **losses)))
    losses_of(model, batch())["loss_kd_x"].backward()
    head = model.bbox_head
    for name in ("cls_convs", "reg_convs"):
        first, second = getattr(head, name)
        assert first.conv.weight.grad.abs().sum() > 0
        assert second.conv.weight.grad is None
    assert head.atss_cls.weight.grad is None
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())
    first_layer = model.teacher.head.cls_convs[0]
    assert hasattr(first_layer, "conv"), "the teacher's layers are back in their place"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_where_the_student_is_its_own_teacher(tmp_path: Path, precision: str) -> None:
    checkpoint = save_teacher(tmp_path / "t.pth", tiny_teacher())
    cfg = distilled(tiny_teacher(), tiny_teacher(), checkpoint, distill=crossed(1))
    cfg.teacher.precision = precision
    model = build(cfg)
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    model.backbone.eval()
    loss = losses_of(model, batch())["loss_kd_x"]
    assert loss < (1e-4 if precision == "fp32" else 0.05)
    model = build(cfg)
    assert losses_of(model, batch())["loss_kd_x"] > 0.1, "another student"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 0}, "layer must be"),
        ({"align": "yes"}, "align must be True or False, found 'yes'"),
        ({"losses": {}}, "losses` has no losses"),
        ({"losses": {"f": {"type": "PKDLoss"}}}, "only compares head outputs"),
        ({"losses": {"f": {"type": "NoLoss"}}}, r"losses\.f is not a distillation loss"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODELS.build({"type": "CrossKDLoss", "losses": {"cls": KL}, **options})


def test_heads_that_cannot_be_crossed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot split the student's head after layer 3(.|\n)*up to 1"):
        build(distilled(tiny_atss(), tiny_teacher(), None, distill=crossed(3)))
    wide = tiny_teacher(bbox_head__feat_channels=96)
    model = build(distilled(tiny_atss(), wide, None, distill=crossed(1)))
    with pytest.raises(UserError, match="towers of equal width"):
        losses_of(model, batch())
    cfg = distilled(tiny_atss(), tiny_teacher(), None, distill=crossed(1))
    cfg.teacher.cache = {"dir": str(tmp_path)}
    with pytest.raises(UserError, match="CrossKD"):
        build(cfg)


def test_heads_with_other_priors(tmp_path: Path) -> None:
    """Both sides have the teacher's priors: one at each place, where the student has nine."""
    student_cfg, teacher_cfg = (
        stock(name, deep=True)
        for name in ("retinanet/retinanet_r50_fpn_1x_coco.py", "atss/atss_r50_fpn_1x_coco.py")
    )
    checkpoint = save_teacher(tmp_path / "t.pth", teacher_cfg)
    model = build(distilled(student_cfg, teacher_cfg, checkpoint, distill=crossed(3)))
    teacher = build(teacher_cfg).eval()
    teacher.load_state_dict(torch.load(checkpoint)["state_dict"])
    data = batch((64, 128), (128, 96))  # each is padded
    found = losses_of(model, data)["loss_kd_x"]

    given = model.data_preprocessor(data, True)
    head, taught_head = model.bbox_head, teacher.bbox_head
    all_crossed, all_taught = [], []
    with torch.no_grad():
        taught_levels = teacher.extract_feat(given["inputs"])
        for own, taught in zip(model.extract_feat(given["inputs"]), taught_levels):
            for own_conv, taught_conv in zip(head.cls_convs[:3], taught_head.cls_convs[:3]):
                own, taught = own_conv(own), taught_conv(taught)
            own = F.relu(match_statistics(own, taught))
            own, taught = taught_head.cls_convs[3](own), taught_head.cls_convs[3](taught)
            all_crossed.append(taught_head.atss_cls(own))
            all_taught.append(taught_head.atss_cls(taught))
    shapes = [sample.img_shape for sample in given["data_samples"]]
    valid_N = adapter_for(taught_head).valid_priors(taught_head, all_taught, shapes)
    assert 0 < valid_N.sum() < len(valid_N)
    flat = [
        torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])[valid_N]
        for levels in (all_crossed, all_taught)
    ]
    torch.testing.assert_close(found, kl_divergence(*flat, activation="sigmoid"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        {**KL, "region": "foreground"},
        {**KL, "valid": "loss"},
        {**KL, "normalizer": "foreground"},
    ],
    ids=["region", "valid", "normalizer"],
)
def test_other_priors_have_no_assigned_objects(loss: dict[str, Any]) -> None:
    student = stock("retinanet/retinanet_r50_fpn_1x_coco.py", deep=True)
    teacher = stock("atss/atss_r50_fpn_1x_coco.py", deep=True)
    with pytest.raises(UserError, match=r"differ in base priors(.|\n)*\(9, (.|\n)*\(1, "):
        build(distilled(student, teacher, None, distill=crossed(3, cls=loss)))
    cfg = distilled(student, teacher, None, distill=crossed(3))
    cfg.distill["own"] = KL
    with pytest.raises(UserError, match="differ in base priors"):
        build(cfg)


@pytest.mark.parametrize(("name", "region"), REGIONS)
def test_every_loss_on_rows_in_every_option(name: str, region: str) -> None:
    """What crosses, the teacher and the batch have the parts that are asked for, and no others."""
    student, teacher, context = row_case(name)
    tower = {"cls_convs": [student.feats], "reg_convs": [student.feats]}
    for normalizer, valid in product(NORMALIZERS, get_args(Valid)):
        inner = {"type": name, "loss_weight": 1, "region": region, "normalizer": normalizer, "valid": valid}
        loss = CrossKDLoss({"x": inner}, layer=1, loss_weight=2)
        asked: list[frozenset[Need]] = []

        def cross(layer: int, towers: Any, parts: frozenset[Need]) -> DenseOutputs:
            asked.append(parts)  # noqa: B023
            return only(parts, student)

        given = replace(only_of_context(loss, context), crossed=cross)
        value = loss(
            replace(only(frozenset(), student), towers=tower),
            replace(only(loss.needs, teacher), towers=tower),
            given,
        )
        plain = row_loss(name, 1.0, region=region, normalizer=normalizer, valid=valid)
        torch.testing.assert_close(value, 2 * plain(student, teacher, only_of_context(plain, context)))
        assert asked == [plain.needs - OF_CONTEXT]
