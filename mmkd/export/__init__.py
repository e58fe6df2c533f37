"""Exports a whole detector as one ONNX file, from pixels to boxes after NMS, and runs it for evaluation."""

from mmkd.export.evaluation import evaluate, image_size, images_of, training_images
from mmkd.export.onnx_file import Precision, export_onnx
from mmkd.export.run import OnnxDetector, torch_detector
from mmkd.export.student import load_student
from mmkd.export.traced import HEADS, Pixels, check_exportable

__all__ = [
    "HEADS",
    "OnnxDetector",
    "Pixels",
    "Precision",
    "check_exportable",
    "evaluate",
    "export_onnx",
    "image_size",
    "images_of",
    "load_student",
    "torch_detector",
    "training_images",
]
