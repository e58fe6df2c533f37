"""Cost of a detector: parameters, multiply-adds, and CPU latency per image."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from mmkd.registry import DATASETS, MODELS
from mmkd.teachers.checkpoint import load_strictly

ROUNDS, LEAST_ROUNDS, WARM_UP = 25, 5, 2
SECONDS = 60.0


@dataclass(frozen=True)
class Cost:
    """Cost of a detector.

    Attributes:
        parameters: the number of parameters.
        flops: multiply-adds per image, commonly called FLOPs; ``None`` if they cannot be counted.
        size: (height, width) of the detector's input image.
        latency: median seconds per image on the CPU, from preprocessed pixels to boxes.
    """

    parameters: int
    flops: float | None
    size: tuple[int, int]
    latency: float


def measure(members: Mapping[str, tuple[Config, str]]) -> dict[str, Cost]:
    """Measure detectors in this process, taking turns on the same image.

    Args:
        members: name → evaluation config and checkpoint.
    """
    models, batches, flops, sizes = {}, {}, {}, {}
    for name, (cfg, checkpoint) in members.items():
        init_default_scope(cfg.get("default_scope") or "mmdet")
        if cfg.get("custom_imports"):
            import_modules_from_strings(**cfg.custom_imports)
        model_cfg = copy.deepcopy(cfg.model)
        if cfg.get("data_preprocessor") is not None:
            model_cfg.setdefault("data_preprocessor", cfg.data_preprocessor)
        model = MODELS.build(model_cfg)
        load_strictly(model, checkpoint)
        model.eval()
        models[name] = model
        batches[name] = pseudo_collate([DATASETS.build(cfg.test_dataloader.dataset)[0]])
        data = model.data_preprocessor(copy.deepcopy(batches[name]))
        height, width = data["inputs"].shape[-2:]
        sizes[name] = (int(height), int(width))
        flops[name] = _flops(model, data)
    times = _take_turns(models, batches)
    return {
        name: Cost(
            sum(parameter.numel() for parameter in models[name].parameters()),
            flops[name],
            sizes[name],
            statistics.median(times[name]),
        )
        for name in members
    }


def _flops(model: Any, data: Mapping[str, Any]) -> float | None:
    counted = copy.copy(model)  # two-stage heads need the data samples
    counted.forward = partial(model.forward, data_samples=data["data_samples"])
    try:
        found = get_model_complexity_info(
            counted, None, inputs=data["inputs"], show_table=False, show_arch=False
        )
        return float(found["flops"])
    except Exception as error:  # one untraceable operator must not cost the whole report
        print(f"cannot count the FLOPs of {type(model).__name__}: {type(error).__name__}: {error}")
        return None


@torch.no_grad()
def _take_turns(models: Mapping[str, Any], batches: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds of each; taking turns, in rotating order, spreads other load of the machine evenly."""
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        if turn >= WARM_UP + LEAST_ROUNDS and time.perf_counter() - begin > SECONDS:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            batch = copy.deepcopy(batches[name])
            start = time.perf_counter()
            models[name].test_step(batch)
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return times
