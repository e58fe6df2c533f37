"""What the table of losses by heads says is so, for one pair or more of each reason."""

from __future__ import annotations

import pytest
import torch
from mmengine.logging import MessageHub

from mmkd.errors import UserError

from ..conftest import build, distilled, losses_of
from .cases import CASES, stock
from .methods import lacks, term
from .test_contract import two_images

LD = "LocalizationDistillationLoss"
GIVEN = [
    ("VFNetHead", "BCKDLoss"),
    ("TOODHead", "DistillationLoss"),
    ("YOLOV3Head", "DKDLoss"),
    ("YOLOXHead", "QualityLoss"),
    ("AutoAssignHead", "BoxIoULoss"),
    ("GFLHead", LD),
    ("FoveaHead", "CrossKDLoss"),
    ("SSDHead", "PGDLoss"),
    ("SSDHead", "FitNetsLoss"),
    ("RTMDetSepBNHead", "FitNetsLoss"),
    *((head, "TeacherBoxesLoss") for head in ("YOLOXHead", "AutoAssignHead", "CenterNetUpdateHead")),
]
# The last is what the error says.
NOT_GIVEN = [
    ("SSDHead", "BCKDLoss", "softmax", "softmax"),
    ("AutoAssignHead", "DistillationLoss", "assigned classes", "region='all'"),
    ("GFLHead", "QualityLoss", "quality output", "no common further output"),
    ("ATSSHead", LD, "distributions for boxes", "does not predict box distributions"),
    ("RetinaHead", LD, "one square anchor per position", "one square anchor per position"),
    ("YOLOXHead", "CrossKDLoss", "towers", "CrossKD"),
    ("SSDHead", "CrossKDLoss", "towers", "CrossKD"),
    ("SSDHead", "TeacherBoxesLoss", "predictions", "cannot predict boxes"),
]


def run(head: str, loss: str) -> torch.Tensor:
    """One iteration of such a student with such a teacher."""
    (case,) = (case for case in CASES if case.head == head)
    MessageHub.get_current_instance().update_info("epoch", 0)
    cfg = stock(case.config, deep=loss == "CrossKDLoss")
    model = build(distilled(cfg, cfg, None, distill={"x": term(loss)}))
    value: torch.Tensor = losses_of(model, two_images())["loss_kd_x"]
    value.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    return value.detach()


@pytest.mark.parametrize(("head", "loss"), GIVEN)
def test_what_is_given_trains(head: str, loss: str) -> None:
    (case,) = (case for case in CASES if case.head == head)
    assert lacks(case, loss) == ""
    value = run(head, loss)
    assert torch.isfinite(value)
    assert value > 0


@pytest.mark.parametrize(("head", "loss", "reason", "message"), NOT_GIVEN)
def test_what_is_not_given_is_refused(head: str, loss: str, reason: str, message: str) -> None:
    (case,) = (case for case in CASES if case.head == head)
    assert reason in lacks(case, loss)
    with pytest.raises(UserError, match=message):
        run(head, loss)
