"""Run folders as the tools leave them, without any training."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmkd.compare.plan import Plan, plan_from
from mmkd.compare.processes import ToolError
from mmkd.compat import load_config
from mmkd.registry import DATASETS

CLASSES = ("Platelets", "RBC", "WBC")


def plan(**content: Any) -> Plan:
    """The demo's student, and two variants of it."""
    variants = {"boxes": "configs/bccd/kd_boxes.py", "inherit": "configs/bccd/kd_inherit.py"}
    given = {"student": "configs/bccd/student.py", "variants": variants, "seeds": [0, 1], **content}
    return plan_from({key: value for key, value in given.items() if value is not None}, "blood")


def coco(value: float) -> dict[str, float]:
    """What CocoMetric says with ``classwise``, around a value; there are no small objects."""
    by_class = {f"coco/{name}_precision": round(value + 0.01 * i, 3) for i, name in enumerate(CLASSES)}
    names = {"bbox_mAP": value, "bbox_mAP_50": value + 0.2, "bbox_mAP_75": value - 0.1, "bbox_mAP_s": -1.0}
    return {**by_class, **{f"coco/{name}": number for name, number in names.items()}}


def scalars(final: float, distilled: bool = False, epochs: int = 3, seconds: float = 0.5) -> str:
    """The log of a training of four iterations per epoch."""
    rows: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        for iteration in range(4 * epoch - 3, 4 * epoch + 1):
            losses = {"loss_cls": 1.0, "loss_bbox": 0.5} | ({"loss_kd_box": 0.5} if distilled else {})
            rows.append(
                {"lr": 0.1, "loss": sum(losses.values()), **losses, "time": seconds, "step": iteration}
            )
        rows.append({"coco/bbox_mAP": final * epoch / epochs, "time": 0.1, "step": epoch})
    return "".join(json.dumps(row) + "\n" for row in rows)


class FakeTools:
    """In place of `mmkd.compare.processes.call`: writes what the tools write.

    Args:
        value: (member, seed) → mAP.
        failing: what to do in a training, by (member, seed): raise.
    """

    def __init__(
        self,
        value: Callable[[str, int], float] = lambda member, seed: {"student": 0.4}.get(member, 0.45),
        failing: dict[tuple[str, int], BaseException] | None = None,
    ) -> None:
        self.value, self.failing = value, failing if failing is not None else {}
        self.calls: list[tuple[str, str, int]] = []
        self.metrics: Callable[[float], dict[str, float]] = coco

    def __call__(self, tool: str, arguments: Sequence[str], log: Path, *_: Any) -> None:
        place = log.parent
        member = place.parent.name if place.name.startswith("seed_") else place.name
        seed = int(place.name.removeprefix("seed_")) if place.name.startswith("seed_") else -1
        self.calls.append((tool, member, seed))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("the log\n")
        if tool == "train" and (member, seed) in self.failing:
            raise self.failing[member, seed]
        if tool == "train":
            data = place / "20260101_000000" / "vis_data"
            data.mkdir(parents=True, exist_ok=True)
            seconds = 0.5 if member == "student" else 0.6
            text = scalars(self.value(member, seed), member != "student", seconds=seconds)
            (data / "scalars.json").write_text(text)
            torch.save({"state_dict": {}}, place / "epoch_3.pth")
            (place / "last_checkpoint").write_text(str(place / "epoch_3.pth"))
            return
        folder = Path(arguments[arguments.index("--work-dir") + 1])
        (folder / "20260101_000001").mkdir(parents=True)
        value = 0.55 if member == "teacher" else self.value(member, seed)
        content = {**self.metrics(value), "time": 0.1, "data_time": 0.01}
        (folder / "20260101_000001/20260101_000001.json").write_text(json.dumps(content))
        missed = {"teacher": 0, "student": 2}.get(member, 1)
        write_predictions(
            Config.fromfile(arguments[0]), Path(arguments[arguments.index("--out") + 1]), missed
        )


def cache_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read each config file once in a test: mmengine takes a sixth of a second."""
    read = functools.cache(load_config)
    monkeypatch.setattr("mmkd.compat.load_config", lambda name: copy.deepcopy(read(name)))


@functools.cache
def infos(dataset: str) -> list[Any]:
    """What a data set knows of its images, by its config as JSON."""
    built = DATASETS.build(ConfigDict(json.loads(dataset)))
    return [built.get_data_info(index) for index in range(len(built))]


def write_predictions(cfg: Config, path: Path, missed: int) -> None:
    """The objects of each image themselves, but for the first few, which are put elsewhere."""
    samples = []
    for index, info in enumerate(infos(json.dumps(cfg.test_dataloader.dataset))):
        boxes = np.array([one["bbox"] for one in info["instances"]], np.float32).reshape(-1, 4)
        # The student is better on every third image.
        wrong = (0 if missed == 2 else 2) if index % 3 == 0 else missed
        boxes[:wrong] += 300
        labels = torch.tensor([one["bbox_label"] for one in info["instances"]], dtype=torch.long)
        found = {
            "bboxes": torch.from_numpy(boxes),
            "labels": labels,
            "scores": torch.full((len(boxes),), 0.9),
        }
        samples.append({"img_id": info["img_id"], "pred_instances": found})
    mmengine.dump(samples, path)


FAILURE = ToolError("The loss is not finite.\n  expected: a number")
