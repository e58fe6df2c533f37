"""MMDetection's zoo as students: one config of each folder learns from itself for a step.

    python -m tests.zoo                     every folder, and the table in docs/heads.md
    python -m tests.zoo faster_rcnn detr    these folders, printed alone

Weights are random, images small, transformers two layers deep; widths are those of the config.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

import mmkd  # noqa: F401  (registers)
from mmkd.errors import UserError
from mmkd.registry import MODELS

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
PAGE = Path(__file__).parents[1] / "docs" / "heads.md"
BEGIN, END = "<!-- zoo -->", "<!-- end of zoo -->"

# What has no detector of its own to train.
NOT_DETECTORS = {
    "_base_": "parts of configs",
    "common": "parts of configs",
    "dsdl": "data sets",
    "bytetrack": "tracking",
    "deepsort": "tracking",
    "masktrack_rcnn": "tracking",
    "mask2former_vis": "tracking",
    "ocsort": "tracking",
    "qdtrack": "tracking",
    "reid": "tracking",
    "sort": "tracking",
    "strongsort": "tracking",
}
# Where the first config by name is not the plainest.
CHOSEN = {
    "dcn": "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "dcnv2": "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "detectors": "detectors_cascade-rcnn_r50_1x_coco.py",
    "gcnet": "mask-rcnn_r50_r16-gcb-c3-c5_fpn_1x_coco.py",
    "gn": "mask-rcnn_r50_fpn_gn-all_2x_coco.py",
    "gn+ws": "faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py",
    "guided_anchoring": "ga-retinanet_r50-caffe_fpn_1x_coco.py",
    "hrnet": "faster-rcnn_hrnetv2p-w18-1x_coco.py",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco.py",
    "misc": "d2_faster-rcnn_r50-caffe_fpn_ms-90k_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
}
FEATURES = [{"type": "PKDLoss"}]
OUTPUTS = [
    {"type": "DistillationLoss"},
    {"type": "DistillationLoss", "activation": "softmax"},
    {"type": "DistillationLoss", "region": "teacher"},
    {"type": "DistillationLoss", "activation": "softmax", "region": "all"},
]


@dataclass(frozen=True)
class Row:
    """What came of one folder."""

    folder: str
    config: str
    features: str
    outputs: str


def folders() -> list[str]:
    """Those with detectors."""
    found = [path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__"]
    return sorted(set(found) - set(NOT_DETECTORS), key=str.lower)


def config_of(folder: str) -> Path:
    """One config of a folder: a small backbone, if there is a choice."""
    if folder in CHOSEN:
        return CONFIGS / folder / CHOSEN[folder]
    names = sorted(path.name for path in (CONFIGS / folder).glob("*.py"))
    for wanted in (r"[_-]r18[_-]", r"[_-]r50[_-]", r"tiny|[_-]t[_-]|nano|b0|d53|320", ""):
        for name in names:
            if re.search(wanted, name):
                return CONFIGS / folder / name
    raise FileNotFoundError(folder)


def small(model: Any) -> Any:
    """A model config without pretrained weights, with plain BatchNorm, and shallow transformers."""
    if isinstance(model, dict):
        for key in ("init_cfg", "pretrained"):
            model.pop(key, None)
        if str(model.get("type")).endswith("SyncBN"):
            model["type"] = "BN"
        for key in ("encoder", "decoder"):
            if isinstance(model.get(key), dict) and "num_layers" in model[key]:
                model[key]["num_layers"] = 2
        if isinstance(model.get("num_queries"), int):
            model["num_queries"] = min(model["num_queries"], 50)
        for value in model.values():
            small(value)
    elif isinstance(model, (list, tuple)):
        for value in model:
            small(value)
    return model


def classes_of(model: Any) -> int:
    """The first number of classes in a model config."""
    return next((n for key, n in _items(model) if key in ("num_classes", "num_things_classes")), 80)


def _items(cfg: Any) -> Iterator[tuple[str, Any]]:
    for key, value in cfg.items() if isinstance(cfg, dict) else ():
        if isinstance(value, int):
            yield key, value
        yield from _items(value)
        for part in value if isinstance(value, (list, tuple)) else ():
            yield from _items(part)


def batch(model: Any, side: int) -> Any:
    """Two images with objects, and whatever else some detector of the zoo asks of a sample."""
    torch.manual_seed(0)
    shapes = [[3, side, side]] * 2  # of one size, as YOLACT wants them
    data = demo_mm_inputs(
        2, shapes, num_items=[3, 2], num_classes=classes_of(model), with_mask=True, with_semantic=True
    )
    for sample in data["data_samples"]:
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.repeat(20, 1))
        sample.proposals.scores = torch.ones(len(sample.proposals.bboxes))
    return data


def step(model: ConfigDict, loss: dict[str, Any], side: int) -> None:
    """One step of a student that learns from another of its kind by one loss.

    Raises:
        AssertionError: the loss is not finite, or its gradient reaches no weight.
    """
    cfg = copy.deepcopy(model)
    cfg.update(type="KDDetector", student=model.type, distill={"kd": dict(loss)})
    cfg.teacher = {"config": {"model": copy.deepcopy(model)}, "checkpoint": None, "precision": "fp32"}
    torch.manual_seed(1)
    detector = MODELS.build(cfg).train()
    data = detector.data_preprocessor(batch(model, side), True)
    value = detector.loss(data["inputs"], data["data_samples"])["loss_kd_kd"]
    assert torch.isfinite(value), f"the loss is {float(value)}"
    value.backward()
    reached = [p for p in detector.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached, "no weight has a gradient"


def attempt(model: ConfigDict, losses: list[dict[str, Any]]) -> str:
    """``yes``, or why the first of the losses is refused, if all are."""
    first = ""
    for loss in losses:
        error: Exception | None = None
        for side in (128, 256, 512):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    step(model, loss, side)
                return "yes"
            except UserError as refused:
                error = refused
                break
            except Exception as failed:  # small images are not for every detector
                error = failed
        if isinstance(error, UserError):
            first = first or error.what
        elif error is not None and not isinstance(error, UserError):
            first = (
                first or f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            if "-v" in sys.argv:
                traceback.print_exception(error)
    return first


def row_of(folder: str) -> Row:
    """Try one folder."""
    path = config_of(folder)
    try:
        model = small(Config.fromfile(path).model)
    except Exception as error:
        why = f"fails: {str(error).splitlines()[0]}"
        return Row(folder, path.stem, why, why)
    gc.collect()  # models are in cycles, and some are large
    return Row(folder, path.stem, attempt(model, FEATURES), attempt(model, OUTPUTS))


def table(rows: list[Row]) -> str:
    """As Markdown, with the totals."""
    lines = ["| folder | config | features | outputs |", "|---|---|---|---|"]
    lines += [f"| `{row.folder}` | `{row.config}` | {row.features} | {row.outputs} |" for row in rows]
    for name in ("features", "outputs"):
        count = sum(getattr(row, name) == "yes" for row in rows)
        lines.append("")
        lines.append(
            f"{name.capitalize()}: {count} of {len(rows)} folders ({100 * count / len(rows):.0f} %)."
        )
    return "\n".join(lines)


def main(asked: list[str]) -> None:
    """Try the folders, print the rows, and write the table if all were tried."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    register_all_modules()
    rows = []
    for folder in asked or folders():
        rows.append(row_of(folder))
        print(rows[-1], flush=True)
    print(table(rows))
    if not asked:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main([arg for arg in sys.argv[1:] if not arg.startswith("-")])
