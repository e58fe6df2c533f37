"""`PackTwoViews`: the teacher sees the plain image, the student an augmented version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmdet.datasets.transforms import PackDetInputs

from mmkd.errors import UserError
from mmkd.registry import TRANSFORMS

VIEW = "teacher_img"
# Transforms that move or mix pixels without leaving a trace in a sample that has no objects.
_TRACELESS = ("RandomShift", "Mosaic", "CachedMosaic", "MixUp", "CachedMixUp", "CopyPaste", "InstaBoost")


@TRANSFORMS.register_module()
class PackTwoViews(PackDetInputs):
    """Pack a sample with the image for the teacher and a further augmented one for the student.

    Use it instead of `PackDetInputs`. The transforms before it apply to both views; those in ``strong`` apply
    only to the student's, and must not move pixels: colours, noise, erased parts. The teacher then runs on
    the first view, normalised and padded like the student's. Works for labelled and unlabelled images.

    With a cache (`CachedTeacher`), ``strong`` does not matter: only the teacher's view counts.

    Source: weak and strong augmentation of FixMatch (https://arxiv.org/abs/2001.07685), for detectors STAC
    (https://arxiv.org/abs/2005.04757).

    Args:
        strong: the transforms' configs.
        **options: options of `PackDetInputs`.

    Raises:
        UserError: one of them moves pixels; raised at the latest when it first does.

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
        """As `PackDetInputs`; the data sample also has the teacher's image, C×H×W, as ``teacher_img``."""
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
    """A transform and the transforms inside it, for `RandomChoice` and the like."""
    yield transform
    inner = getattr(transform, "transforms", ())
    for one in inner if isinstance(inner, (list, tuple)) else getattr(inner, "transforms", ()):
        yield from nested(one)


def _geometry(results: dict[str, Any]) -> tuple[Any, ...]:
    """The geometry of a sample: where its pixels are."""
    flip = results.get("flip", False), results.get("flip_direction")
    return results["img"].shape, results.get("homography_matrix", 0), flip, results.get("scale_factor", 0)


def _moves(name: str) -> UserError:
    return UserError(
        f"{name} moves pixels after the teacher's view is taken.",
        expected="only transforms in PackTwoViews.strong that do not move pixels, like PhotoMetricDistortion",
        found=name,
        remedy=f"put {name} before PackTwoViews, where it applies to both views",
    )
