"""Teachers that only provide boxes: predictions in a file, or your own function.

Shape suffixes: B images of the batch, M boxes of one image, K classes.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd.data.prediction_files import read_predictions
from mmkd.data.predictions import Predictions, beyond
from mmkd.data.views import follow
from mmkd.errors import UserError
from mmkd.outputs import detections, within
from mmkd.registry import TEACHERS
from mmkd.structures import DenseOutputs, HeadSpec, Need
from mmkd.teachers.pixels import to_rgb
from mmkd.teachers.protocol import Teacher


class BoxesTeacher(Teacher):
    """A teacher that only provides detections, for `TeacherBoxesLoss` and losses at ``place='boxes'``.

    Args:
        classes: the teacher's class names, in the order of its labels.
    """

    gives: frozenset[Need] = frozenset({"detections"})

    def __init__(self, classes: Sequence[str]) -> None:
        self.class_names = tuple(classes)
        self.spec = HeadSpec(len(classes), len(classes), True, (), ())

    @abstractmethod
    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`."""

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """As `Teacher.answer`: detections."""
        return DenseOutputs(self.spec, (), detections=self.detect(inputs_BCHW, data_samples))


@TEACHERS.register_module()
class PredictionsTeacher(BoxesTeacher):
    """Any detector's predictions for the training images, from a file; for its format see `read_predictions`.

    Configured by ``teacher=dict(predictions='teacher.json')``. An image is found by the end of its path, or
    by its id if the file has no names. The boxes follow the augmentation: `TeacherViewsHook`, added by mmkd's
    train tool, makes the pipeline record how it transformed each image.

    Each training process reads the file once, into flat arrays; the loader's workers do not hold it.

    Args:
        predictions: the file, or a folder of files.
        classes: the class names, if the file is a plain list of results.
        min_score: boxes with a lower score are left out.

    Raises:
        UserError: the file is missing, incomplete or invalid.
    """

    def __init__(
        self, predictions: str, classes: Sequence[str] | None = None, min_score: float = 0.0
    ) -> None:
        self.path, self.min_score = str(predictions), min_score
        self.known: Predictions = read_predictions(predictions, classes)
        super().__init__(self.known.classes)
        print_log(
            f"teacher: {len(self.known.boxes_N4)} boxes of {len(self.known)} images in "
            f"{self.path}, {'with' if self.known.class_scores_NK is not None else 'without'} "
            "per-class scores",
            "current",
        )

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """As `Teacher.facts`."""
        return {**super().facts, "config": self.path}

    def check_images(self, found: Sequence[tuple[str, Any]]) -> None:
        """Compare the file's images with the student's training images.

        Args:
            found: path and id of each training image.

        Raises:
            UserError: the file has none of them, or it names images and some are missing.
        """
        lacking = [path for path, key in found if self.known.find(path, key) is None]
        if not lacking or (not self.known.lists_images and len(lacking) < len(found)):
            return
        some = next((name for name in self.known.names if name is not None), f"id {self.known.ids[:1]}")
        raise UserError(
            "The teacher's predictions do not cover "
            + ("these images." if len(lacking) == len(found) else "all training images."),
            expected=f"predictions for {len(found)} images, like {found[0][0]}",
            found=f"{len(found) - len(lacking)} of them in {self.path}, which has {len(self.known)} "
            f"images like {some}; missing {lacking[0]}",
            remedy="predict the training images with `mmkd-predict`; images without objects must be "
            "listed too",
        )

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`: the boxes in the file, transformed like the image."""
        return [self._of(sample, inputs_BCHW.device) for sample in data_samples]

    def _of(self, sample: Any, device: torch.device) -> Any:
        meta = sample.metainfo
        path = str(meta.get("img_path"))
        if "view" not in meta:
            raise UserError(
                "The teacher's boxes cannot follow the augmentation: samples do not record it.",
                expected="the hook that makes the pipeline record it",
                found="none",
                remedy="add custom_hooks=[dict(type='TeacherViewsHook')], or train with mmkd's "
                "tools/train.py",
            )
        index = self.known.find(path, meta.get("img_id"))
        if index is None:
            if self.known.lists_images:
                self.check_images([(path, meta.get("img_id"))])
            nothing = torch.zeros(0, device=device)
            return detections(nothing.reshape(0, 4), nothing, nothing.long())
        said = self.known.of(index)
        rows = np.flatnonzero(said.scores_M >= self.min_score)
        height, width = meta["ori_shape"][:2]
        self._check_size(said.boxes_M4[rows], said.size, (width, height), path)
        boxes_M4, kept = follow(said.boxes_M4[rows], meta["view"])
        rows = rows[kept]
        vectors = said.class_scores_MK
        return detections(
            torch.from_numpy(boxes_M4).float().to(device),
            torch.from_numpy(said.scores_M[rows]).to(device),
            torch.from_numpy(said.labels_M[rows]).long().to(device),
            None if vectors is None else torch.from_numpy(vectors[rows]).to(device),
        )

    def _check_size(self, boxes_M4: Any, said: Any, size: tuple[int, int], path: str) -> None:
        outside = beyond(boxes_M4, np.array([size], dtype=np.float64).repeat(len(boxes_M4), 0))
        if (said is not None and said != size) or outside.any():
            raise UserError(
                "The teacher's predictions are for an image of a different size.",
                expected=f"boxes within {size[0]}×{size[1]} px of {path}",
                found=f"an image of {said[0]}×{said[1]} px"
                if said is not None and said != size
                else f"a box at {boxes_M4[outside][0].tolist()}",
                remedy="predict the same image files that the student trains on, with boxes in pixels of "
                "the file",
            )


@TEACHERS.register_module()
class CallableTeacher(BoxesTeacher):
    """Your own function, called with each training image as the student sees it.

    ``teacher=dict(type='CallableTeacher', function='my_project.teacher:predict', classes=['cat', 'dog'])``.
    It receives a list of images, uint8 H×W×3 in RGB, without padding, and returns a dict for each: ``boxes``
    (M, 4) as x1, y1, x2, y2 in pixels of that image, ``scores`` (M,) in [0, 1], ``labels`` (M,), and if
    available ``class_scores`` (M, K); as tensors, arrays or lists. It runs under `torch.inference_mode`.

    Args:
        function: ``module:name``, or the function itself. An object with a ``to(device)`` method moves with
            the student.
        student: the student; its pixel normalisation is reversed.
        classes: the class names, in the order of its labels.
        options: arguments of a class or factory: ``module:name`` is then called once, with these arguments.

    Raises:
        UserError: the function does not exist, raises, or returns something else.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        student: Any,
        classes: Sequence[str],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(classes)
        self.name = function if isinstance(function, str) else getattr(function, "__qualname__", "")
        found = _imported(function) if isinstance(function, str) else function
        self.options = None if options is None else dict(options)
        self.function = found if options is None else found(**options)
        self._preprocessor = student.data_preprocessor
        print_log(f"teacher: {self.name}, called in every step", "current")

    @property
    def identity(self) -> list[Any] | None:
        """The function's name, options and source."""
        try:
            source = inspect.getsource(inspect.getmodule(self.function) or type(self.function))
        except (OSError, TypeError):
            return None
        return [self.name, self.options, list(self.class_names or ()), _digest(source)]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """As `Teacher.facts`."""
        return {**super().facts, "config": self.name}

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """As `Teacher.apply_`, if the function can be moved."""
        move = getattr(self.function, "to", None)
        if callable(move):
            move(fn(torch.empty(0)).device)

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`."""
        images = to_rgb(self._preprocessor, inputs_BCHW, [sample.img_shape for sample in data_samples])
        try:
            with torch.inference_mode():
                said = list(self.function(images))
        except Exception as error:  # whatever a user's function raises
            raise UserError(
                f"The teacher {self.name} failed.",
                expected="a dict with boxes, scores and labels for each image",
                found=f"{type(error).__name__}: {error}",
                remedy="correct the function; `mmkd-doctor` tests it on a batch without training",
            ) from error
        if len(said) != len(images):
            raise self._wrong(f"{len(images)} predictions, one per image", f"{len(said)}")
        return [
            within(self._checked(one, inputs_BCHW.device), sample.img_shape)
            for one, sample in zip(said, data_samples)
        ]

    def _checked(self, said: Any, device: torch.device) -> Any:
        names = ("boxes", "scores", "labels")
        if not isinstance(said, Mapping) or not set(names) <= set(said):
            keys = sorted(said) if isinstance(said, Mapping) else type(said).__name__
            raise self._wrong(f"a dict with {', '.join(names)}", str(keys))
        boxes_M4, scores_M, labels_M = (torch.as_tensor(said[name], device=device) for name in names)
        boxes_M4, scores_M = boxes_M4.float().reshape(-1, 4).clone(), scores_M.float().flatten().clone()
        labels_M = labels_M.long().flatten().clone()
        if not len(boxes_M4) == len(scores_M) == len(labels_M):
            raise self._wrong(
                "as many boxes as scores and labels", f"{len(boxes_M4)}, {len(scores_M)}, {len(labels_M)}"
            )
        if not ((scores_M >= 0) & (scores_M <= 1)).all() or not boxes_M4.isfinite().all():
            raise self._wrong("finite boxes, and scores from 0 to 1", "other values or NaN")
        if not ((labels_M >= 0) & (labels_M < self.spec.num_classes)).all():
            raise self._wrong(
                f"labels from 0 to {self.spec.num_classes - 1}", str(labels_M.unique().tolist())
            )
        vectors = said.get("class_scores")
        if vectors is not None:
            vectors = torch.as_tensor(vectors, device=device).float().clone()
            if vectors.shape != (len(boxes_M4), self.spec.num_classes):
                raise self._wrong(
                    f"class_scores of shape {(len(boxes_M4), self.spec.num_classes)}",
                    str(tuple(vectors.shape)),
                )
        return detections(boxes_M4, scores_M, labels_M, vectors)

    def _wrong(self, expected: str, found: str) -> UserError:
        return UserError(
            f"Invalid output of the teacher {self.name}.",
            expected=expected,
            found=found,
            remedy="correct the function",
        )


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    why = ""
    try:
        found = getattr(importlib.import_module(module), name, None) if module and name else None
    except ImportError as error:
        found, why = None, f" ({error})"
    if not callable(found):
        raise UserError(
            "Cannot import the teacher's function.",
            expected="function='my_project.teacher:predict', a module and a function in it",
            found=f"{path!r}{why}",
            remedy="correct the name, or add the module's folder to PYTHONPATH",
        )
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
