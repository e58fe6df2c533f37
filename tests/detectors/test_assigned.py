from __future__ import annotations

import copy

import pytest
import torch

from mmkd.detectors.assigned import check_labels, check_loss
from mmkd.errors import UserError

from ..conftest import build, distilled
from ..heads.cases import CASES, Case, built, stock


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.head)
def test_what_a_head_tells_is_known_before_the_first_step(case: Case) -> None:
    head = built(case)[0].bbox_head
    before = copy.deepcopy(head.state_dict())
    random = torch.random.get_rng_state()
    if not case.trains:
        with pytest.raises(UserError, match="needs its own teacher"):
            check_loss(head)
    elif case.labels:
        check_loss(head)
        check_labels(head)
    else:
        with pytest.raises(UserError, match=r"foreground[\s\S]*region='all'"):
            check_labels(head)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("config", [case.config for case in CASES if not case.labels])
def test_the_default_loss_is_refused_while_building(config: str) -> None:
    cfg = stock(config)
    with pytest.raises(UserError, match="Cannot determine the foreground priors|needs its own teacher"):
        build(distilled(cfg, cfg))


def test_a_term_that_is_not_computed_asks_nothing() -> None:
    cfg = stock("free_anchor/freeanchor_r50_fpn_1x_coco.py")
    build(distilled(cfg, cfg, distill={"cls": {"type": "DistillationLoss", "loss_weight": 0}}))


def test_a_head_that_cannot_be_tried_is_left_to_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = stock("free_anchor/freeanchor_r50_fpn_1x_coco.py")

    def on_gpu_alone(*_: object) -> None:
        raise RuntimeError("no kernel for CPUs")

    monkeypatch.setattr("mmdet.models.FreeAnchorRetinaHead.loss_by_feat", on_gpu_alone)
    build(distilled(cfg, cfg))
