from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.functional.masks import box_masks
from mmkd.losses.fgd import FGDLoss, GlobalContext

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from ..functional.test_masks import plain_box_masks, plain_focal_terms, plain_softmax
from .contract import check_contract, check_same_for_twice_the_batch, make_case
from .objects import case_with_objects, sample


def ready(loss: FGDLoss, case: Any) -> FGDLoss:
    torch.manual_seed(0)
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()


def stirred(loss: FGDLoss) -> FGDLoss:
    """With relations that are no longer the identity."""
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return loss


@pytest.mark.parametrize("align", ["none", "conv"])
@pytest.mark.parametrize("levels", [None, [1]])
def test_contract(align: Any, levels: list[int] | None) -> None:
    check_contract(
        lambda weight: FGDLoss(weight, levels=levels, align=align),
        "feats",
        identity=align == "none",
        per_prior=False,
        case=case_with_objects(),
    )


def test_no_image_is_zero() -> None:
    case = make_case(images=0)
    loss = FGDLoss()
    loss.adapt(case[0].spec, case[1].spec)
    assert loss.double()(*case) == 0


def test_one_class() -> None:
    case = case_with_objects(sample([(3, 5, 22, 19)]), num_classes=1)
    check_contract(FGDLoss, "feats", per_prior=False, case=case)


def test_widths_that_differ() -> None:
    student, teacher, context = case = case_with_objects(channels=(3, 6))
    loss = stirred(ready(FGDLoss(), case))
    through = tuple(align(feat) for align, feat in zip(loss.aligns, student.feats))
    same = case_with_objects(channels=(6, 6))[0]
    plain = ready(FGDLoss(), (same, teacher, context))
    plain.load_state_dict({k: v for k, v in loss.state_dict().items() if not k.startswith("aligns")})
    expected = plain(replace(same, feats=through), teacher, context)
    torch.testing.assert_close(loss(*case), expected)


def test_same_for_twice_the_batch() -> None:
    check_same_for_twice_the_batch(FGDLoss(), case_with_objects())


def plain_context(block: GlobalContext, feat: torch.Tensor) -> list[list[list[float]]]:
    """The block on one image, C×H×W, in sums."""
    C, H, W = feat.shape
    planes = feat.reshape(C, -1).tolist()
    w, b = block.attend.weight.flatten().tolist(), float(block.attend.bias)
    share = plain_softmax([b + sum(w[c] * planes[c][j] for c in range(C)) for j in range(H * W)])
    context = [sum(share[j] * planes[c][j] for j in range(H * W)) for c in range(C)]

    def linear(layer: Any, values: list[float]) -> list[float]:
        rows = zip(layer.weight.tolist(), layer.bias.tolist())
        return [bias + sum(a * v for a, v in zip(row, values)) for row, bias in rows]

    first, norm, _, last = block.transform
    hidden = linear(first, context)
    mean = sum(hidden) / len(hidden)
    deviation = (sum((v - mean) ** 2 for v in hidden) / len(hidden) + norm.eps) ** 0.5
    hidden = [
        max(0.0, (v - mean) / deviation * scale + shift)
        for v, scale, shift in zip(hidden, norm.weight.tolist(), norm.bias.tolist())
    ]
    added = linear(last, hidden)
    return [[[v + added[c] for v in row] for row in feat[c].tolist()] for c in range(C)]


def test_by_hand() -> None:
    case = student, teacher, context = case_with_objects()
    loss = stirred(ready(FGDLoss(2.0, alpha=0.3, beta=0.2, gamma=0.1, lambd=0.05), case))
    expected = 0.0
    for level, (s, t) in enumerate(zip(student.feats, teacher.feats)):
        masks = [
            plain_box_masks(one.gt_instances.bboxes.tolist(), (32, 40), (s.shape[2], s.shape[3]))
            for one in context.data_samples
        ]
        fg, bg = (torch.tensor([mask[part] for mask in masks]) for part in (0, 1))
        terms = plain_focal_terms(s, t, fg, bg, 0.5)
        expected += 0.3 * terms[0] + 0.2 * terms[1] + 0.1 * terms[2]
        for own, taught in zip(s, t):
            related_s = plain_context(loss.relations_s[level], own)
            related_t = plain_context(loss.relations_t[level], taught)
            flat = zip(torch.tensor(related_s).flatten().tolist(), torch.tensor(related_t).flatten().tolist())
            expected += 0.05 / 2 * sum((a - b) ** 2 for a, b in flat)
    torch.testing.assert_close(
        loss(*case), torch.tensor(2 * expected, dtype=torch.float64), rtol=1e-6, atol=1e-8
    )


def only(**weights: float) -> FGDLoss:
    return FGDLoss(**{"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "lambd": 0.0, **weights})


def test_no_ground_truth_is_background_alone() -> None:
    case = case_with_objects(sample([]), sample([]))
    assert ready(only(alpha=1.0), case)(*case) == 0
    assert ready(only(beta=1.0), case)(*case) > 0


def test_one_image_without_objects_leaves_the_other_as_it_is() -> None:
    student, teacher, _ = with_one = case_with_objects(sample([(3, 5, 22, 19)]), sample([]))
    loss = ready(only(alpha=1.0), with_one)
    alone = case_with_objects(sample([(3, 5, 22, 19)]))
    first = (student.map(lambda x: x[:1]), teacher.map(lambda x: x[:1]), alone[2])
    torch.testing.assert_close(loss(*with_one), loss(*first) / 2)


@pytest.mark.parametrize(
    "box", [(500, 500, 600, 600), (-80, -80, -60, -60), (12, 12, 12, 12), (30, 20, 80, 90)]
)
def test_boxes_outside_or_tiny(box: tuple[float, float, float, float]) -> None:
    case = case_with_objects(sample([box]))
    student = case[0]
    for level in student.feats:
        level.requires_grad_()
    value = ready(FGDLoss(), case)(*case)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(level.grad).all() for level in student.feats)


def test_zero_stays_connected_to_the_student() -> None:
    case = case_with_objects(sample([]))
    for level in case[0].feats:
        level.requires_grad_()
    value = ready(only(alpha=1.0), case)(*case)
    assert value == 0
    assert value.requires_grad


def test_boxes_lie_where_they_are_on_the_padded_map() -> None:
    """The map covers the padded input: a box keeps its place when the image is padded."""
    padded = sample([(16, 8, 24, 16)], size=(16, 24), batch_input_shape=(32, 40))
    case = student, _, _ = case_with_objects(padded, sizes=((4, 5),))
    student.feats[0].requires_grad_()
    ready(only(alpha=1.0), case)(*case).backward()
    (fg,), _ = box_masks([padded.gt_instances.bboxes], [(32, 40)], (4, 5))
    assert torch.equal(student.feats[0].grad[0].abs().sum(0) > 0, fg > 0)
    assert (fg > 0).nonzero()[0].tolist() == [1, 2]


def test_boxes_of_mmdets_own_type() -> None:
    from mmdet.structures.bbox import HorizontalBoxes

    case = case_with_objects()
    loss = ready(FGDLoss(), case)
    plain = loss(*case)
    for one in case[2].data_samples:
        one.gt_instances.bboxes = HorizontalBoxes(one.gt_instances.bboxes)
    assert torch.equal(loss(*case), plain)


def test_the_relations_begin_as_the_identity_and_both_train() -> None:
    case = student, teacher, _ = case_with_objects()
    loss = ready(only(lambd=1.0), case)
    expected = sum((s - t).square().sum() / 2 for s, t in zip(student.feats, teacher.feats))
    torch.testing.assert_close(loss(*case), expected)
    loss(*case).backward()
    for blocks in (loss.relations_s, loss.relations_t):
        assert blocks[0].transform[-1].weight.grad.abs().sum() > 0


def test_without_relations_there_are_no_blocks() -> None:
    case = case_with_objects()
    assert not list(ready(FGDLoss(lambd=0.0), case).parameters())


def test_defaults_are_those_published() -> None:
    loss = FGDLoss()
    assert (loss.temperature, loss.alpha, loss.beta, loss.gamma, loss.lambd) == (0.5, 1e-3, 5e-4, 5e-4, 5e-6)
    assert loss.needs == {"feats"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "FGDLoss: temperature must be a number above 0, found 0"),
        ({"alpha": -1e-3}, "FGDLoss: alpha must be a number ≥ 0, found -0.001"),
        ({"beta": "1"}, "beta must be a number ≥ 0, found '1'"),
        ({"gamma": float("nan")}, "gamma must be"),
        ({"lambd": float("inf")}, "lambd must be"),
        ({"levels": []}, "levels must be"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FGDLoss(**options)


def test_end_to_end() -> None:
    model = build(distilled(tiny_atss(), tiny_teacher(), distill={"fgd": {"type": "FGDLoss"}}))
    data = batch((96, 128), (64, 100))
    data["data_samples"][1].gt_instances = data["data_samples"][1].gt_instances[:0]
    losses = losses_of(model, data)
    assert losses["loss_kd_fgd"] > 0
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("distill."))
    assert not any(name.startswith("distill.") for name in model.state_dict())
