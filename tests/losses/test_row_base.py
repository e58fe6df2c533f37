"""What holds for every loss on rows in every region and with every normalizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.row_base import Normalizer, Region, chosen, largest_difference, region_weights
from mmkd.structures import DenseOutputs, DistillContext, Need, RowOutputs, Valid

from .contract import (
    check_contract,
    make_case,
    on_two_processes,
    only,
    only_of_context,
    part_of,
    twice,
    where,
    with_part,
    without_objects_in_second,
)
from .rows import NORMALIZERS, PARTS, REGIONS, flat, row_case, row_loss

every_region = pytest.mark.parametrize(("name", "region"), REGIONS)
# Of what may be no map; the distributions of a box's sides are of dense heads alone.
every_flat_region = pytest.mark.parametrize(
    ("name", "region"), [choice for choice in REGIONS if PARTS[choice[0]] != "bbox_pred"]
)


@every_region
def test_contract(name: str, region: str) -> None:
    part = PARTS[name]
    check_contract(
        lambda weight: row_loss(name, weight, region=region),
        part,
        # The scores whose difference is the weight are the logits that move.
        gradient=not (region == "disagreement" and part == "cls_logits"),
        case=row_case(name),
    )


@pytest.mark.parametrize("valid", get_args(Valid))
@pytest.mark.parametrize("name", PARTS)
def test_contract_of_valid(name: str, valid: Valid) -> None:
    check_contract(lambda weight: row_loss(name, weight, valid=valid), PARTS[name], case=row_case(name))


@every_region
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_finite_and_the_same_whatever_the_padding_and_the_batches(
    name: str, region: str, normalizer: str
) -> None:
    """But with ``'none'``, where it is a sum over the images of a process."""
    # A relation within a class is a mean over images with any normalizer.
    options = {"gamma": 0} if name == "DISTLoss" else {}
    loss = row_loss(name, region=region, normalizer=normalizer, **options)
    case = student, teacher, context = row_case(name)
    value = loss(*case)
    assert torch.isfinite(value)
    assert value > 0

    part = PARTS[name]
    hidden = where(~context.valid_N, part_of(teacher, part), part_of(student, part), student)
    torch.testing.assert_close(loss(with_part(student, part, hidden), teacher, context), value)

    factor = 2 if normalizer == "none" else 1
    torch.testing.assert_close(loss(*twice(case)), value * factor, rtol=1e-6, atol=1e-9)
    if region != "vlr":  # the two processes have no data samples
        half = on_two_processes(loss, case)
        torch.testing.assert_close(half, value / factor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PARTS)
def test_no_object(name: str) -> None:
    student, teacher, context = row_case(name)
    context = without_objects(context, student.spec.num_classes)
    for normalizer in NORMALIZERS:
        loss = row_loss(name, region="foreground", normalizer=normalizer)
        assert loss(student, teacher, context) == 0


def without_objects(context: DistillContext, background: int) -> DistillContext:
    assert context.labels_N is not None
    return replace(context, labels_N=torch.full_like(context.labels_N, background))


@every_region
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_what_a_loss_lists_is_what_it_reads(name: str, region: str, normalizer: str) -> None:
    """`check_contract` gives it no more; here each thing that it lists is missing once."""
    loss = row_loss(name, region=region, normalizer=normalizer)
    student, teacher, context = row_case(name)
    needs: frozenset[Need] = loss.needs

    def run(without: Need | None = None) -> Any:
        own = only(needs - {without}, student)
        taught = only(needs - loss.of_student - {without}, teacher)
        given = only_of_context(loss, context)
        given = replace(
            given,
            labels_N=None if without == "labels" else given.labels_N,
            quality_sum=None if without == "quality_targets" else given.quality_sum,
        )
        return loss(own, taught, given)

    run()
    for need in needs:
        with pytest.raises((AssertionError, UserError)):
            run(without=need)


@every_flat_region
def test_rows_need_be_no_maps(name: str, region: str) -> None:
    student, teacher, context = row_case(name)
    for normalizer in NORMALIZERS:
        loss = row_loss(name, region=region, normalizer=normalizer)
        assert torch.equal(loss(flat(student), flat(teacher), context), loss(student, teacher, context))


@every_flat_region
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_rows_is_zero_with_a_gradient(name: str, region: str, dtype: torch.dtype) -> None:
    """Two images of which no region was sampled."""
    student, teacher, context = row_case(name)

    def emptied(outputs: DenseOutputs, gradient: bool) -> RowOutputs:
        rows = flat(outputs).take(torch.zeros(0, dtype=torch.long))
        return rows.map(lambda part: part.to(dtype).requires_grad_(gradient))

    assert context.labels_N is not None
    none = replace(context, valid_N=context.valid_N[:0], labels_N=context.labels_N[:0])
    for normalizer in NORMALIZERS:
        own = emptied(student, gradient=True)
        loss = row_loss(name, region=region, normalizer=normalizer)
        value = loss(own, emptied(teacher, gradient=False), none)
        assert value == 0
        value.backward()
        leaves = [own.cls_logits_NK, own.boxes_N4, *own.extra.values()]
        assert any(leaf.grad is not None for leaf in leaves)


@every_region
def test_no_image_is_zero_with_a_gradient(name: str, region: str) -> None:
    student, teacher, context = make_case(images=0, priors=1, box_channels=20)
    if name == "DKDLoss":
        spec = replace(student.spec, num_classes=2, use_sigmoid=False)
        student, teacher = replace(student, spec=spec), replace(teacher, spec=spec)
    context = replace(context, quality_sum=torch.tensor(0.0))
    levels = tuple(level.requires_grad_() for level in part_of(student, PARTS[name]))
    for normalizer in NORMALIZERS:
        loss = row_loss(name, region=region, normalizer=normalizer)
        value = loss(with_part(student, PARTS[name], levels), teacher, context)
        assert value == 0
        value.backward()


@pytest.mark.parametrize("region", get_args(Region))
@pytest.mark.parametrize("name", [name for name in PARTS if name != "DKDLoss"])
def test_one_class(name: str, region: str) -> None:
    part = PARTS[name]
    check_contract(
        lambda weight: row_loss(name, weight, region=region),
        part,
        gradient=not (region == "disagreement" and part == "cls_logits"),
        case=row_case(name, num_classes=1),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_region
def test_half_precision_is_computed_in_float32(name: str, region: str, dtype: torch.dtype) -> None:
    student, teacher, context = row_case(name)
    loss = row_loss(name, region=region)
    student, teacher = (outputs.map(lambda level: level.to(dtype)) for outputs in (student, teacher))
    expected = loss(*(outputs.map(lambda level: level.float()) for outputs in (student, teacher)), context)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        value = loss(student, teacher, context)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("region", get_args(Region))
def test_a_loss_takes_no_gradient_from_those_after_it(region: Region) -> None:
    """Outputs keep their flat logits, so that the first to ask decides whether they have a gradient."""
    student, teacher, context = row_case("BoxIoULoss")
    levels = tuple(level.requires_grad_() for level in student.cls_logits or ())
    student = replace(student, cls_logits=levels)
    row_loss("BoxIoULoss", region=region)(student, teacher, context)
    row_loss("BCKDLoss")(student, teacher, context).backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


def test_weights_by_hand() -> None:
    student, teacher, context = make_case()
    assert context.labels_N is not None
    own, taught = student.flat_cls_logits().sigmoid(), teacher.flat_cls_logits().sigmoid()
    for row, (valid, label) in enumerate(zip(context.valid_N.tolist(), context.labels_N.tolist())):
        score, gap = float(taught[row].max()), float((own[row] - taught[row]).abs().max())
        expected = {
            "all": 1.0,
            "foreground": float(label < 3),
            "teacher": score,
            "teacher_foreground": score * (label < 3),
            "disagreement": gap,
        }
        for region in get_args(Region):
            weight = float(region_weights(region, student, teacher, context)[row])
            assert weight == pytest.approx(expected[region] * valid, rel=1e-6)


def test_divisors_by_hand() -> None:
    student, _, context = make_case()
    context = replace(without_objects_in_second(context), quality_sum=torch.tensor(2.5))
    assert context.labels_N is not None
    weight_N = torch.rand(len(context.valid_N))
    in_first = int((context.labels_N < 3).sum())
    expected = {
        "region": float(weight_N.sum()),
        "priors": float(context.valid_N.sum()),
        "batch": 2.0,
        "foreground": in_first + 1.0,  # the second image counts as one
        "centerness": 2.5,
        "none": 1.0,
    }
    for normalizer in get_args(Normalizer):
        rows = chosen(weight_N, normalizer, student, context, few=False)
        assert float(rows.divisor) == pytest.approx(expected[normalizer])
        assert rows.of(weight_N) is weight_N


def test_a_head_of_softmaxes_has_scores_too() -> None:
    student, teacher, _ = make_case(num_classes=4)
    spec = replace(student.spec, num_classes=3, use_sigmoid=False)
    own, taught = (replace(outputs, spec=spec) for outputs in (student, teacher))
    gap_NK = own.flat_cls_logits().softmax(1) - taught.flat_cls_logits().softmax(1)
    torch.testing.assert_close(largest_difference(own, taught), gap_NK[:, :3].abs().amax(1))


@pytest.mark.parametrize("region", ["all", "teacher", "disagreement"])
def test_background_must_be_a_class_of_the_head_for_dkd(region: str) -> None:
    student, _, _ = make_case()
    loss = row_loss("DKDLoss", region=region)
    with pytest.raises(UserError, match=f"DKDLoss: region='{region}' needs a background class"):
        loss.check(student.spec, student.spec)
    loss.check(replace(student.spec, num_classes=2), student.spec)
    row_loss("DKDLoss", region="teacher_foreground").check(student.spec, student.spec)
