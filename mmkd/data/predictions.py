"""Predictions in memory: boxes with scores from any detector, found by image.

Shape suffixes: N boxes of all images, M boxes of one image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmkd.errors import UserError

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

# Rounded coordinates may exceed an image by this much, in px and as a fraction of its side.
_SLACK_PX, _SLACK = 2.0, 0.01


@dataclass(frozen=True)
class ImagePredictions:
    """The predictions for one image.

    Attributes:
        boxes_M4: x1, y1, x2, y2 in pixels of the image file.
        scores_M: in [0, 1].
        labels_M: indices into the file's classes.
        class_scores_MK: a score in [0, 1] for each class, or ``None``.
        size: (width, height) of the image, if the file contains it.
    """

    boxes_M4: Floats
    scores_M: Floats
    labels_M: Integers
    class_scores_MK: Floats | None
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Predictions:
    """The predictions for a set of images, in compact flat arrays: four bytes per number.

    Attributes:
        classes: class names; labels and columns of class scores use this order.
        ids: image ids as in the annotation file; ``None`` if only the name is known.
        names: file names of the images, ``None`` if only the id is known.
        sizes: (width, height) of the images, or ``None``.
        starts: where each image's boxes start, and the end of the last.
        boxes_N4: x1, y1, x2, y2 in pixels of the image file, float32.
        scores_N: in [0, 1], float32.
        labels_N: class indices.
        class_scores_NK: float16, in [0, 1]; ``None`` if not every box has them.
    """

    classes: tuple[str, ...]
    ids: Sequence[Any]
    names: Sequence[str | None]
    sizes: Sequence[tuple[int, int] | None]
    starts: Integers
    boxes_N4: Floats
    scores_N: Floats
    labels_N: Integers
    class_scores_NK: Floats | None

    @property
    def lists_images(self) -> bool:
        """Whether it lists images without detections; a list of COCO results does not."""
        return any(name is not None and name != key for name, key in zip(self.names, self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _by_id(self) -> dict[Any, int]:
        return {key: i for i, key in enumerate(self.ids) if key is not None}

    @cached_property
    def _by_basename(self) -> dict[str, tuple[int, ...]]:
        # Python's garbage collector skips tuples of numbers. It would write to lists, and so copy them into
        # each forked worker.
        found: dict[str, tuple[int, ...]] = {}
        for i, name in enumerate(self.names):
            if name is not None:
                end = name.rpartition("/")[2]
                found[end] = (*found.get(end, ()), i)
        return found

    def find(self, path: str, image_id: Any = None) -> int | None:
        """Find an image.

        Args:
            path: of the image file; it must end with the name in the predictions, with or without ``.jpg``.
                Names take precedence over ids, which belong to one annotation file.
            image_id: the image's id in the annotation file.

        Returns:
            Its index, or ``None`` if it is not found.

        Raises:
            UserError: the path ends with several names in the predictions.
        """
        path = path.replace("\\", "/")
        if not self._by_basename:
            return self._by_id.get(image_id)
        found = self._ending(path) or self._ending(path.rpartition(".")[0])
        if len(found) > 1:
            longest = max(found, key=lambda i: len(str(self.names[i])))
            twice = [i for i in found if self.names[i] == self.names[longest]]
            if len(twice) > 1:
                raise UserError(
                    f"The predictions list {self.names[longest]} {len(twice)} times.",
                    expected="each image once",
                    found=path,
                    remedy="include the folder in file_name, so that names are unique",
                )
            return longest
        return found[0] if found else None

    def _ending(self, path: str) -> list[int]:
        near = self._by_basename.get(path.rpartition("/")[2], ())
        return [i for i in near if f"/{path}".endswith(f"/{self.names[i]}")]

    def of(self, index: int) -> ImagePredictions:
        """The predictions for one of the images."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        vectors = None if self.class_scores_NK is None else self.class_scores_NK[rows].astype(np.float32)
        return ImagePredictions(
            self.boxes_N4[rows], self.scores_N[rows], self.labels_N[rows], vectors, self.sizes[index]
        )


def beyond(boxes_N4: Floats, size_N2: Floats) -> npt.NDArray[np.bool_]:
    """Which boxes exceed their image by more than rounding does, (N,).

    Args:
        boxes_N4: x1, y1, x2, y2.
        size_N2: width and height of each box's image.
    """
    slack_N2 = np.where(np.isfinite(size_N2), _SLACK_PX + _SLACK * size_N2, np.inf)
    outside_N2 = (boxes_N4[:, :2] < -slack_N2) | (boxes_N4[:, 2:] > size_N2 + slack_N2)
    found: Any = outside_N2.any(1)
    return cast(npt.NDArray[np.bool_], found)
