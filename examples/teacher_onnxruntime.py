"""A detector in an ONNX file as a teacher; in each step it runs on the images that the student sees.

    pip install onnxruntime
    PYTHONPATH=examples mmkd-train student.py

with this in the student's config; see docs/any-teacher.md::

    teacher=dict(type='CallableTeacher', function='teacher_onnxruntime:Detector',
                 options=dict(file='detector.onnx'), classes=['Platelets', 'RBC', 'WBC'])

The file has MMDeploy's format, with NMS inside: from an image (1, 3, H, W) it computes ``dets`` (1, M, 5),
boxes x1, y1, x2, y2 in pixels with scores, and ``labels`` (1, M). For other formats, change the code around
``run``.

Shape suffixes: H and W size of an image, C channels, M boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime


class Detector:
    """Finds boxes in images.

    Args:
        file: the ONNX file.
        mean: mean of the pixels, in RGB.
        std: standard deviation of the pixels, in RGB.
        providers: onnxruntime's providers, like ``CUDAExecutionProvider``; by default all available ones.
    """

    def __init__(
        self,
        file: str,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        providers: Sequence[str] | None = None,
    ) -> None:
        self.session = onnxruntime.InferenceSession(
            file, providers=list(providers or onnxruntime.get_available_providers())
        )
        self.mean, self.std = np.float32(mean), np.float32(std)

    def __call__(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Boxes, scores and labels of each image, uint8 H×W×3 in RGB."""
        return [self.find(image_HWC) for image_HWC in images]

    def find(self, image_HWC: Any) -> dict[str, Any]:
        """Boxes, scores and labels of one image."""
        pixels_1CHW = ((image_HWC - self.mean) / self.std).transpose(2, 0, 1)[None]
        (name,) = (one.name for one in self.session.get_inputs())
        dets_1M5, labels_1M = self.session.run(["dets", "labels"], {name: pixels_1CHW})
        found_M = labels_1M[0] >= 0  # MMDeploy pads with −1
        dets_M5 = dets_1M5[0][found_M]
        return {"boxes": dets_M5[:, :4], "scores": dets_M5[:, 4], "labels": labels_1M[0][found_M]}
