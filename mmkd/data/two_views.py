"""`PackTwoViews`: the teacher sees an image as it is, the student a harder version of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmdet.datasets.transforms import PackDetInputs

from mmkd.errors import UserError
from mmkd.registry import TRANSFORMS

VIEW = "teacher_img"
# What moves or mixes pixels and leaves no trace of it in a sample without objects.
_TRACELESS = ("RandomShift", "Mosaic", "CachedMosaic", "MixUp", "CachedMixUp", "CopyPaste", "InstaBoost")


@TRANSFORMS.register_module()
class PackTwoViews(PackDetInputs):
    """Pack a sample with the image for the teacher, and one changed by further transforms for the student.

    It stands in place of `PackDetInputs`. The transforms before it are of both views; those in ``strong`` of
    the student's alone, and leave every pixel where it is: colours, noise, erased parts. The teacher is then
    asked about the first view, normalised and padded as the student's. Labelled and unlabelled images may
    have it alike.

    With a cache (`CachedTeacher`) what ``strong`` does is no matter: the teacher's view alone counts.

    Source: weak and strong augmentation of FixMatch (https://arxiv.org/abs/2001.07685), for detectors STAC
    (https://arxiv.org/abs/2005.04757).

    Args:
        strong: configs of transforms.
        **options: those of `PackDetInputs`.

    Raises:
        UserError: one of them moves pixels, at the latest when it first does.

    Example:
        ``dict(type='PackTwoViews', strong=[dict(type='PhotoMetricDistortion')])``
    """

    def __init__(self, strong: Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.strong = Compose(list(strong)).transforms
        for transform in self.strong:
            for inner in nested(transform):
                if type(inner).__name__ in _TRACELESS:
                    raise _moves(type(inner).__name__)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """As `PackDetInputs`; the data sample has the teacher's image, C×H×W, as ``teacher_img``."""
        view = results["img"].copy()
        before = _geometry(results)
        changed: Any = results
        for transform in self.strong:
            changed = transform(changed)
            if changed is None:
                return None
            if not all(np.array_equal(a, b) for a, b in zip(before, _geometry(changed))):
                raise _moves(type(transform).__name__)
        packed: dict[str, Any] = super().transform(changed)
        image_CHW = super().transform({"img": view})["inputs"]
        packed["data_samples"].set_data({VIEW: image_CHW})
        return packed


def nested(transform: Any) -> Iterator[Any]:
    """A transform and those inside of it, of `RandomChoice` and its like."""
    yield transform
    inner = getattr(transform, "transforms", ())
    for one in inner if isinstance(inner, (list, tuple)) else getattr(inner, "transforms", ()):
        yield from nested(one)


def _geometry(results: dict[str, Any]) -> tuple[Any, ...]:
    """What tells where pixels are."""
    flip = results.get("flip", False), results.get("flip_direction")
    return results["img"].shape, results.get("homography_matrix", 0), flip, results.get("scale_factor", 0)


def _moves(name: str) -> UserError:
    return UserError(
        f"{name} moves pixels after the teacher's view is taken.",
        expected="only transforms in PackTwoViews.strong that do not move pixels, like PhotoMetricDistortion",
        found=name,
        remedy=f"put {name} before PackTwoViews, where it applies to both views",
    )
