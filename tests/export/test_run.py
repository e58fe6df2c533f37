"""The ONNX file finds what PyTorch finds, on real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd.export import OnnxDetector, torch_detector

from .conftest import Detector, real_images


@pytest.mark.parametrize("part", ["batch", "one of another size", "black"])
def test_boxes_of_real_images(detector: Detector, exported: Path, part: str) -> None:
    images_N3HW = real_images(detector[1])
    assert images_N3HW.shape == (3, 3, 240, 320)
    if part == "one of another size":
        images_N3HW = images_N3HW[:1, :, :201, :283]
    elif part == "black":
        images_N3HW = images_N3HW[:1] * 0
    wanted, found = torch_detector(detector[0])(images_N3HW), OnnxDetector(exported)(images_N3HW)
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(theirs) > 50
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
        assert torch.equal(ours.labels, theirs.labels)
