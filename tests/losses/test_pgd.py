from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.pgd import PGDLoss
from mmkd.structures import HeadSpec

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from ..functional.test_masks import plain_attention, plain_softmax
from ..functional.test_quality import plain_gaussian, plain_iou
from .contract import check_contract, check_same_for_twice_the_batch, make_case
from .objects import case_with_objects, sample


def ready(loss: PGDLoss, case: Any) -> PGDLoss:
    torch.manual_seed(0)
    loss.check(case[0].spec, case[1].spec)
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()


@pytest.mark.parametrize("align", ["none", "conv"])
@pytest.mark.parametrize("levels", [None, [1]])
def test_contract(align: Any, levels: list[int] | None) -> None:
    check_contract(
        lambda weight: PGDLoss(weight, levels=levels, align=align),
        "feats",
        identity=align == "none",
        per_prior=False,
        case=case_with_objects(),
    )


def test_no_image_is_zero() -> None:
    case = make_case(images=0)
    loss = PGDLoss()
    loss.adapt(case[0].spec, case[1].spec)
    assert loss.double()(*case) == 0


def test_one_class() -> None:
    case = case_with_objects(sample([(3, 5, 22, 19)]), num_classes=1)
    check_contract(PGDLoss, "feats", per_prior=False, case=case)


def test_same_for_twice_the_batch() -> None:
    check_same_for_twice_the_batch(PGDLoss(), case_with_objects())


def positions(outputs: Any, image: int) -> list[tuple[int, int, int, int, list[int]]]:
    """Of one image: level, row, column, A and the indices of its priors among all of the batch."""
    found, start = [], 0
    for level, feats in enumerate(outputs.feats):
        B, _, H, W = feats.shape
        A = outputs.spec.num_base_priors[level]
        for y in range(H):
            for x in range(W):
                first = start + ((image * H + y) * W + x) * A
                found.append((level, y, x, A, list(range(first, first + A))))
        start += B * H * W * A
    return found


def plain_masks(case: Any, xi: float, topk: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Image by image, position by position, prior by prior."""
    _, teacher, context = case
    scores, predicted = teacher.flat_cls_logits().sigmoid(), teacher.flat_boxes().tolist()
    fg = [torch.zeros(len(f), *f.shape[2:]).double() for f in teacher.feats]
    bg = [torch.zeros_like(mask) for mask in fg]
    for image, one in enumerate(context.data_samples):
        objects, labels = one.gt_instances.bboxes.double(), one.gt_instances.labels.tolist()
        kept = [p for p in positions(teacher, image) if context.valid_N[p[4]].any()]
        centers = torch.tensor([[p[2] * 8.0 * 2 ** p[0], p[1] * 8.0 * 2 ** p[0]] for p in kept])
        quality = torch.tensor(
            [
                [
                    max(
                        float(scores[i, label]) ** (1 - xi) * plain_iou(predicted[i], box) ** xi for i in p[4]
                    )
                    for box, label in zip(objects.tolist(), labels)
                ]
                for p in kept
            ]
        )
        weights = plain_gaussian(quality, centers, objects, topk)
        for (level, y, x, _, _), (cx, cy), weight in zip(kept, centers.tolist(), weights):
            fg[level][image, y, x] = weight
            inside = any(x1 < cx < x2 and y1 < cy < y2 for x1, y1, x2, y2 in objects.tolist())
            bg[level][image, y, x] = 0.0 if inside else 1.0
    for masks in (fg, bg):
        for mask in masks:
            for image in mask:
                image /= max(1, int((image != 0).sum()))
    return fg, bg


OBJECTS = (
    sample([(1, 3, 31, 29), (10, 6, 39, 31)], [1, 2]),
    sample([(0, 0, 20, 24), (200, 200, 300, 300), (9, 9, 9.5, 9.5)], [0, 2, 1]),
)


@pytest.mark.parametrize("xi", [0.0, 0.6, 0.8])
@pytest.mark.parametrize("topk", [3, 9, 1000])
def test_masks_by_hand(xi: float, topk: int) -> None:
    case = case_with_objects(*OBJECTS)
    student, teacher, context = case
    found = PGDLoss(xi=xi, topk=topk).masks(teacher, context, student.spec.num_base_priors)
    fg, bg = plain_masks(case, xi, topk)
    assert sum(mask.sum() for mask in fg) > 0
    for level, (a, b) in enumerate(found):
        torch.testing.assert_close(a, fg[level], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(b, bg[level])


def test_by_hand() -> None:
    case = student, teacher, _ = case_with_objects(*OBJECTS)
    loss = ready(PGDLoss(3.0, alpha=0.4, beta=0.2, delta=0.01, temperature=0.7, level_gain=0.5, topk=6), case)
    fg, bg = plain_masks(case, 0.8, 6)
    expected, T = 0.0, 0.7
    for level, (own, taught) in enumerate(zip(student.feats, teacher.feats)):
        B, C, H, W = own.shape
        for b in range(B):
            S_s, S_t = (plain_attention(feat[b].tolist(), T)[0] for feat in (own, taught))
            for y in range(H):
                for x in range(W):
                    s, t = own[b, :, y, x].tolist(), taught[b, :, y, x].tolist()
                    A_s, A_t = ([C * a for a in plain_softmax([abs(v) / T for v in z])] for z in (s, t))
                    error = sum(S_t[y][x] * A_t[c] * (t[c] - s[c]) ** 2 for c in range(C)) / B
                    weight = 0.4 * float(fg[level][b, y, x]) + 0.2 * float(bg[level][b, y, x])
                    expected += (1 + 0.5 * level) * weight * error
                    expected += 0.01 * sum(abs(p - q) for p, q in zip(A_s, A_t)) / (B * H * W)
                    expected += 0.01 * abs(S_s[y][x] - S_t[y][x]) / B
    torch.testing.assert_close(
        loss(*case), torch.tensor(3 * expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_chosen_positions_are_those_of_the_teachers_best_predictions() -> None:
    """One prediction is right; with ``topk=1`` it alone has weight."""
    _, teacher, context = case_with_objects(sample([(4, 4, 28, 30)], [2]), priors=1)
    logits, boxes = [x.clone() for x in teacher.cls_logits], [x.clone() for x in teacher.boxes]
    for level in (*logits, *boxes):
        level.fill_(0.0)
    boxes[0][0, :, 2, 1] = torch.tensor([4, 4, 28, 30]).double()
    sure = replace(teacher, cls_logits=tuple(logits), boxes=tuple(boxes))
    everywhere = replace(context, valid_N=torch.ones_like(context.valid_N))
    (fg, bg), (fg_next, _) = PGDLoss(topk=1).masks(sure, everywhere, (1, 1))
    assert fg[0].nonzero().tolist() == [[2, 1]]
    assert fg_next.sum() == 0
    assert bg[0, 2, 1] == 0
    hidden = everywhere.valid_N.clone()
    hidden[2 * 5 + 1] = False
    (fg, _), _ = PGDLoss(topk=1).masks(sure, replace(context, valid_N=hidden), (1, 1))
    assert fg[0, 2, 1] == 0


def test_the_class_of_the_object_counts_and_no_other() -> None:
    _, teacher, context = case_with_objects(sample([(4, 4, 28, 30)], [2]))
    others = tuple(x.clone() for x in teacher.cls_logits)
    for level in others:
        level.view(1, 2, 3, *level.shape[2:])[:, :, :2] += 5
    loss = PGDLoss()
    for (a, _), (b, _) in zip(
        loss.masks(teacher, context, (2, 2)),
        loss.masks(replace(teacher, cls_logits=others), context, (2, 2)),
    ):
        assert torch.equal(a, b)


def test_softmax_teacher() -> None:
    _, teacher, context = case_with_objects(sample([(4, 4, 28, 30)], [2]))
    soft = replace(teacher, spec=replace(teacher.spec, use_sigmoid=False))
    # A constant added to all classes changes sigmoids, but no softmax.
    moved = replace(soft, cls_logits=tuple(level + 3 for level in soft.cls_logits))
    loss = PGDLoss(xi=0.2)
    for (a, _), (b, _) in zip(loss.masks(soft, context, (2, 2)), loss.masks(moved, context, (2, 2))):
        torch.testing.assert_close(a, b)


def test_student_with_other_priors_per_position() -> None:
    _, teacher, context = case_with_objects(sample([(4, 4, 28, 30)], [2]))
    all_valid = replace(context, valid_N=torch.ones(26 * 2).bool())
    three = replace(context, valid_N=torch.ones(26 * 3).bool())
    loss = PGDLoss()
    for (a, _), (b, _) in zip(loss.masks(teacher, all_valid, (2, 2)), loss.masks(teacher, three, (3, 3))):
        assert torch.equal(a, b)


def test_no_ground_truth_is_background_alone() -> None:
    case = case_with_objects(sample([]), sample([]))
    for level in case[0].feats:
        level.requires_grad_()
    value = ready(PGDLoss(beta=0.0, delta=0.0), case)(*case)
    assert value == 0
    assert value.requires_grad
    assert ready(PGDLoss(alpha=0.0, delta=0.0), case)(*case) > 0


@pytest.mark.parametrize(
    "box", [(500, 500, 600, 600), (-80, -80, -60, -60), (12, 12, 12, 12), (9, 9, 9.5, 9.5), (30, 20, 80, 90)]
)
def test_boxes_outside_or_tiny(box: tuple[float, float, float, float]) -> None:
    case = case_with_objects(sample([box]))
    for level in case[0].feats:
        level.requires_grad_()
    value = ready(PGDLoss(), case)(*case)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(level.grad).all() for level in case[0].feats)


def test_padding_is_neither_foreground_nor_background() -> None:
    student, teacher, context = case_with_objects(*OBJECTS)
    nothing = replace(context, valid_N=torch.zeros_like(context.valid_N))
    for fg, bg in PGDLoss().masks(teacher, nothing, student.spec.num_base_priors):
        assert fg.sum() == bg.sum() == 0


def test_levels_count_as_they_would_among_all() -> None:
    case = case_with_objects(*OBJECTS)
    parts = [ready(PGDLoss(levels=[level]), case)(*case) for level in (0, 1)]
    torch.testing.assert_close(ready(PGDLoss(), case)(*case), parts[0] + parts[1])


def test_defaults_are_those_published() -> None:
    loss = PGDLoss()
    assert (loss.alpha, loss.beta, loss.delta, loss.temperature) == (0.08, 0.04, 8e-4, 0.8)
    assert (loss.xi, loss.topk, loss.level_gain) == (0.8, 9, 0.25)
    assert loss.needs == {"feats", "cls_logits", "boxes"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "PGDLoss: temperature must be a number above 0, found -1"),
        ({"alpha": -1e-3}, "PGDLoss: alpha must be a number ≥ 0, found -0.001"),
        ({"beta": None}, "beta must be"),
        ({"delta": "1"}, "delta must be"),
        ({"level_gain": -1}, "level_gain must be"),
        ({"xi": 1.5}, r"PGDLoss: xi must be a number in \[0, 1\], found 1.5"),
        ({"topk": 0}, "topk must be a whole number ≥ 1, found 0"),
        ({"topk": 2.5}, "topk must be a whole number ≥ 1, found 2.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PGDLoss(**options)


def test_pairs_that_make_no_sense() -> None:
    spec = HeadSpec(3, 3, True, ((8, 8),), (1,), (4,))
    PGDLoss().check(spec, spec)
    with pytest.raises(UserError, match="the teacher has none"):
        PGDLoss().check(spec, replace(spec, num_base_priors=(0,)))
    with pytest.raises(UserError, match="student has 3 classes and the teacher 5"):
        PGDLoss().check(spec, replace(spec, num_classes=5, cls_channels=5))


def test_end_to_end(tmp_path: Any) -> None:
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill={"pgd": {"type": "PGDLoss"}}))
    data = batch((96, 128), (64, 100))
    data["data_samples"][1].gt_instances = data["data_samples"][1].gt_instances[:0]
    losses = losses_of(model, data)
    assert losses["loss_kd_pgd"] > 0
    losses["loss_kd_pgd"].backward()
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
