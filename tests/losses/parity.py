"""Published formulas in float64, written out, beside the options of mmkd that give their numbers.

``python -m tests.losses.parity`` prints the table of docs/parity.md.

Shape suffixes: N priors, K classes, R bins of a side's distribution, B×C×H×W maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.losses import DistillLoss
from mmkd.registry import MODELS

from .contract import Case, make_case
from .test_ld import case_with_objects

Formula = Callable[[Any, Any, Any, DistillLoss], Tensor]


@dataclass(frozen=True)
class Row:
    """A published loss.

    Attributes:
        loss: what it is.
        reference: where it is.
        config: ours.
        formula: it, from outputs of student and teacher, the context, and our loss for its random layers.
        part: of the outputs, whose gradient is compared.
        offset: the value differs by a constant; only gradients are compared.
    """

    loss: str
    reference: str
    config: dict[str, Any]
    formula: Formula
    part: str = "cls_logits"
    offset: bool = False


def parity_case(part: str = "cls_logits") -> Case:
    """Two images; some priors in the padding, some ignored; no object on the second level."""
    if part == "bbox_pred":
        student, teacher, context = case_with_objects(bins=5)
        for sample in context.data_samples:
            sample.set_metainfo({"pad_shape": (48, 64)})
    else:
        student, teacher, context = make_case(priors=1, channels=(6, 6))
    N = len(context.valid_N)
    generator = torch.Generator().manual_seed(7)
    scored_N = torch.rand(N, generator=generator) > 0.1
    labels_N = context.labels_N.clone()
    first = sum(level.shape[0] * level.shape[2] * level.shape[3] for level in student.cls_logits[:1])
    if part != "bbox_pred":
        labels_N[first:] = student.spec.num_classes
    context = replace(
        context,
        labels_N=labels_N,
        padded_N=context.valid_N | (torch.rand(N, generator=generator) > 0.5),
        scored_N=scored_N,
        quality_sum=torch.tensor(7.25),
    )
    return student, teacher, context


def rows_of(levels: Any) -> Tensor:
    """(N, D): levels, images, rows, columns; one prior per position."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in levels])


def is_object(student: Any, context: Any) -> Tensor:
    return context.labels_N < student.spec.num_classes


def num_pos(student: Any, context: Any) -> Tensor:
    object_N = is_object(student, context)
    return student.image_N[object_N].bincount(minlength=context.num_images).clamp(min=1).sum()


def qfl_kd(student: Any, teacher: Any, weight_N: Tensor, divisor: Any) -> Tensor:
    """``kd_quality_focal_loss`` of CrossKD, ``NovelKDLoss`` of BCKD; β = 1."""
    z_NK, target_NK = rows_of(student.cls_logits), rows_of(teacher.cls_logits).sigmoid()
    bce_NK = -target_NK * F.logsigmoid(z_NK) - (1 - target_NK) * F.logsigmoid(-z_NK)
    return (weight_N[:, None] * (z_NK.sigmoid() - target_NK).abs() * bce_NK).sum() / divisor


def crosskd_cls(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    return qfl_kd(student, teacher, context.scored_N.double(), num_pos(student, context))


def crosskd_fcos_cls(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    return 0.4 * qfl_kd(student, teacher, context.scored_N.double(), context.quality_sum)


def bckd_levels(student: Any, context: Any) -> Tensor:
    counts = [level.shape[0] * level.shape[2] * level.shape[3] for level in student.cls_logits]
    parts = is_object(student, context).split(counts)
    return torch.cat([torch.full((len(part),), float(part.any())).double() for part in parts])


def bckd_cls(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    weight_N = bckd_levels(student, context) * context.padded_N
    return qfl_kd(student, teacher, weight_N, num_pos(student, context))


def iou_and_giou(a_N4: Tensor, b_N4: Tensor) -> tuple[Tensor, Tensor]:
    def area(box: Tensor) -> Tensor:
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    low, high = torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])
    both_N = (high - low).clamp(min=0).prod(dim=1)
    union_N = area(a_N4) + area(b_N4) - both_N
    span_N2 = torch.maximum(a_N4[:, 2:], b_N4[:, 2:]) - torch.minimum(a_N4[:, :2], b_N4[:, :2])
    hull_N = span_N2.prod(dim=1)
    iou_N = both_N / union_N
    return iou_N, iou_N - (hull_N - union_N) / hull_N


def top_score(outputs: Any) -> Tensor:
    return rows_of(outputs.cls_logits).sigmoid().amax(dim=1)


def crosskd_box(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    _, giou_N = iou_and_giou(rows_of(student.boxes), rows_of(teacher.boxes))
    weight_N = top_score(teacher) * context.scored_N
    return (weight_N * (1 - giou_N)).sum() / num_pos(student, context)


def crosskd_fcos_box(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    iou_N, _ = iou_and_giou(rows_of(student.boxes), rows_of(teacher.boxes))
    weight_N = top_score(teacher) * context.scored_N
    return 0.75 * (weight_N * -iou_N.clamp(min=1e-6).log()).sum() / context.quality_sum


def bckd_box(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    _, giou_N = iou_and_giou(rows_of(student.boxes), rows_of(teacher.boxes))
    gap_NK = rows_of(student.cls_logits).sigmoid() - rows_of(teacher.cls_logits).sigmoid()
    weight_N = gap_NK.abs().amax(dim=1).detach() * context.padded_N * bckd_levels(student, context)
    return 4 * (weight_N * (1 - giou_N)).sum() / num_pos(student, context)


def crosskd_centerness(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    z_N, t_N = rows_of(student.extra["centerness"])[:, 0], rows_of(teacher.extra["centerness"])[:, 0]
    weight_N = is_object(student, context) * context.scored_N
    ce_N = F.binary_cross_entropy_with_logits(z_N, t_N.sigmoid(), reduction="none")
    return (weight_N * ce_N).sum() / num_pos(student, context)


def side_kl(student: Any, teacher: Any, temperature: float) -> Tensor:
    """(N, 4): T² Σ_r p^t log(p^t / p^s)."""
    z, t = (rows_of(one.bbox_pred).unflatten(1, (4, -1)) / temperature for one in (student, teacher))
    return temperature**2 * (t.softmax(2) * (t.log_softmax(2) - z.log_softmax(2))).sum(dim=2)


def crosskd_gfl_box(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    weight_N = top_score(teacher) * context.scored_N
    per_side = weight_N[:, None] * side_kl(student, teacher, 1.0)
    return 4.0 * per_side.sum() / 4.0 / weight_N.sum()


def ld_main(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    bins = student.bbox_pred[0].shape[1] // 4
    weight_N = top_score(student).detach() * is_object(student, context) * context.valid_N
    per_side = weight_N[:, None] * side_kl(student, teacher, 10.0) / bins
    return 0.25 * per_side.sum() / 4.0


def hinton(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    z, t = rows_of(student.cls_logits) / 2, rows_of(teacher.cls_logits) / 2
    kl_N = (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum(dim=1)
    return 4 * (kl_N * context.valid_N).sum() / context.valid_N.sum()


def kd_detr_cls(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    """``KDCriterion.loss_kl_div`` of KD-DETR, weighted by the teacher's score."""
    own, taught = (rows_of(outputs.cls_logits) / 10 for outputs in (student, teacher))
    kl_NK = F.kl_div(own.log_softmax(1), taught.softmax(1), reduction="none")
    return (kl_NK.mean(1) * 100 * top_score(teacher) * context.valid_N).sum()


def kd_detr_l1(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    """``KDCriterion.loss_boxes`` of KD-DETR, of center and size relative to the image."""
    height, width = context.data_samples[0].img_shape
    x1, y1, x2, y2 = (rows_of(student.boxes) - rows_of(teacher.boxes)).unbind(1)
    distances = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    weight_N = top_score(teacher) * context.valid_N
    return 5 * (torch.stack(distances, 1).abs().mean(1) * weight_N).sum() / weight_N.sum()


def kd_detr_giou(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    _iou, giou_N = iou_and_giou(rows_of(student.boxes), rows_of(teacher.boxes))
    weight_N = top_score(teacher) * context.valid_N
    return 2 * ((1 - giou_N) * weight_N).sum() / weight_N.sum()


def pkd(student: Any, teacher: Any, _: Any, __: Any) -> Tensor:
    def normal(level: Tensor) -> Tensor:
        flat = level.permute(1, 0, 2, 3).flatten(1)
        return (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)

    pairs = zip(student.feats, teacher.feats)
    return 6 * torch.stack([F.mse_loss(normal(a), normal(b)) / 2 for a, b in pairs]).sum()


def cwd(student: Any, teacher: Any, _: Any, __: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(student.feats, teacher.feats):
        B, C = a.shape[:2]
        z, t = a.reshape(B * C, -1), b.reshape(B * C, -1)
        total = total + (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum() / (B * C)
    return total


def dist(student: Any, teacher: Any, context: Any, _: Any) -> Tensor:
    rows = (is_object(student, context) & context.valid_N).nonzero().squeeze(1)
    a, b = (rows_of(one.cls_logits)[rows].softmax(dim=1) for one in (student, teacher))

    def distance(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return 1 - ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).mean()

    return distance(a, b) + distance(a.t(), b.t())


def mgd(channels: bool) -> Formula:
    def formula(student: Any, teacher: Any, _: Any, loss: DistillLoss) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for generate, a, b in zip(loss.generators, student.feats, teacher.feats):  # type: ignore[arg-type]
            B, C, H, W = a.shape
            keep = (torch.rand(*((B, C, 1, 1) if channels else (B, 1, H, W))) >= 0.65).double()
            total = total + (generate(a * keep) - b).square().sum() / B
        return 2e-5 * total

    return formula


CROSSKD = "jbwang1997/CrossKD"
KD_DETR = "Myleswork/KD-DETR `kd_loss.py`"
BCKD = "TinyTigerPan/BCKD `ld_head.py`"
ROWS = (
    Row(
        "KL of softmaxes over priors",
        "Hinton et al., 2015, eq. 4 with T²",
        {
            "type": "DistillationLoss",
            "activation": "softmax",
            "temperature": 2,
            "region": "all",
            "loss_weight": 1,
        },
        hinton,
    ),
    Row(
        "CrossKD, class logits (ATSS, GFL, RetinaNet)",
        f"{CROSSKD} `crosskd_atss.py`",
        {"type": "BCKDLoss", "valid": "loss"},
        crosskd_cls,
    ),
    Row(
        "CrossKD, boxes (ATSS, RetinaNet)",
        f"{CROSSKD} `crosskd_atss.py`",
        {"type": "BoxIoULoss", "loss_weight": 1, "normalizer": "foreground", "valid": "loss"},
        crosskd_box,
        "boxes",
    ),
    Row(
        "CrossKD, centerness (ATSS)",
        f"{CROSSKD} `crosskd_atss.py`",
        {"type": "QualityLoss", "normalizer": "foreground", "valid": "loss"},
        crosskd_centerness,
        "centerness",
        offset=True,
    ),
    Row(
        "CrossKD, class logits (FCOS)",
        f"{CROSSKD} `crosskd_fcos.py`",
        {"type": "BCKDLoss", "loss_weight": 0.4, "normalizer": "centerness", "valid": "loss"},
        crosskd_fcos_cls,
    ),
    Row(
        "CrossKD, boxes (FCOS)",
        f"{CROSSKD} `crosskd_fcos.py`",
        {
            "type": "BoxIoULoss",
            "loss_weight": 0.75,
            "overlap": "log_iou",
            "normalizer": "centerness",
            "valid": "loss",
        },
        crosskd_fcos_box,
        "boxes",
    ),
    Row(
        "CrossKD, box distributions (GFL)",
        f"{CROSSKD} `crosskd_gfl.py`",
        {
            "type": "LocalizationDistillationLoss",
            "loss_weight": 4,
            "region": "teacher",
            "teacher_weight": 1,
            "temperature": 1,
            "valid": "loss",
        },
        crosskd_gfl_box,
        "bbox_pred",
    ),
    Row(
        "BCKD, class logits",
        BCKD,
        {"type": "BCKDLoss", "every_level": False, "valid": "pad"},
        bckd_cls,
    ),
    Row(
        "BCKD, boxes",
        BCKD,
        {
            "type": "BoxIoULoss",
            "loss_weight": 4,
            "region": "disagreement",
            "normalizer": "foreground",
            "every_level": False,
            "valid": "pad",
        },
        bckd_box,
        "boxes",
    ),
    Row(
        "LD, main region",
        "HikariTJU/LD `ld_head.py`",
        {
            "type": "LocalizationDistillationLoss",
            "region": "main",
            "normalizer": "none",
            "main_weight": 0.25 / 5,
        },
        ld_main,
        "bbox_pred",
    ),
    Row(
        "KD-DETR, class logits",
        KD_DETR,
        {
            "type": "DistillationLoss",
            "loss_weight": 1,
            "activation": "softmax",
            "temperature": 10,
            "region": "teacher",
            "normalizer": "none",
            "reduction": "mean",
        },
        kd_detr_cls,
    ),
    Row(
        "KD-DETR, boxes, L1",
        KD_DETR,
        {"type": "BoxL1Loss", "loss_weight": 1.25},
        kd_detr_l1,
        "boxes",
    ),
    Row("KD-DETR, boxes, GIoU", KD_DETR, {"type": "BoxIoULoss"}, kd_detr_giou, "boxes"),
    Row(
        "PKD",
        "mmrazor `PKDLoss`",
        {"type": "PKDLoss", "unbiased": True},
        pkd,
        "feats",
    ),
    Row(
        "CWD",
        "mmrazor `ChannelWiseDivergence`",
        {"type": "CWDLoss", "loss_weight": 1, "temperature": 1},
        cwd,
        "feats",
    ),
    Row(
        "DIST",
        "hunto/DIST_KD `DIST`",
        {"type": "DISTLoss", "activation": "softmax", "relation": "batch"},
        dist,
    ),
    Row("MGD", "yzd-v/MGD `mgd.py`", {"type": "MGDLoss"}, mgd(False), "feats"),
    Row(
        "MGD, masked channels",
        "mmrazor `MGDLoss(mask_on_channel=True)`",
        {"type": "MGDLoss", "mask_on_channel": True},
        mgd(True),
        "feats",
    ),
)


def compare(row: Row) -> tuple[float, float]:
    """The relative errors of value and gradient; of the gradient that of its norm."""
    student, teacher, context = parity_case(row.part)
    torch.manual_seed(0)
    loss: Any = MODELS.build(row.config)
    loss.adapt(student.spec, teacher.spec)
    loss = loss.double()

    def run(call: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        own = student.extra[row.part] if row.part in student.extra else getattr(student, row.part)
        levels = tuple(level.clone().requires_grad_() for level in own)
        changed = (
            replace(student, extra={**student.extra, row.part: levels})
            if row.part in student.extra
            else replace(student, **{row.part: levels})
        )
        torch.manual_seed(1)  # of the masks
        value = call(changed)
        return value.detach().double(), torch.cat([g.flatten() for g in torch.autograd.grad(value, levels)])

    ours = run(lambda changed: loss(changed, teacher, context.counting(loss.valid)))
    theirs = run(lambda changed: row.formula(changed, teacher, context, loss))
    value = math.nan if row.offset else float((ours[0] - theirs[0]).abs() / theirs[0].abs())
    return value, float((ours[1] - theirs[1]).norm() / theirs[1].norm())


def bound(error: float) -> str:
    """The bound that an error keeps on any machine: that of arithmetic in float64, or in float32."""
    if math.isnan(error):
        return "a constant"
    return next((f"≤ {limit}" for limit in ("1e-12", "1e-6") if error <= float(limit)), str(error))


def table() -> str:
    """The table of docs/parity.md."""
    lines = ["| loss | reference | options | value | gradient |", "|---|---|---|---|---|"]
    for row in ROWS:
        options = ", ".join(f"{name}={value!r}" for name, value in row.config.items() if name != "type")
        ours = f"`{row.config['type']}({options})`"
        value, gradient = (bound(error) for error in compare(row))
        lines.append(f"| {row.loss} | {row.reference} | {ours} | {value} | {gradient} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
