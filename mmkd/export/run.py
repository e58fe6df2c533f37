"""Run a detector from its ONNX file, and the same detector in PyTorch.

Shape suffixes: N images, H and W their size, D boxes of all images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.export.packages import needed


class OnnxDetector:
    """A detector from `export_onnx`, run by onnxruntime on the CPU.

    Args:
        file: the ONNX file.

    Attributes:
        facts: the file's metadata.
    """

    def __init__(self, file: Path) -> None:
        _, onnxruntime = needed()
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        properties = self.session.get_modelmeta().custom_metadata_map
        self.facts = {key: json.loads(value) for key, value in properties.items()}

    def __call__(self, images_N3HW: Tensor) -> list[InstanceData]:
        """Detect objects: boxes, scores and labels of each image.

        Args:
            images_N3HW: uint8 in BGR, as mmdet loads them.
        """
        ordered = images_N3HW.flip(1) if self.facts["pixels"] == "rgb" else images_N3HW
        outputs = self.session.run(None, {"images": ordered.contiguous().numpy()})
        boxes_D4, scores_D, labels_D, image_D = map(torch.from_numpy, outputs)
        return [
            InstanceData(
                bboxes=boxes_D4[image_D == i], scores=scores_D[image_D == i], labels=labels_D[image_D == i]
            )
            for i in range(len(images_N3HW))
        ]


def torch_detector(model: Any) -> Callable[[Tensor], list[InstanceData]]:
    """The same function in PyTorch, for comparison.

    Args:
        model: an mmdet detector in eval mode.
    """
    from mmdet.structures import DetDataSample

    def predict(images_N3HW: Tensor) -> list[InstanceData]:
        samples = [
            DetDataSample(metainfo={"img_shape": tuple(images_N3HW.shape[-2:]), "scale_factor": (1.0, 1.0)})
            for _ in images_N3HW
        ]
        with torch.no_grad():
            found = model.test_step({"inputs": list(images_N3HW), "data_samples": samples})
        return [sample.pred_instances for sample in found]

    return predict
