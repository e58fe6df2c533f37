"""`KDDetector`: a student of any class."""

from __future__ import annotations

from functools import cache
from typing import Any

from mmdet.models.detectors import DetectionTransformer

from mmkd.detectors.distilled import Distilled
from mmkd.detectors.distilled_transformer import DistilledTransformer
from mmkd.detectors.kinds import check_student
from mmkd.errors import check_options
from mmkd.registry import MODELS, accepted_arguments, class_of


@MODELS.register_module()
class KDDetector:
    """A detector of any class, distilled from a frozen teacher.

    The result is an instance of both the student's own class, with everything it overrides, and `Distilled`.

    Args:
        student: the type from the student's own config, like ``'FasterRCNN'``, or the class.
        **options: the options of `Distilled`, and the student's own.

    Raises:
        UserError: there is no such detector, or an option is unknown; also as in `Distilled`.

    Example:
        A config that inherits from a Faster R-CNN config::

            model = dict(
                type='KDDetector', student='FasterRCNN',
                teacher=dict(config=…, checkpoint=…),
                distill=dict(cls=dict(type='DistillationLoss', activation='softmax')))
    """

    def __new__(cls, *, student: Any = None, **options: Any) -> Any:
        """Build the student."""
        own = check_student(class_of(student), student)
        made = distilled_class(own)
        check_options(f"KDDetector of {own.__name__}", options, accepted_arguments(made)[0])
        return made(**options)


@cache
def distilled_class(student: type) -> type:
    """A student's class with `Distilled` before it; cached per class."""
    if issubclass(student, Distilled):
        return student
    mixin = DistilledTransformer if issubclass(student, DetectionTransformer) else Distilled
    return type(f"KD{student.__name__}", (mixin, student), {"__doc__": student.__doc__})
