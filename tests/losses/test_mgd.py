from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.losses.mgd import MGDLoss

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher
from .contract import check_contract, check_same_for_twice_the_batch, make_case


def ready(loss: MGDLoss, case: Any) -> MGDLoss:
    torch.manual_seed(0)
    loss.adapt(case[0].spec, case[1].spec)
    return loss.double()


@pytest.mark.parametrize("align", ["none", "conv"])
@pytest.mark.parametrize("levels", [None, [1]])
def test_contract(align: Any, levels: list[int] | None) -> None:
    check_contract(
        lambda weight: MGDLoss(weight, levels=levels, align=align), "feats", identity=False, per_prior=False
    )


def test_the_value_knows_neither_classes_nor_objects() -> None:
    one, many = make_case(num_classes=1), make_case(num_classes=9)
    loss = ready(MGDLoss(1.0, mask_ratio=0.0), one)
    case = (replace(many[0], feats=one[0].feats), replace(many[1], feats=one[1].feats), many[2])
    assert loss(*case) == loss(*one)


def test_same_for_twice_the_batch_where_nothing_is_masked() -> None:
    check_same_for_twice_the_batch(MGDLoss(1.0, mask_ratio=0.0))


def plain_conv(feat: Any, weight: Any, bias: Any) -> list[list[list[float]]]:
    """A convolution with zero padding, position by position, of one image C×H×W."""
    C, H, W = len(feat), len(feat[0]), len(feat[0][0])
    reach = len(weight[0][0]) // 2
    around = range(-reach, reach + 1)
    return [
        [
            [
                bias[o]
                + sum(
                    weight[o][c][dy + reach][dx + reach] * feat[c][y + dy][x + dx]
                    for c in range(C)
                    for dy in around
                    for dx in around
                    if 0 <= y + dy < H and 0 <= x + dx < W
                )
                for x in range(W)
            ]
            for y in range(H)
        ]
        for o in range(len(weight))
    ]


def test_by_hand() -> None:
    case = make_case(channels=(3, 2), sizes=((4, 5),))
    student, teacher, _ = case
    loss = ready(MGDLoss(0.7, mask_ratio=0.5), case)
    torch.manual_seed(5)
    value = loss(*case)
    torch.manual_seed(5)
    keep = (torch.rand(2, 1, 4, 5) >= 0.5).tolist()  # the mask that this seed gives
    (align,), (generator,) = loss.aligns, loss.generators
    total = 0.0
    for image in range(2):
        feat = student.feats[0][image].tolist()
        own = plain_conv(feat, align.weight.tolist(), align.bias.tolist())
        own = [
            [[v * m for v, m in zip(row, mask)] for row, mask in zip(plane, keep[image][0])] for plane in own
        ]
        hidden = plain_conv(own, generator[0].weight.tolist(), generator[0].bias.tolist())
        hidden = [[[max(0.0, v) for v in row] for row in plane] for plane in hidden]
        made = plain_conv(hidden, generator[2].weight.tolist(), generator[2].bias.tolist())
        taught = teacher.feats[0][image].tolist()
        total += sum(
            (taught[c][y][x] - made[c][y][x]) ** 2 for c in range(2) for y in range(4) for x in range(5)
        )
    torch.testing.assert_close(value, torch.tensor(0.7 * total / 2, dtype=torch.float64))


def test_is_the_sum_over_levels() -> None:
    case = make_case()
    loss = ready(MGDLoss(1.0, mask_ratio=0.0), case)
    parts = []
    for level in (0, 1):
        one = ready(MGDLoss(1.0, mask_ratio=0.0, levels=[level]), case)
        one.generators[0].load_state_dict(loss.generators[level].state_dict())
        parts.append(one(*case))
    torch.testing.assert_close(loss(*case), parts[0] + parts[1])


def test_masked_positions_get_no_gradient_of_their_own() -> None:
    """With blocks that only look at the position itself, what is masked is not learned from."""
    case = student, _, _ = make_case(sizes=((6, 7),))
    loss = ready(MGDLoss(1.0), case)
    with torch.no_grad():
        for layer in (loss.generators[0][0], loss.generators[0][2]):
            centre = layer.weight[:, :, 1, 1].clone()
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = centre
    student.feats[0].requires_grad_()
    torch.manual_seed(2)
    loss(*case).backward()
    torch.manual_seed(2)
    hidden = (torch.rand(2, 1, 6, 7) < 0.65).expand(-1, 4, -1, -1)
    assert student.feats[0].grad is not None
    assert (student.feats[0].grad[hidden] == 0).all()
    assert (student.feats[0].grad[~hidden] != 0).any()


def test_defaults_are_those_published() -> None:
    loss = MGDLoss()
    assert (loss.loss_weight, loss.mask_ratio) == (2e-5, 0.65)
    assert loss.needs == {"feats"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, r"MGDLoss: mask_ratio must be a number in \[0, 1\), found 1.0"),
        ({"mask_ratio": "half"}, "found 'half'"),
        ({"loss_weight": -1}, "MGDLoss: loss_weight must be a number ≥ 0"),
        ({"align": "linear"}, "MGDLoss: align must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MGDLoss(**options)


def test_end_to_end() -> None:
    model = build(
        distilled(
            tiny_atss(neck__out_channels=32, bbox_head__in_channels=32),
            tiny_teacher(),
            distill={"mgd": {"type": "MGDLoss"}},
        )
    )
    losses = losses_of(model, batch())
    assert losses["loss_kd_mgd"] > 0
    model.parse_losses(losses)[0].backward()
    own = dict(model.named_parameters())
    assert own["distill.mgd.generators.4.2.weight"].grad.abs().sum() > 0
    assert own["distill.mgd.aligns.0.weight"].grad.abs().sum() > 0
    assert not any("generators" in name for name in model.state_dict())
