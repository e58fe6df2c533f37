"""Which priors count, and the divisors that only the student's own loss knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.heads.observe import observe
from mmkd.losses import BCKDLoss
from mmkd.structures import DistillContext

from ..conftest import batch, build, distilled, losses_of
from ..heads.cases import stock

RETINA = "retinanet/retinanet_r18_fpn_1x_coco.py"
ATSS = "atss/atss_r50_fpn_1x_coco.py"
GFL = "gfl/gfl_r50_fpn_1x_coco.py"
FCOS = "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
SHAPES = [(96, 128), (50, 70)]


def context_of(config: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[DistillContext, Any]:
    """What a loss is given, and the calls of the head's classification loss."""
    seen: list[DistillContext] = []
    real = BCKDLoss.forward

    def spy(self: Any, student: Any, teacher: Any, context: Any) -> Any:
        seen.append(context)
        return real(self, student, teacher, context)

    monkeypatch.setattr(BCKDLoss, "forward", spy)
    cfg = stock(config)
    model = build(distilled(cfg, cfg, distill={"cls": {"type": "BCKDLoss", **options}})).train()
    with observe(model.bbox_head, labels=("loss_cls",)) as own:
        assert torch.isfinite(losses_of(model, batch(*SHAPES))["loss_kd_cls"])
    return seen[0], own


@pytest.mark.parametrize("config", [RETINA, ATSS, GFL])
def test_what_the_classification_loss_counts(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context, own = context_of(config, monkeypatch, valid="loss")
    padded, _ = context_of(config, monkeypatch, valid="pad")
    weight_N = torch.cat([args[2].flatten() for args in own.loss_cls_args])
    assert torch.equal(context.valid_N, weight_N > 0)
    # RetinaNet's assigner ignores anchors whose IoU is neither low nor high.
    assert (config == RETINA) == bool((~context.valid_N & padded.valid_N).any())


def test_a_head_without_weights_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = context_of(FCOS, monkeypatch, valid="loss")
    assert context.valid_N.all()


def test_up_to_the_padded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    on_image, _ = context_of(ATSS, monkeypatch)
    padded, _ = context_of(ATSS, monkeypatch, valid="pad")
    assert padded.valid_N.sum() > on_image.valid_N.sum()
    assert padded.valid_N[on_image.valid_N].all()
    assert on_image.padded_N is None, "computed though nobody asks for it"


@pytest.mark.parametrize("config", [ATSS, FCOS])
def test_the_sum_of_centerness_targets(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = stock(config)
    model = build(distilled(cfg, cfg, distill={"cls": {"type": "BCKDLoss", "normalizer": "centerness"}}))
    targets: list[torch.Tensor] = []
    model.bbox_head.loss_centerness.register_forward_pre_hook(lambda _, args: targets.append(args[1].sum()))
    context, _ = context_of(config, monkeypatch, normalizer="centerness")
    losses_of(model.train(), batch(*SHAPES))
    assert context.quality_sum is not None
    torch.testing.assert_close(context.quality_sum, torch.stack(targets).sum())
    assert context.quality_sum > 0


def test_what_a_head_does_not_have_is_said_while_building() -> None:
    cfg = stock(GFL)
    with pytest.raises(UserError, match="no centerness targets"):
        build(distilled(cfg, cfg, distill={"cls": {"type": "BCKDLoss", "normalizer": "centerness"}}))
    yolox = stock("yolox/yolox_tiny_8xb8-300e_coco.py")
    loss = {"type": "DistillationLoss", "region": "all", "valid": "loss"}
    with pytest.raises(UserError, match="Cannot determine the foreground priors"):
        build(distilled(yolox, yolox, distill={"cls": loss}))
    with pytest.raises(UserError, match="valid must be one of image, pad, loss, found 'all'"):
        build(distilled(cfg, cfg, distill={"cls": {"type": "BCKDLoss", "valid": "all"}}))


@pytest.mark.parametrize("valid", ["image", "pad", "loss"])
@pytest.mark.parametrize(
    "loss",
    [
        {"type": "DistillationLoss", "region": "all"},
        {"type": "DKDLoss"},
        {"type": "DISTLoss"},
        {"type": "BCKDLoss"},
        {"type": "BoxIoULoss"},
        {"type": "LocalizationDistillationLoss"},
        {"type": "PGDLoss"},
        {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": {"type": "BCKDLoss"}}},
    ],
    ids=lambda loss: loss["type"],
)
def test_every_loss_on_priors_has_the_choice(loss: dict[str, Any], valid: str) -> None:
    cfg = stock(GFL, deep=True)
    chosen: dict[str, Any] = {**loss, "valid": valid}
    if loss["type"] == "CrossKDLoss":
        chosen = {**loss, "losses": {"cls": {"type": "BCKDLoss", "valid": valid}}}
    model = build(distilled(cfg, cfg, distill={"x": chosen}))
    value = losses_of(model, batch(*SHAPES))["loss_kd_x"]
    assert torch.isfinite(value)
    value.backward()
