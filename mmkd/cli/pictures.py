"""Results of the demo and its two figures: curves, and detections side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from mmkd.datasets import without_annotations
from mmkd.pictures import Box, draw_side_by_side
from mmkd.registry import DATASETS, MODELS
from mmkd.teachers.checkpoint import load_strictly

SCORE_THRESHOLD = 0.4


@dataclass
class Result:
    """The result of one detector in the demo.

    Attributes:
        name: ``teacher``, ``student`` or ``distilled``.
        model: the stock detector's config.
        checkpoint: the detector's weights.
        metrics: metrics on the test split after the last epoch; empty if nothing was detected.
        curve: (epoch, mAP) of each validation; empty for the teacher.
        step_time: median seconds per training step; ``None`` for the teacher.
    """

    name: str
    model: Any
    checkpoint: str
    metrics: dict[str, float]
    curve: list[tuple[int, float]] = field(default_factory=list)
    step_time: float | None = None


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """The students' mAP over epochs, with the teacher as a horizontal line."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for result in results:
        if result.step_time is None:
            axes.axhline(result.metrics["coco/bbox_mAP"], color="gray", linestyle="--", label=result.name)
        else:
            epochs, values = zip(*sorted(result.curve)) if result.curve else ((), ())
            axes.plot(epochs, values, marker="o", label=result.name)
    axes.set(xlabel="epoch", ylabel="mAP on the test split", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_detections(results: Sequence[Result], cfg: Config, path: Path) -> None:
    """Ground truth and each detector's boxes on the test image with the most classes."""
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    image = max(
        (dataset.get_data_info(i) for i in range(len(dataset))),
        key=lambda info: (len({o["bbox_label"] for o in info["instances"]}), len(info["instances"])),
    )
    names, palette = dataset.metainfo["classes"], dataset.metainfo["palette"]
    colors = [tuple(channel / 255 for channel in color) for color in palette]
    panels = {"ground truth": [(o["bbox"], o["bbox_label"], True) for o in image["instances"]]}
    panels |= {result.name: _detect(result, cfg, image["img_path"]) for result in results}
    draw_side_by_side(image["img_path"], panels, names, colors, path)


@torch.no_grad()
def _detect(result: Result, cfg: Config, image: str) -> list[Box]:
    model = MODELS.build(result.model)
    load_strictly(model, result.checkpoint)
    steps = get_test_pipeline_cfg(cfg)
    pipeline = Compose(without_annotations(steps))
    sample: Any = pipeline({"img_path": image, "img_id": 0})
    model.eval()
    found = model.test_step(pseudo_collate([sample]))[0].pred_instances
    keep = found.scores > SCORE_THRESHOLD
    return [
        (box, label, True) for box, label in zip(found.bboxes[keep].tolist(), found.labels[keep].tolist())
    ]
