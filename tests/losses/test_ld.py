from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.localization import localization_kl
from mmkd.losses.ld import LocalizationDistillationLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from ..functional.test_localization import region_by_hand
from .contract import Case, check_contract, check_same_for_twice_the_batch, make_case

SIZES = ((6, 8), (3, 4))


def sample(boxes: Tensor, height: int, width: int) -> DetDataSample:
    made = DetDataSample(metainfo={"img_shape": (height, width)})
    made.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long))
    return made


def case_with_objects(bins: int = 5, **options: Any) -> Case:
    """Two images of 48×64 pixels with objects; the second is padded from 40×50."""
    student, teacher, context = make_case(
        **{"sizes": SIZES, "priors": 1, "box_channels": 4 * bins, **options}
    )
    first = torch.tensor([[3.0, 4, 35, 30], [20, 10, 61, 45]])
    second = torch.tensor([[5.0, 6, 44, 37]])
    return student, teacher, replace(context, data_samples=[sample(first, 48, 64), sample(second, 40, 50)])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"region": "main"},
    {"region": ["vlr"], "vlr_nearness": "iou"},
    {"temperature": 2.0, "region": ("vlr", "main"), "alpha": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract(options: dict[str, Any]) -> None:
    def make(weight: float) -> LocalizationDistillationLoss:
        return LocalizationDistillationLoss(loss_weight=weight, **options)

    few = case_with_objects(bins=3, sizes=((3, 4), (2, 2)))  # gradients are checked number by number
    check_contract(make, "bbox_pred", case=few)
    check_same_for_twice_the_batch(make(1.0), case=case_with_objects())


def test_contract_of_the_main_region_with_several_priors() -> None:
    def make(weight: float) -> LocalizationDistillationLoss:
        return LocalizationDistillationLoss(weight, region="main")

    check_contract(make, "bbox_pred", case=make_case(sizes=((2, 3), (1, 2)), box_channels=4 * 3))


def main_by_hand(student: DenseOutputs, context: DistillContext) -> list[float]:
    assert context.labels_N is not None
    scores = [float((1 / (1 + (-row).exp())).max()) for row in student.flat_cls_logits()]
    return [score * float(v and y < 3) for score, v, y in zip(scores, context.valid_N, context.labels_N)]


def vlr_by_hand(context: DistillContext, nearness: str, alpha: float, scale: float) -> list[float]:
    """Anchors written out, positions in the padding left out of the thresholds."""
    weights = {}
    for image, (height, width) in enumerate([(48, 64), (40, 50)]):
        places, anchors, per_level = [], [], []
        for level, (rows, columns) in enumerate(SIZES):
            stride, before = 8 * 2**level, len(anchors)
            for row in range(rows):
                for column in range(columns):
                    x, y, half = column * stride, row * stride, stride * scale / 2
                    if x < width and y < height:
                        places.append((level, image, row, column))
                        anchors.append([x - half, y - half, x + half, y + half])
            per_level.append(len(anchors) - before)
        gts = context.data_samples[image].gt_instances.bboxes.tolist()
        weights.update(zip(places, region_by_hand(anchors, per_level, gts, alpha, nearness)))
    flat = [
        weights.get((level, image, row, column), 0.0)
        for level, (rows, columns) in enumerate(SIZES)
        for image in range(2)
        for row in range(rows)
        for column in range(columns)
    ]
    return [weight * float(valid) for weight, valid in zip(flat, context.valid_N)]


@pytest.mark.parametrize("nearness", ["iof", "iou"])
@pytest.mark.parametrize("scale", [8.0, 3.0])
def test_value_by_hand(nearness: Any, scale: float) -> None:
    student, teacher, context = case_with_objects()
    each = localization_kl(student.flat_bbox_pred(), teacher.flat_bbox_pred(), temperature=4.0).tolist()
    main = main_by_hand(student, context)
    vlr = vlr_by_hand(context, nearness, 0.3, scale)
    assert 0 < sum(weight > 0 for weight in vlr) < len(vlr)

    def total(weights: list[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, each))

    options: dict[str, Any] = {
        "temperature": 4.0,
        "main_weight": 0.7,
        "vlr_weight": 0.4,
        "vlr_nearness": nearness,
        "alpha": 0.3,
        "anchor_scale": scale,
    }
    value = float(LocalizationDistillationLoss(2.0, **options)(student, teacher, context))
    expected = 2 * (0.7 * total(main) / sum(main) + 0.4 * total(vlr) / sum(vlr))
    assert value == pytest.approx(expected, rel=1e-5)
    value = float(LocalizationDistillationLoss(2.0, normalizer="none", **options)(student, teacher, context))
    assert value == pytest.approx(2 * (0.7 * total(main) + 0.4 * total(vlr)), rel=1e-5)


def test_value_does_not_depend_on_how_finely_distances_are_divided() -> None:
    """A bin that neither gives any probability changes nothing."""
    student, teacher, context = case_with_objects(bins=5)

    def finer(outputs: DenseOutputs) -> DenseOutputs:
        levels = []
        for level in outputs.bbox_pred or ():
            B, _, H, W = level.shape
            sides = level.reshape(B, 4, 5, H, W)
            levels.append(torch.cat([sides, torch.full_like(sides, -1e4)], 2).flatten(1, 2))
        return replace(outputs, bbox_pred=tuple(levels))

    loss = LocalizationDistillationLoss()
    torch.testing.assert_close(loss(finer(student), finer(teacher), context), loss(student, teacher, context))


def test_class_count_does_not_count() -> None:
    case = case_with_objects(num_classes=1)
    student, teacher, context = case
    spec = replace(student.spec, num_classes=9, cls_channels=9)
    more = tuple(
        torch.cat([level, level.new_full((2, 8, *level.shape[2:]), -20)], 1)
        for level in student.cls_logits or ()
    )
    labels = torch.where(context.labels_N == 1, 9, 0)
    wide = LocalizationDistillationLoss()(
        replace(student, cls_logits=more, spec=spec), teacher, replace(context, labels_N=labels)
    )
    torch.testing.assert_close(wide, LocalizationDistillationLoss()(*case))


def test_nothing_to_count_is_zero() -> None:
    student, teacher, context = case_with_objects()
    levels = tuple(level.requires_grad_() for level in student.bbox_pred or ())
    own = replace(student, bbox_pred=levels)
    empty = replace(
        context,
        labels_N=torch.full_like(context.valid_N, 3, dtype=torch.long),
        data_samples=[sample(torch.zeros(0, 4), 48, 64), sample(torch.zeros(0, 4), 40, 50)],
    )
    for normalizer in ("region", "none"):
        value = LocalizationDistillationLoss(normalizer=normalizer)(own, teacher, empty)  # type: ignore[arg-type]
        assert value == 0
        value.backward()
        assert all(level.grad is not None and not level.grad.any() for level in levels)


def test_boxes_of_mmdets_own_type() -> None:
    student, teacher, context = case_with_objects()
    boxed = [copy.deepcopy(item) for item in context.data_samples]
    for item in boxed:
        item.gt_instances.bboxes = HorizontalBoxes(item.gt_instances.bboxes)
    loss = LocalizationDistillationLoss(region="vlr")
    torch.testing.assert_close(
        loss(student, teacher, replace(context, data_samples=boxed)), loss(student, teacher, context)
    )


def test_weights_of_zero_and_needs() -> None:
    assert LocalizationDistillationLoss().needs == {"bbox_pred", "cls_logits", "labels"}
    assert LocalizationDistillationLoss().of_student == {"cls_logits"}
    assert LocalizationDistillationLoss(region="vlr").needs == {"bbox_pred"}
    assert LocalizationDistillationLoss(main_weight=0).needs == {"bbox_pred"}
    case = case_with_objects()
    torch.testing.assert_close(
        LocalizationDistillationLoss(vlr_weight=0)(*case), LocalizationDistillationLoss(region="main")(*case)
    )


@pytest.mark.parametrize(
    ("own", "taught", "message"),
    [
        (
            4,
            20,
            r"student's head does not predict[\s\S]*GFLHead[\s\S]*found: +4 box channels[\s\S]*BoxIoULoss",
        ),
        (20, 4, "teacher's head does not predict box distributions"),
        (20, 28, r"reg_max differs[\s\S]*reg_max=6 \(the teacher's\)[\s\S]*reg_max=4"),
    ],
)
def test_other_heads_are_refused(own: int, taught: int, message: str) -> None:
    student, _, context = make_case(box_channels=own)
    teacher = make_case(box_channels=taught)[1]
    with pytest.raises(UserError, match=message):
        LocalizationDistillationLoss(region="main")(student, teacher, context)


def test_several_priors_have_no_vlr() -> None:
    spec = make_case(priors=2)[0].spec
    with pytest.raises(
        UserError, match=r"one prior per position[\s\S]*\[2, 2\] by level[\s\S]*region='main'"
    ):
        LocalizationDistillationLoss().check(spec, spec)
    LocalizationDistillationLoss(region="main").check(spec, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "pos"}, "region must be one or more of main, vlr, all, .*, found 'pos'"),
        ({"region": []}, r"region must be one or more of main, vlr, .*found \[\]"),
        ({"region": ["main", "pos"]}, "region must be one or more of main, vlr"),
        ({"region": None}, "region must be one or more of main, vlr, .*found None"),
        ({"temperature": 0}, "temperature must be a number above 0, found 0"),
        ({"anchor_scale": -8}, "anchor_scale must be a number above 0, found -8"),
        ({"main_weight": -1}, "main_weight must be a number ≥ 0, found -1"),
        ({"vlr_weight": "1"}, "vlr_weight must be a number ≥ 0, found '1'"),
        ({"alpha": 1}, r"alpha must be a number in \[0, 1\), found 1"),
        ({"normalizer": "mean"}, "normalizer must be one of region, priors, .*found 'mean'"),
        ({"vlr_nearness": "diou"}, "vlr_nearness must be one of iof, iou, found 'diou'"),
        ({"region": "vlr", "vlr_weight": 0}, "the weights of all regions are 0"),
        ({"loss_weight": -1}, "loss_weight must be a number ≥ 0, found -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"LocalizationDistillationLoss: {message}"):
        LocalizationDistillationLoss(**options)


def tiny_gfl(teacher: bool = False, head: str = "GFLHead", reg_max: int = 7) -> ConfigDict:
    cfg = tiny_teacher() if teacher else tiny_atss()
    atss = cfg.bbox_head
    cfg.bbox_head = ConfigDict(
        type=head,
        num_classes=atss.num_classes,
        in_channels=atss.in_channels,
        feat_channels=atss.feat_channels,
        stacked_convs=atss.stacked_convs,
        anchor_generator=atss.anchor_generator,
        reg_max=reg_max,
        loss_cls={"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        loss_dfl={"type": "DistributionFocalLoss", "loss_weight": 0.25},
        loss_bbox={"type": "GIoULoss", "loss_weight": 2.0},
    )
    return cfg


def test_in_a_detector() -> None:
    terms = {
        "both": {"type": "LocalizationDistillationLoss"},
        "main": {"type": "LocalizationDistillationLoss", "region": "main"},
        "vlr": {"type": "LocalizationDistillationLoss", "region": ["vlr"]},
    }
    model = build(distilled(tiny_gfl(), tiny_gfl(teacher=True), None, distill=terms))
    losses = losses_of(model, batch((96, 128), (64, 100)))
    assert losses["loss_kd_main"] > 0
    assert losses["loss_kd_vlr"] > 0
    torch.testing.assert_close(losses["loss_kd_both"], losses["loss_kd_main"] + losses["loss_kd_vlr"])
    losses["loss_kd_both"].backward()
    assert model.bbox_head.gfl_reg.weight.grad.abs().sum() > 0
    assert model.bbox_head.gfl_cls.weight.grad is None
    assert all(parameter.grad is None for parameter in model.teacher.model.parameters())
    assert losses_of(model, batch((64, 64), boxes=0))["loss_kd_both"] == 0


def test_main_region_is_mmdets_ld_head() -> None:
    """Without a divisor and per bin, the value of mmdet's own implementation."""
    term = {
        "type": "LocalizationDistillationLoss",
        "region": "main",
        "main_weight": 0.25 / 8,
        "normalizer": "none",
    }
    student, teacher = tiny_gfl(), tiny_gfl(teacher=True)
    model = build(distilled(student, teacher, None, distill={"ld": term}))
    loss_ld = {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10}
    head = tiny_gfl(head="LDHead").bbox_head
    reference = MODELS.build(ConfigDict({**head, "loss_ld": loss_ld, "train_cfg": student.train_cfg}))
    reference.load_state_dict(model.bbox_head.state_dict())
    data = model.data_preprocessor(batch((96, 128), (64, 100)), True)
    soft = [level.detach() for level in model.teacher.model(data["inputs"])[1]]
    cls_scores, bbox_preds = model(data["inputs"])
    theirs = reference.loss_by_feat(
        cls_scores,
        bbox_preds,
        [item.gt_instances for item in data["data_samples"]],
        [item.metainfo for item in data["data_samples"]],
        soft,
    )
    ours = model.loss(data["inputs"], data["data_samples"])
    torch.testing.assert_close(ours["loss_kd_ld"], sum(theirs["loss_ld"]))
    assert ours["loss_kd_ld"] > 0


def test_atss_is_refused_at_the_first_batch() -> None:
    terms = {"ld": {"type": "LocalizationDistillationLoss"}}
    model = build(distilled(tiny_atss(), tiny_teacher(), None, distill=terms))
    with pytest.raises(UserError, match="student's head does not predict box distributions"):
        losses_of(model, batch())
