"""Exports a whole detector as one ONNX file, from pixels to boxes after NMS, and runs it for evaluation.

The file combines two traces: the network (preprocessing, backbone, neck, head) runs on the batch, decoding
(mmdet's own `predict_by_feat`, then NMS) on one image at a time in a loop. So batch size, height and width
can all vary.

Shape suffixes: N images, H and W their size, M boxes of one image, D boxes of all images.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from io import BytesIO
from math import ceil, lcm, sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from mmcv.ops import nms
from mmdet.models.dense_heads import FoveaHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.compat import load_config
from mmkd.datasets import class_names, common_metainfo, images_below, innermost, without_annotations
from mmkd.durable import write_durably
from mmkd.errors import UserError
from mmkd.registry import DATASETS, MODELS
from mmkd.student_config import literal_config, student_config
from mmkd.teachers.checkpoint import load_weights, own_keys, read_checkpoint
from mmkd.version import __version__

Precision = Literal["fp32", "fp16", "int8"]
Pixels = Literal["rgb", "bgr"]
OPSET = 17
# The tests export each of these and compare it with PyTorch.
HEADS = (
    "ATSSHead",
    "AutoAssignHead",
    "CenterNetUpdateHead",
    "DDODHead",
    "FCOSHead",
    "FSAFHead",
    "FoveaHead",
    "FreeAnchorRetinaHead",
    "GFLHead",
    "LDHead",
    "PISARetinaHead",
    "RTMDetHead",
    "RTMDetSepBNHead",
    "RetinaHead",
    "RetinaSepBNHead",
    "YOLOFHead",
    "YOLOV3Head",
    "YOLOXHead",
)


def load_student(checkpoint: str, config: str | None = None) -> tuple[Any, Config, tuple[str, ...]]:
    """Build the plain student of a checkpoint and load its weights.

    Args:
        checkpoint: path or URL of a checkpoint from training or ``mmkd-publish``.
        config: the training config; by default the ``.py`` file beside the checkpoint, or else the config
            stored in the checkpoint.

    Returns:
        The detector in eval mode on the CPU, its config, and the class names.

    Raises:
        UserError: checkpoint or config cannot be read or do not fit together, or class names are missing.
    """
    content = read_checkpoint(checkpoint)
    weights = own_keys(content.get("state_dict", content), checkpoint)
    meta = content.get("meta") or {}
    beside = Path(checkpoint).with_suffix(".py")
    if config is None and beside.exists():
        config = str(beside)
    try:
        cfg = load_config(config).to_dict() if config else literal_config(str(meta.get("cfg", "")))
    except Exception as error:
        raise UserError(
            "Cannot read the student's config.",
            expected=f"the training's config by --config, {beside.name} beside the checkpoint, or one in it",
            found=f"{config or checkpoint} ({type(error).__name__}: {error})",
            remedy="add --config with the config of the training",
        ) from error
    found = meta.get("dataset_meta")
    classes = class_names(found)
    if not classes and cfg.get("test_dataloader"):
        classes = class_names(next(innermost(cfg["test_dataloader"]["dataset"])).get("metainfo"))
    if not classes:
        raise UserError(
            "The classes have no names.",
            expected="dataset_meta in the checkpoint, or metainfo of test_dataloader in the config",
            found="neither",
            remedy="add metainfo=dict(classes=(…)) to the data set of the config",
        )
    made = student_config(cfg, common_metainfo(found, classes) if found else {})
    # For calibration and evaluation; `student_config` keeps only what publishing needs.
    for key in ("train_dataloader", "test_dataloader", "test_evaluator", "work_dir"):
        if cfg.get(key) is not None:
            made[key] = cfg[key]
    with DefaultScope.overwrite_default_scope(made.default_scope):
        model = MODELS.build(ConfigDict(made.model).copy())
    load_weights(model, weights, checkpoint)
    return revert_sync_batchnorm(model).eval(), made, classes


def check_exportable(model: Any) -> None:
    """Refuse detectors that cannot be exported correctly.

    Raises:
        UserError: the head or its type of NMS is not supported.
    """
    head = getattr(model, "bbox_head", None)
    stock = next((kind for kind in type(head).__mro__ if kind.__module__.startswith("mmdet.")), type(head))
    if not isinstance(head, BaseDenseHead) or stock.__name__ not in HEADS or hasattr(model, "mask_head"):
        raise UserError(
            "Cannot export this detector to ONNX.",
            expected=f"a single-stage detector with one of {', '.join(HEADS)}",
            found=f"{type(model).__name__} with {stock.__name__ if head is not None else 'no dense head'}",
            remedy="run it in PyTorch, or export the network alone with torch.onnx",
        )
    nms = head.test_cfg.get("nms")
    unknown = set(nms or {}) - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if not nms or nms.get("type", "nms") != "nms" or unknown:
        raise UserError(
            "Cannot export this kind of NMS to ONNX.",
            expected="test_cfg.nms=dict(type='nms', iou_threshold=…), class_agnostic if wanted",
            found=f"test_cfg.nms={nms}",
            remedy="set it in the config given by --config",
        )


class _Network(nn.Module):
    """From images (N, 3, H, W), 0 to 255, to the head's maps, flattened into one tuple."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, pixels: Pixels, half: bool) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        # mmdet loads BGR.
        self.swaps = bool(preprocessor._channel_conversion) == (pixels == "bgr")
        self.divisor, self.pad_value = preprocessor.pad_size_divisor, float(preprocessor.pad_value)
        if isinstance(getattr(model.neck, "upsample", None), nn.Upsample):  # CSPNeXtPAFPN, YOLOXPAFPN
            # It doubles a level to join the next, so sizes must be even; mmdet pads in the pipeline.
            self.divisor = lcm(self.divisor, *(max(s) for s in model.bbox_head.prior_generator.strides))
        normal = preprocessor._enable_normalize
        self.register_buffer("mean", preprocessor.mean.clone() if normal else torch.zeros(3, 1, 1))
        self.register_buffer("std", preprocessor.std.clone() if normal else torch.ones(3, 1, 1))
        self.dtype = torch.float16 if half else torch.float32
        self.model = deepcopy(model).to(self.dtype)
        self.lengths: list[int | None] = []

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, ...]:
        x_N3HW = images_N3HW.float()
        if self.swaps:
            x_N3HW = x_N3HW.flip(1)
        x_N3HW = (x_N3HW - self.mean) / self.std
        height, width = x_N3HW.shape[-2:]
        d = self.divisor
        x_N3HW = F.pad(x_N3HW, (0, (d - width % d) % d, 0, (d - height % d) % d), value=self.pad_value)
        outs = self.model.bbox_head(self.model.extract_feat(x_N3HW.to(self.dtype)))
        self.lengths = [None if maps[0] is None else len(maps) for maps in outs]
        return tuple(level.float() for maps in outs for level in maps if level is not None)


class _NeverEmpty:
    """A box coder that decodes one extra row, because tracing loses mmdet's shortcut for zero boxes."""

    def __init__(self, coder: Any) -> None:
        self.coder, self.encode_size = coder, coder.encode_size

    def decode(self, priors_MP: Tensor, preds_MK: Tensor, max_shape: Any = None) -> Tensor:
        priors_MP = torch.cat([priors_MP, priors_MP.new_ones(1, priors_MP.shape[1])])
        preds_MK = torch.cat([preds_MK, preds_MK.new_zeros(1, preds_MK.shape[1])])
        decoded_M4: Tensor = self.coder.decode(priors_MP, preds_MK, max_shape=max_shape)
        return decoded_M4[:-1]


class _Decoder(nn.Module):
    """From one image's maps to its boxes, scores and labels after NMS."""

    def __init__(self, head: Any, lengths: Sequence[int | None]) -> None:
        super().__init__()
        self.head, self.lengths = deepcopy(head), lengths
        self.cfg = deepcopy(head.test_cfg)
        self.min_size = self.cfg.get("min_bbox_size", -1)
        self.cfg.min_bbox_size = -1  # applied after clipping, below
        coder = getattr(head, "bbox_coder", None)
        self.clips = bool(getattr(coder, "clip_border", False))
        # Without a shape, mmdet does not clip. With one, tracing would write its numbers into the file.
        self.shape: tuple[int, int] | None = None
        self.margin = 0.0
        if isinstance(head, FoveaHead):  # always clips, to the index of the last pixel
            self.clips, self.shape, self.margin = True, (2**30, 2**30), 1.0
        if coder is not None and "max_shape" in signature(coder.decode).parameters:
            self.head.bbox_coder = _NeverEmpty(coder)

    def forward(
        self, index_1: Tensor, maps: tuple[Tensor, ...], size_2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        levels = iter([level.index_select(0, index_1) for level in maps])
        count = next(length for length in self.lengths if length)
        outs = [[next(levels) if n else None for _ in range(n or count)] for n in self.lengths]
        (found,) = self.head.predict_by_feat(
            *outs, batch_img_metas=[{"img_shape": self.shape}], cfg=self.cfg, rescale=False, with_nms=False
        )
        boxes_M4, scores_M, labels_M = found.bboxes, found.scores, found.labels
        if self.clips:
            boxes_M4 = torch.minimum(boxes_M4.clamp(min=0), size_2[[1, 0, 1, 0]] - self.margin)
        if self.min_size >= 0:
            sizes_M2 = boxes_M4[:, 2:] - boxes_M4[:, :2]
            large_M = (sizes_M2[:, 0] > self.min_size) & (sizes_M2[:, 1] > self.min_size)
            boxes_M4, scores_M, labels_M = boxes_M4[large_M], scores_M[large_M], labels_M[large_M]
        apart_M4 = boxes_M4
        if not self.cfg.nms.get("class_agnostic"):
            farthest = torch.cat([boxes_M4.reshape(-1), size_2]).max()  # there may be no boxes
            apart_M4 = boxes_M4 + (labels_M.to(boxes_M4) * (farthest + 1))[:, None]
        kept = torch.ops.mmkd.nms(apart_M4, scores_M, self.cfg.nms.iou_threshold)
        kept = kept[: self.cfg.get("max_per_img")]  # YOLOX has no limit
        return boxes_M4[kept], scores_M[kept], labels_M[kept]


class _Detector(nn.Module):
    """Network and decoder; scripted, so that the loop over images stays a loop."""

    def __init__(self, network: Any, decoder: Any) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = self.network(images)
        indices = torch.arange(images.shape[0])
        size = torch.tensor([images.shape[2], images.shape[3]], dtype=torch.float32)
        all_boxes, all_scores, all_labels, all_images = [], [], [], []
        for i in range(images.shape[0]):
            boxes, scores, labels = self.decoder(indices[i : i + 1], maps, size)
            all_boxes.append(boxes)
            all_scores.append(scores)
            all_labels.append(labels)
            all_images.append(torch.full_like(labels, i))
        return torch.cat(all_boxes), torch.cat(all_scores), torch.cat(all_labels), torch.cat(all_images)


# Tracing keeps a custom operator as one node, which `_onnx_nms` translates.
_OPERATORS = torch.library.Library("mmkd", "DEF")
_OPERATORS.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
_OPERATORS.impl("nms", lambda boxes, scores, iou_threshold: nms(boxes, scores, iou_threshold)[1], "CPU")


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


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about constants that are intended
        yield


def _trace(model: Any, pixels: Pixels, half: bool, size: tuple[int, int]) -> Any:
    """The detector as one scripted module."""
    head = model.bbox_head
    network = _Network(model, pixels, half).requires_grad_(False).eval()
    images_N3HW = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    traced = torch.jit.trace(network, images_N3HW, check_trace=False)
    # mmdet takes min(nms_pre, number of candidates). With enough candidates the trace stores nms_pre, and
    # ONNX's slice accepts fewer.
    side = ceil(2 * sqrt(max(head.test_cfg.get("nms_pre", 0), 1)))
    generator = torch.Generator().manual_seed(0)
    example = tuple(
        torch.randn(1, level.shape[1], side, side, generator=generator) * 4 for level in traced(images_N3HW)
    )
    decoder = _Decoder(head, network.lengths).requires_grad_(False).eval()
    size_2 = torch.tensor([16.0 * side, 16.0 * side])
    inputs = (torch.tensor([0]), example, size_2)
    return torch.jit.script(_Detector(traced, torch.jit.trace(decoder, inputs, check_trace=False)))


def _needed() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime."""
    found = []
    for name in ("onnx", "onnxruntime"):
        try:
            found.append(importlib.import_module(name))
        except Exception as error:
            raise UserError(
                f"Export needs {name}.",
                expected="onnx and onnxruntime",
                found=f"{type(error).__name__}: {error}",
                remedy="pip install 'mmkd[export]'",
            ) from error
    return found[0], found[1]


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
    onnx, _ = _needed()
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
        with torch.no_grad(), _quiet():
            scripted = _trace(model, pixels, precision == "fp16", (64, 96))
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
        made = _quantised(made, typical)
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


def _quantised(made: Any, images: Sequence[Any]) -> Any:
    """The same model with the network's convolutions in int8."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(made, source)
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
        )
        quantised = onnx.load(target)
    _sort(quantised.graph)
    return quantised


def _sort(graph: Any) -> None:
    """Sort the nodes topologically; onnxruntime's order ignores what the loop reads from outside."""
    made = {name for node in graph.node for name in node.output}
    ready: set[str] = set()
    left, ordered = list(graph.node), []
    while left:
        blocked = []
        for node in left:
            if (_read_by(node) & made) <= ready:
                ready.update(node.output)
                ordered.append(node)
            else:
                blocked.append(node)
        left = blocked
    del graph.node[:]
    graph.node.extend(ordered)


def _read_by(node: Any) -> set[str]:
    """Names that a node reads, also inside loop and branch bodies."""
    inner = [part for attribute in node.attribute for part in attribute.g.node]
    return set(node.input).union(*(_read_by(part) for part in inner))


def _channels(image_3HW: Tensor, pixels: Pixels) -> Tensor:
    """Convert mmdet's BGR to the file's channel order."""
    return image_3HW.flip(0) if pixels == "rgb" else image_3HW


class OnnxDetector:
    """A detector from `export_onnx`, run by onnxruntime on the CPU.

    Args:
        file: the ONNX file.

    Attributes:
        facts: the file's metadata.
    """

    def __init__(self, file: Path) -> None:
        _, onnxruntime = _needed()
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


def image_size(cfg: Config) -> tuple[int, int] | None:
    """Width and height to which a config's test pipeline resizes; ``None`` if it does not set them.

    Args:
        cfg: a detector's config.
    """
    if cfg.get("test_dataloader") is None:
        return None
    steps = next(innermost(cfg.test_dataloader.dataset)).get("pipeline") or []
    scales = (step["scale"] for step in steps if "scale" in step and "Resize" in str(step["type"]))
    found: Any = next(scales, None)
    return (int(found[0]), int(found[1])) if isinstance(found, (list, tuple)) else None


def images_of(cfg: Config, paths: Iterable[str]) -> Iterator[Tensor]:
    """Images prepared by a config's test pipeline, uint8 (3, H, W) in BGR.

    Args:
        cfg: a config with ``test_dataloader``.
        paths: paths of the image files.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        prepare = Compose(without_annotations(next(innermost(cfg.test_dataloader.dataset))["pipeline"]))
        for path in paths:
            yield prepare({"img_path": path, "img_id": 0, "instances": []})["inputs"]


def training_images(cfg: Config) -> list[str]:
    """Paths of a config's training images; empty if it has no training data.

    Args:
        cfg: a training config.
    """
    if cfg.get("train_dataloader") is None:
        return []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return [info["img_path"] for _, info in images_below(dataset)]


def evaluate(cfg: Config, predict: Callable[[Tensor], list[InstanceData]]) -> dict[str, float]:
    """Metrics of a detector on a config's test data.

    Args:
        cfg: a config with ``test_dataloader`` and ``test_evaluator``.
        predict: an `OnnxDetector` or the result of `torch_detector`.

    Returns:
        The evaluator's metrics, like ``coco/bbox_mAP``.
    """
    loading = {
        **deepcopy(cfg.test_dataloader),
        "batch_size": 1,
        "num_workers": 0,
        "persistent_workers": False,
    }
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(ConfigDict(loading))
        evaluator = Runner.build_evaluator(None, deepcopy(cfg.test_evaluator))
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        (image_3HW,), (sample,) = batch["inputs"], batch["data_samples"]
        (found,) = predict(image_3HW[None])
        found.bboxes = found.bboxes / found.bboxes.new_tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = found
        evaluator.process([sample], batch)
    metrics: dict[str, float] = evaluator.evaluate(len(loader.dataset))
    return metrics
