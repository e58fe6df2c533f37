"""Write a detector with decoding and NMS to an ONNX file.

Shape suffixes: N images, H and W their size, D boxes of all images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmkd.durable import write_durably
from mmkd.errors import UserError
from mmkd.export.int8 import quantised
from mmkd.export.packages import needed
from mmkd.export.traced import Pixels, check_exportable, traced_detector
from mmkd.terminal import silence
from mmkd.version import __version__

Precision = Literal["fp32", "fp16", "int8"]
OPSET = 17


def export_onnx(
    model: Any,
    out: Path,
    classes: Sequence[str],
    *,
    image_size: tuple[int, int] | None = None,
    pixels: Pixels = "rgb",
    precision: Precision = "fp32",
    calibration: Iterable[Tensor] = (),
) -> None:
    """Write a detector with decoding and NMS to an ONNX file.

    The file's input ``images`` is uint8 (N, 3, H, W). Its outputs cover all images of the batch: ``boxes``
    (D, 4), x1, y1, x2, y2 in pixels of the input, ``scores`` (D,), ``labels`` (D,) and ``image`` (D,), the
    image's index in the batch. Its metadata has ``classes``, ``pixels``, ``image_size``, ``score_thr``,
    ``nms_iou_threshold``, ``max_per_img`` and ``precision``.

    Args:
        model: a single-stage detector of mmdet, in eval mode on the CPU.
        out: the file to write, atomically.
        classes: class names, in the order of the labels.
        image_size: width and height for testing the detector; stored in the metadata.
        pixels: channel order of ``images``.
        precision: ``'fp16'``: the network computes in half precision, decoding in float32. ``'int8'``:
            onnxruntime quantises the network's convolutions.
        calibration: for int8, typical images, uint8 (3, H, W) in BGR.

    Raises:
        UserError: a package is missing, the detector is not supported, ONNX lacks an operation, or there are
            no calibration images.

    Example:
        >>> model, cfg, classes = load_student("student.pth")  # doctest: +SKIP
        >>> export_onnx(model, Path("student.onnx"), classes)  # doctest: +SKIP
    """
    onnx, _ = needed()
    check_exportable(model)
    typical = [_channels(image_3HW, pixels)[None].numpy() for image_3HW in calibration]
    if precision == "int8" and not typical:
        raise UserError(
            "There are no images to calibrate int8 with.",
            expected="train_dataloader in the config, or --images",
            found="neither",
            remedy="name a folder of typical images: --images DIR",
        )
    exporter: Any = torch.onnx
    buffer = BytesIO()
    names = ["boxes", "scores", "labels", "image"]
    axes = {"images": {0: "N", 2: "H", 3: "W"}, **{name: {0: "D"} for name in names}}
    try:
        with torch.no_grad(), silence():  # tracing warns about constants that are intended
            scripted = traced_detector(model, pixels, precision == "fp16", (64, 96))
            example = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
            exporter.register_custom_op_symbolic("mmkd::nms", _onnx_nms, OPSET)
            # The dynamo exporter cannot export a loop over an unknown number of boxes.
            options = {"dynamo": False} if "dynamo" in signature(exporter.export).parameters else {}
            exporter.export(
                scripted,
                (example,),
                buffer,
                input_names=["images"],
                output_names=names,
                dynamic_axes=axes,
                opset_version=OPSET,
                **options,
            )
    except Exception as error:
        raise UserError(
            "PyTorch cannot export this detector to ONNX.",
            expected="operations that ONNX has; deformable convolutions are none of them",
            found=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            remedy="replace the operation in the student, or run it in PyTorch",
        ) from error
    made = onnx.load_from_string(buffer.getvalue())
    if precision == "int8":
        made = quantised(made, typical)
    test_cfg = model.bbox_head.test_cfg
    facts = {
        "classes": list(classes),
        "pixels": pixels,
        "image_size": image_size,
        "score_thr": test_cfg.get("score_thr", 0),
        "nms_iou_threshold": test_cfg.nms.iou_threshold,
        "max_per_img": test_cfg.get("max_per_img"),
        "precision": precision,
    }
    onnx.helper.set_model_props(made, {key: json.dumps(value) for key, value in facts.items()})
    made.producer_name, made.producer_version = "mmkd", __version__
    onnx.checker.check_model(made)
    write_durably(out, made.SerializeToString())


def _onnx_nms(g: Any, boxes: Any, scores: Any, threshold: Any) -> Any:
    """ONNX's NMS for one class."""

    def constant(value: Any) -> Any:
        return g.op("Constant", value_t=torch.tensor(value))

    threshold = g.op("Cast", g.op("Reshape", threshold, constant([1])), to_i=1)
    selected = g.op(
        "NonMaxSuppression",
        g.op("Unsqueeze", boxes, constant([0])),
        g.op("Unsqueeze", scores, constant([0, 1])),
        constant([2**31 - 1]),
        threshold,
    )
    return g.op("Reshape", g.op("Gather", selected, constant([2]), axis_i=1), constant([-1]))


def _channels(image_3HW: Tensor, pixels: Pixels) -> Tensor:
    """Convert mmdet's BGR to the file's channel order."""
    return image_3HW.flip(0) if pixels == "rgb" else image_3HW
