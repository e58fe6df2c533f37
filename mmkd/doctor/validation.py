"""Check one validation batch: load, predict and pass it to each metric."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mmkd.doctor.findings import Finding, shortened
from mmkd.doctor.setup import TrainingSetup


@torch.no_grad()
def examine_validation(setup: TrainingSetup) -> Iterator[Finding]:
    """Build the metrics and evaluate the model's prediction for one image."""
    if not setup.cfg.get("val_dataloader"):
        yield Finding.ok("validation", "none in the config")
        return
    dataset = setup.dataset("val")
    evaluator = Evaluator([_writing_nothing(one) for one in setup.evaluators("val")])
    evaluator.dataset_meta = dataset.metainfo
    model = setup.model().to(setup.device)
    model.eval()
    loader = Runner.build_dataloader({**setup.loader("val", 1), "dataset": dataset}, seed=0)
    for batch in loader:
        outputs = model.val_step(batch)
        for sample in outputs:
            _say_something(sample)
        evaluator.process(data_samples=outputs, data_batch=batch)
        break
    for metric in evaluator.metrics:
        if not _only_writes(metric):
            _evaluate(metric, outputs)
    names = [type(metric).__name__ for metric in evaluator.metrics]
    yield Finding.ok("evaluators", f"{shortened(names)}: built, and accepts a prediction")


def _writing_nothing(cfg: Any) -> Any:
    """A metric's config that writes its results to a temporary folder."""
    if not isinstance(cfg, Mapping) or cfg.get("format_only"):
        return copy.deepcopy(cfg)
    return copy.deepcopy({name: value for name, value in cfg.items() if name != "outfile_prefix"})


def _only_writes(metric: BaseMetric) -> bool:
    return isinstance(metric, DumpResults) or bool(getattr(metric, "format_only", False))


def _say_something(sample: Any) -> None:
    """Add a box where an untrained student finds none: without boxes, metrics return nothing."""
    found = getattr(sample, "pred_instances", None)
    if found is None or len(found) or "bboxes" not in found:
        return
    height, width = sample.ori_shape[:2]
    like = found.bboxes
    box = InstanceData(
        bboxes=like.new_tensor([[0, 0, width, height]]),
        scores=like.new_ones(1),
        labels=like.new_zeros(1).long(),
    )
    if "masks" in found:
        box.masks = torch.ones((1, height, width), dtype=torch.bool, device=like.device)
    sample.pred_instances = box


def _evaluate(metric: BaseMetric, outputs: list[Any]) -> None:
    """Evaluate only these images, and raise any error."""
    if getattr(metric, "img_ids", ()) is None:  # otherwise `CocoMetric` uses its whole file
        metric.img_ids = [sample.img_id for sample in outputs]
    metric.evaluate(len(outputs))
