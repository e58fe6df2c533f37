"""A training of milliseconds that remembers which samples it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor


class ToyModel(BaseModel):
    """Fits a line; ``seen`` holds the samples of every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.line.weight)
        torch.nn.init.zeros_(self.line.bias)
        self.seen: list[list[int]] = []

    def forward(self, sample: Tensor, mode: str = "tensor") -> Any:
        out = self.line(sample[:, None].float())[:, 0]
        if mode == "loss":
            self.seen.append(sample.tolist())
            return {"loss": (out - 2 * sample).pow(2).mean()}
        return list(out)


class ToyMetric(BaseMetric):
    default_prefix = "toy"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(value) for value in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"mean": sum(results) / len(results)}


class Call(Hook):
    """Calls a function at one place of the training."""

    def __init__(self, where: str, at: int, what: Any) -> None:
        self.count = 0

        def call(runner: Runner, *_: Any, **__: Any) -> None:
            self.count += 1
            if self.count == at:
                what(runner)

        setattr(self, where, call)


def toy_runner(
    work_dir: Path,
    *hooks: Any,
    epochs: int = 3,
    batch_size: int = 2,
    num_workers: int = 0,
    persistent_workers: bool = False,
    **options: Any,
) -> Runner:
    """A Runner of ten samples in five batches, with two batches of validation."""
    for kept_between_runs in (MessageHub, MMLogger):
        kept_between_runs._instance_dict.clear()

    infinite = not options.get("train_cfg", {}).get("by_epoch", True)

    def loader(length: int, shuffle: bool) -> dict[str, Any]:
        sampler = {
            "type": "InfiniteSampler" if shuffle and infinite else "DefaultSampler",
            "shuffle": shuffle,
        }
        collate = {"type": "default_collate"}
        data = [{"sample": index} for index in range(length)]
        return {
            "batch_size": batch_size,
            "dataset": data,
            "sampler": sampler,
            "collate_fn": collate,
            "num_workers": num_workers,
            "persistent_workers": persistent_workers,
        }

    settings: dict[str, Any] = {
        "model": ToyModel(),
        "work_dir": str(work_dir),
        "train_dataloader": loader(10, shuffle=True),
        "val_dataloader": loader(4, shuffle=False),
        "train_cfg": {"by_epoch": True, "max_epochs": epochs, "val_interval": 1},
        "val_cfg": {},
        "val_evaluator": [ToyMetric()],
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.005, "momentum": 0.9}},
        "param_scheduler": {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 12},
        "custom_hooks": list(hooks),
        "default_scope": "mmengine",
        "randomness": {"seed": 0},
        "experiment_name": f"toy_{work_dir.name}_{len(list(work_dir.glob('*')))}",
        "log_level": "WARNING",
    }
    return Runner(**{**settings, **options})
