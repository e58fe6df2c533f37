"""`KDSingleStageDetector`: a single-stage student of mmdet's own class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.detectors import SingleStageDetector

from mmkd.detectors.distilled import Distilled
from mmkd.detectors.kinds import check_single_stage
from mmkd.errors import check_options
from mmkd.heads import check_head_type
from mmkd.registry import MODELS, accepted_arguments


@MODELS.register_module()
class KDSingleStageDetector(Distilled, SingleStageDetector):
    """A single-stage detector, distilled from a frozen teacher.

    The same as `KDDetector` with ``student='SingleStageDetector'``.

    Args:
        teacher: see `Distilled`.
        distill: see `Distilled`.
        task_loss_weight: see `Distilled`.
        inherit: see `Distilled`.
        **student: the arguments of `SingleStageDetector`.

    Raises:
        UserError: as in `Distilled`.
    """

    def __init__(
        self,
        *,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        distill: Mapping[str, Any] | None = None,
        task_loss_weight: float = 1.0,
        inherit: Sequence[str] | Mapping[str, str] = (),
        **student: Any,
    ) -> None:
        valid, _ = accepted_arguments(KDSingleStageDetector)
        check_single_stage(set(student) - set(valid))
        check_options("KDSingleStageDetector", student, valid)
        check_head_type(student, "student")
        super().__init__(
            teacher=teacher,
            distill=distill,
            task_loss_weight=task_loss_weight,
            inherit=inherit,
            **student,
        )
