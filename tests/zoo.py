"""MMDetection's zoo as students: one config of each folder learns from another of its kind for a step.

    python -m tests.zoo rows.jsonl                     the folders that rows.jsonl lacks
    python -m tests.zoo rows.jsonl faster_rcnn detr    these folders alone, tried again
    … -v                                               with the tracebacks of what fails

The table in docs/heads.md is written when rows.jsonl has all folders.

Weights are random, images small, regions few, transformers two layers deep, ResNets an eighth as wide.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import multiprocessing
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

import mmkd  # noqa: F401  (registers)
from mmkd.detectors.kinds import check_student
from mmkd.errors import UserError
from mmkd.outputs import DENSE, PLACES
from mmkd.registry import MODELS, class_of

from .conftest import fill_unset

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
PAGE = Path(__file__).parents[1] / "docs" / "heads.md"
BEGIN, END = "<!-- zoo -->", "<!-- end of zoo -->"

# Folders without a detector to train.
NO_DETECTORS = {
    "_base_": "parts of configs",
    "bytetrack": "tracking",
    "common": "parts of configs",
    "deepsort": "tracking",
    "dsdl": "data sets",
    "mask2former_vis": "tracking",
    "masktrack_rcnn": "tracking",
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
    "gcnet": "mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco.py",
    "gn": "mask-rcnn_r50_fpn_gn-all_2x_coco.py",
    "gn+ws": "faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py",
    "guided_anchoring": "ga-retinanet_r50-caffe_fpn_1x_coco.py",
    "hrnet": "faster-rcnn_hrnetv2p-w18-1x_coco.py",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco.py",
    "regnet": "mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco.py",
    "resnest": "faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
    "timm_example": "retinanet_timm-tv-resnet50_fpn_1x_coco.py",
}
YES, NONE = "yes", "–"
FEATURES = {"type": "PKDLoss"}
# The first that fits counts: sigmoid or softmax, with assigned classes or without.
OUTPUTS = [
    {"type": "DistillationLoss"},
    {"type": "DistillationLoss", "activation": "softmax"},
    {"type": "DistillationLoss", "region": "teacher"},
    {"type": "DistillationLoss", "region": "all"},
    {"type": "DistillationLoss", "activation": "softmax", "region": "all"},
]
SIDES = (128, 256, 512)
# What a refusal is, of which mmkd knows nothing: a package or a device that is missing where this ran.
MACHINE = "not tried here: "
NO_STUDENT = "is not supported as a student"


@dataclass(frozen=True)
class Row:
    """What came of one folder.

    Attributes:
        features: `YES`, or why not.
        outputs: the place that a loss on class logits read, or why there was none.
    """

    folder: str
    config: str
    family: str
    features: str
    outputs: str

    @property
    def counts(self) -> bool:
        """Whether it says anything of mmkd: a detector that ran here and may learn at all."""
        return self.features != NONE and MACHINE not in self.features and NO_STUDENT not in self.features

    @property
    def predicts(self) -> bool:
        """Whether a loss on its outputs served."""
        return self.outputs in (*DENSE, *PLACES)


def folders() -> list[str]:
    """All of MMDetection's."""
    found = [path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__"]
    return sorted(found, key=str.lower)


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
    """A model config without pretrained weights, with plain BatchNorm, shallow, with few regions."""
    if isinstance(model, dict):
        for key in ("init_cfg", "pretrained", "batch_augments"):  # the last pad to 1024 pixels
            model.pop(key, None)
        if str(model.get("type")).endswith("SyncBN"):
            model["type"] = "BN"
        if str(model.get("type")).endswith("BoxInstDataPreprocessor"):  # it needs scikit-image
            model["type"] = "DetDataPreprocessor"
            model.pop("mask_stride", None)
            for key in [key for key in model if key.startswith(("pairwise", "bottom"))]:
                model.pop(key)
        for key in ("encoder", "decoder"):
            if isinstance(model.get(key), dict) and "num_layers" in model[key]:
                model[key]["num_layers"] = 2
                if "num_cp" in model[key]:
                    model[key]["num_cp"] = 0
        if "pos_fraction" in model:  # a sampler
            model["num"] = 64
        if isinstance(model.get("num_queries"), int):
            model["num_queries"] = min(model["num_queries"], 50)
        for value in model.values():
            small(value)
    elif isinstance(model, (list, tuple)):
        for value in model:
            small(value)
    return model


def narrow(model: Any) -> Any:
    """A model config whose ResNet, if it has one before a neck, and no groups, has an eighth of its width."""
    backbone, neck = model.get("backbone"), model.get("neck")
    first = neck[0] if isinstance(neck, list) else neck
    if first is None or not str(backbone.type).endswith("ResNet") or "base_channels" in backbone:
        return model
    if backbone.get("norm_cfg", {}).get("type") == "GN":
        return model
    widths = [64 * 2**stage * (4 if backbone.depth >= 50 else 1) for stage in range(4)]
    channels = first.get("in_channels")
    if isinstance(channels, (list, tuple)) and list(channels) == widths[-len(channels) :]:
        backbone.base_channels = 8
        first.in_channels = [width // 8 for width in channels]
        if "rfp_backbone" in first:
            first.rfp_backbone.base_channels = 8
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
    classes = classes_of(model)
    data = demo_mm_inputs(  # it gives labels from 1 to 254
        2, shapes, num_items=[3, 2], num_classes=min(max(classes, 2), 255), with_mask=True, with_semantic=True
    )
    for sample in data["data_samples"]:
        objects = sample.gt_instances
        objects.labels.clamp_(max=classes - 1)
        sample.proposals = InstanceData(bboxes=objects.bboxes.repeat(20, 1))
        sample.proposals.scores = torch.ones(len(sample.proposals.bboxes))
        objects.pairwise_masks = torch.ones(len(objects), 8, side // 4, side // 4)
    return data


def step(model: ConfigDict, losses: Sequence[dict[str, Any]], side: int) -> list[str]:
    """One step of a student that learns from another of its kind.

    Returns:
        Where each loss read the student.

    Raises:
        AssertionError: a loss is not finite, or its gradient reaches no weight.
    """
    check_student(class_of(model), model.type)
    cfg = copy.deepcopy(model)
    distill = {f"loss{index}": dict(loss) for index, loss in enumerate(losses)}
    cfg.update(type="KDDetector", student=model.type, distill=distill)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/teacher.pth"
        torch.save({"state_dict": initialised(copy.deepcopy(model), seed=2).state_dict()}, checkpoint)
        cfg.teacher = {"config": {"model": model}, "checkpoint": checkpoint, "precision": "fp32"}
        detector = initialised(cfg, seed=1).train()
    data = detector.data_preprocessor(batch(model, side), True)
    found = detector.loss(data["inputs"], data["data_samples"])
    weights = [p for p in detector.parameters() if p.requires_grad]
    places = []
    for name in distill:
        value = found[f"loss_kd_{name}"]
        assert torch.isfinite(value), f"the loss is {float(value)}"
        grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        assert any(grad is not None and grad.any() for grad in grads), "no weight has a gradient"
        place, _ = detector._places.get(name, (None, None))
        places.append(next((name for name, one in PLACES.items() if one is place), "dense"))
    return places


def initialised(cfg: ConfigDict, seed: int) -> Any:
    """A detector with random weights as a training begins with: others may give no finite features."""
    torch.manual_seed(seed)
    detector = MODELS.build(cfg)
    with contextlib.redirect_stdout(io.StringIO()):
        detector.init_weights()
    return fill_unset(detector)  # as TridentNet's


def attempt(
    model: ConfigDict, choices: Sequence[Sequence[dict[str, Any]]], verbose: bool
) -> tuple[bool, str]:
    """Whether some choice of losses served, and where the last of it read; else why the first did not."""
    first = ""
    for losses in choices:
        error: Exception | None = None
        for side in SIDES:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    return True, step(model, losses, side)[-1]
            except UserError as refused:
                error = refused
                break
            except Exception as failed:  # small images are not for every detector
                error = failed
        assert error is not None
        if verbose:
            traceback.print_exception(error)
        first = first or _reason(error)
        if MACHINE in first or NO_STUDENT in first:
            break
    return False, first


def _reason(error: Exception) -> str:
    """What an error says, in a line."""
    what = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = " ".join(what.split())
    for sign, why in _MISSING.items():
        if sign in str(error):
            return f"{MACHINE}{why}"
    return text if isinstance(error, UserError) else f"fails: {text[:200]}"


_MISSING = {
    "implementation for device": "its layers run on CUDA alone",
    "mmpretrain": "it needs mmpretrain",
    "timm": "it needs timm",
    "detectron2": "it needs Detectron2",
}


def row_of(folder: str, verbose: bool = False) -> Row:
    """Try one folder."""
    if folder in NO_DETECTORS:
        return Row(folder, NONE, NO_DETECTORS[folder], NONE, NONE)
    path = config_of(folder)
    try:
        model = narrow(small(Config.fromfile(path).model))
    except Exception as error:
        return Row(folder, path.stem, NONE, _reason(error), NONE)
    if "language_model" in model:  # or it would be looked for on the network
        return Row(folder, path.stem, model.type, f"{MACHINE}it needs the weights of BERT", NONE)
    softmax = "roi_head" in model
    outputs = sorted(OUTPUTS, key=lambda loss: ("activation" in loss) != softmax)
    served, why = attempt(model, [[FEATURES, loss] for loss in outputs], verbose)
    if served:
        return Row(folder, path.stem, model.type, YES, why)
    if MACHINE in why or NO_STUDENT in why:
        return Row(folder, path.stem, model.type, why, NONE)
    served, of_features = attempt(model, [[FEATURES]], verbose)
    return Row(folder, path.stem, model.type, YES if served else of_features, why)


def line(row: Row) -> str:
    """A row of the table."""
    named = row.config != NONE
    cells = [
        f"`{row.folder}`",
        f"`{row.config}`" if named else NONE,
        f"`{row.family}`" if named and row.family != NONE else row.family,
        "✓" if row.features == YES else row.features,
        f"`{row.outputs}`" if row.predicts else row.outputs,
    ]
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[Row]) -> str:
    """As Markdown, with the totals."""
    counted = [row for row in rows if row.counts]
    features = sum(row.features == YES for row in counted)
    outputs = sum(row.predicts for row in counted)
    return "\n".join(
        [
            "| folder | config | detector | features | outputs |",
            "|---|---|---|---|---|",
            *map(line, rows),
            "",
            f"Of {len(rows)} folders {len(counted)} have a detector that ran here and may be a student. "
            f"Features: {features} ({100 * features / len(counted):.0f} %). Outputs: {outputs} "
            f"({100 * outputs / len(counted):.0f} %).",
        ]
    )


def read_rows(path: Path) -> dict[str, Row]:
    """What was tried so far, by folder; the last row of each counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.folder: row for row in rows}


def write_table(rows: Sequence[Row]) -> None:
    """Put the table into the docs."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def tried(asked: Sequence[str], verbose: bool = False) -> Iterator[Row]:
    """Try folders, each in a process of its own: what some layers hold on to goes with it."""
    with multiprocessing.get_context("fork").Pool(1, prepare, maxtasksperchild=1) as pool:
        yield from pool.imap(partial(row_of, verbose=verbose), asked)


def prepare() -> None:
    """Make a process ready for `row_of`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    register_all_modules()
    for count in ("iter", "epoch"):  # BoxInst and TOOD read them
        MessageHub.get_current_instance().update_info(count, 0)


def main(arguments: Sequence[str]) -> None:
    """Try folders one by one, keep each row, and write the table when none is left."""
    path, *asked = [Path(arguments[0]), *(arg for arg in arguments[1:] if not arg.startswith("-"))]
    done = {} if asked else read_rows(path)
    for row in tried([folder for folder in asked or folders() if folder not in done], "-v" in arguments):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        print(row, flush=True)
    rows = read_rows(path)
    if all(folder in rows for folder in folders()):
        write_table([rows[folder] for folder in folders()])


if __name__ == "__main__":
    main(sys.argv[1:])
