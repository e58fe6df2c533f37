"""Record the geometric transforms of a training pipeline, so that stored boxes can follow them.

Shape suffixes: M boxes of one image. A box is x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import mmcv.transforms as mmcv_transforms
import numpy as np
import numpy.typing as npt
from mmdet.datasets import transforms as mmdet_transforms
from mmdet.datasets.transforms.colorspace import ColorTransform
from mmdet.datasets.transforms.geometric import GeomTransform
from mmdet.datasets.transforms.transforms import Corrupt
from mmengine.dataset import Compose

from mmkd.errors import UserError

Floats = npt.NDArray[np.floating[Any]]
# For each step that moves the image: the homography, and (height, width) after it.
View = list[tuple[Floats, tuple[int, int]]]

# They keep the image's origin and scale.
_STAY = (
    mmcv_transforms.LoadImageFromFile,
    mmcv_transforms.LoadAnnotations,
    mmcv_transforms.Normalize,
    mmcv_transforms.RandomGrayscale,
    mmcv_transforms.Pad,
    mmdet_transforms.LoadImageFromNDArray,
    mmdet_transforms.LoadMultiChannelImageFromFiles,
    mmdet_transforms.LoadEmptyAnnotations,
    mmdet_transforms.FilterAnnotations,
    mmdet_transforms.LoadProposals,
    mmdet_transforms.PhotoMetricDistortion,
    mmdet_transforms.YOLOXHSVRandomAug,
    Corrupt,
    mmdet_transforms.CutOut,
    mmdet_transforms.RandomErasing,
    mmdet_transforms.PackDetInputs,
    ColorTransform,
)
# They write `homography_matrix`, or use a resize that does.
_RECORD = (
    mmdet_transforms.Resize,
    mmdet_transforms.FixShapeResize,
    mmdet_transforms.RandomFlip,
    mmdet_transforms.RandomCrop,
    GeomTransform,
)
_RESIZE = (
    mmcv_transforms.RandomResize,
    mmcv_transforms.RandomChoiceResize,
    mmdet_transforms.ResizeShortestEdge,
)
_CHOOSE = (mmcv_transforms.RandomChoice, mmcv_transforms.RandomApply, mmdet_transforms.RandomOrder)


class TracedPipeline(Compose):
    """A pipeline that records its geometric transforms in each sample's metadata, as ``view``.

    Args:
        transforms: the built transforms of the pipeline that it replaces.

    Raises:
        UserError: a transform moves the image in an unknown way.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        check_followed(transforms)
        self.transforms = list(transforms)

    def __call__(self, data: Any) -> Any:
        """A sample, or ``None`` if a transform drops it."""
        view: View = []
        for transform in self.transforms:
            stays = isinstance(transform, _STAY)
            data = transform(data) if stays else self._moved(transform, data, view)
            if data is None:
                return None
        if "data_samples" in data:
            data["data_samples"].set_metainfo({"view": view})
        return data

    def _moved(self, transform: Any, data: Any, view: View) -> Any:
        before = data.pop("homography_matrix", None)
        matrix = None
        if isinstance(transform, mmdet_transforms.RandomAffine):
            matrix = _affine(transform, *data["img"].shape[:2])
        data = transform(data)
        if data is None:
            return None
        matrix = data.get("homography_matrix") if matrix is None else matrix
        if matrix is None:
            matrix = np.eye(3)
        matrix = np.asarray(matrix, dtype=np.float64)
        view.append((matrix, tuple(data["img"].shape[:2])))
        data["homography_matrix"] = matrix if before is None else matrix @ before
        return data


def check_followed(transforms: Iterable[Any], within: str = "") -> None:
    """Raise `UserError` for a transform whose effect on boxes is unknown.

    Args:
        transforms: the built transforms of a pipeline.
        within: the name of the transform that chooses among them.
    """
    for transform in transforms:
        name = type(transform).__name__
        if isinstance(transform, _CHOOSE):
            parts = [part if isinstance(part, Iterable) else [part] for part in transform.transforms]
            for part in parts:
                check_followed(part, within=f"{name} of ")
        elif isinstance(transform, _RESIZE):
            if not isinstance(transform.resize, _RECORD):
                raise _refused(f"{within}{name} with a {type(transform.resize).__name__}")
        elif isinstance(transform, mmdet_transforms.RandomAffine):
            if within:  # only the chosen transform knows its matrix
                raise _refused(f"{within}{name}")
        elif not isinstance(transform, (*_STAY, *_RECORD)) or isinstance(transform, mmdet_transforms.Albu):
            raise _refused(f"{within}{name}")


def _refused(name: str) -> UserError:
    return UserError(
        f"The teacher's boxes cannot follow {name} in the training pipeline.",
        expected="Resize, RandomResize, RandomFlip, RandomCrop, RandomAffine, Rotate, ShearX, TranslateX, "
        "Pad and changes of color, or RandomChoice among them",
        found=f"{name}, which mixes images or does not record how it moves pixels",
        remedy=f"remove {name} from the pipeline; use RandomAffine and RandomCrop for scale and position",
    )


def _affine(transform: Any, height: int, width: int) -> Floats:
    """The matrix that `RandomAffine` will draw next."""
    states = random.getstate(), np.random.get_state()
    matrix: Floats = transform._get_random_homography_matrix(
        height + transform.border[1] * 2, width + transform.border[0] * 2
    )
    random.setstate(states[0])
    np.random.set_state(states[1])
    return matrix


def follow(boxes_M4: Floats, view: View) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Move boxes as mmdet's transforms move annotated boxes.

    Args:
        boxes_M4: boxes in pixels of the image file.
        view: the ``view`` written by `TracedPipeline`.

    Returns:
        The boxes in pixels of the view, clipped to it, and their indices among the M; boxes that were cut off
        are dropped.

    Example:
        >>> half = np.diag([0.5, 0.5, 1.0])
        >>> follow(np.array([[10.0, 10, 20, 20], [90, 90, 99, 99]]), [(half, (40, 40))])
        (array([[ 5.,  5., 10., 10.]]), array([0]))
    """
    kept = np.arange(len(boxes_M4))
    boxes_M4 = np.asarray(boxes_M4, dtype=np.float64)
    for matrix, (height, width) in view:
        x1, y1, x2, y2 = boxes_M4.T
        corners_M43 = np.stack(
            [np.stack([x, y, np.ones_like(x)], 1) for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2))], 1
        )
        moved_M43 = corners_M43 @ matrix.T
        points_M42 = moved_M43[..., :2] / moved_M43[..., 2:]
        boxes_M4 = np.concatenate([points_M42.min(1), points_M42.max(1)], axis=1)
        boxes_M4 = boxes_M4.clip(0, [width, height, width, height])
        whole = (boxes_M4[:, 2:] > boxes_M4[:, :2]).all(1)
        boxes_M4, kept = boxes_M4[whole], kept[whole]
    return boxes_M4, kept
