"""A training of a tiny student and teacher, seconds long, on random images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import Runner

from ..conftest import batch, build, distilled, tiny_atss, tiny_teacher


def kd_model(teacher: str | None, **options: Any) -> Any:
    """A tiny student of a tiny teacher."""
    return build(distilled(tiny_atss(), tiny_teacher(), teacher, **options))


def kd_runner(work_dir: Path, model: Any, *hooks: Any, epochs: int = 2, **options: Any) -> Runner:
    """A Runner of six images of 64×64 in three batches, which logs every iteration."""
    for kept_between_runs in (MessageHub, MMLogger):
        kept_between_runs._instance_dict.clear()
    images = batch(*[(64, 64)] * 6)
    data = [{key: value[index] for key, value in images.items()} for index in range(6)]
    infinite = not options.get("train_cfg", {}).get("by_epoch", True)
    settings: dict[str, Any] = {
        "model": model,
        "work_dir": str(work_dir),
        "train_dataloader": {
            "batch_size": 2,
            "dataset": copy.deepcopy(data),
            "sampler": {"type": "InfiniteSampler" if infinite else "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "pseudo_collate"},
            "num_workers": 0,
        },
        "train_cfg": {"by_epoch": True, "max_epochs": epochs},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": 1}},
        "custom_hooks": list(hooks),
        "default_scope": "mmdet",
        "randomness": {"seed": 0},
        "visualizer": {
            "type": "Visualizer",
            "name": str(work_dir),
            "vis_backends": [{"type": "LocalVisBackend"}],
        },
        "experiment_name": f"kd_{work_dir.name}_{len(list(work_dir.glob('*')))}",
        "log_level": "WARNING",
    }
    return Runner(**{**settings, **options})


def logged(work_dir: Path) -> list[dict[str, float]]:
    """What LocalVisBackend wrote, an entry per iteration, of all runs in the folder."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
