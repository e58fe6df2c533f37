"""Small detectors and batches for all tests."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, ConfigDict
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer

import mmkd  # noqa: F401
from mmkd.registry import MODELS

from .wandb_server import WandbServer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet's scope, the repository as working directory, fixed random numbers."""
    monkeypatch.chdir(ROOT)
    init_default_scope("mmdet")
    for kept_between_runs in (MessageHub, MMLogger, Visualizer, DetLocalVisualizer):
        kept_between_runs._instance_dict.clear()
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _packages_are_looked_at_once() -> Iterator[None]:
    """Cache lookups: for each ``package::`` config, mmengine reads all metafiles and lists all packages."""
    slow = ((config_utils, "load"), (config_module, "is_installed"), (config_module, "get_installed_path"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module, name in slow:
            monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    """A W&B server on localhost."""
    with WandbServer() as server:
        yield server


SOAK = pytest.mark.skipif(not os.environ.get("MMKD_SOAK"), reason="in `make soak`")


def only_soak(test: Any) -> Any:
    """Run a test only in `make soak`: it takes half a minute or more, and other tests cover its parts."""
    return pytest.mark.soak(SOAK(test))


def repeats(usual: int, soak: int) -> int:
    """The number of repetitions: ``usual`` in `make test` and `make slow`, ``soak`` in `make soak`."""
    return soak if os.environ.get("MMKD_SOAK") else usual


def tiny_atss(**overrides: Any) -> ConfigDict:
    """An ATSS with a very narrow ResNet-18; ``key__inner`` overrides ``key.inner``."""
    cfg = Config.fromfile(ROOT / "configs/_base_/models/atss_r18_narrow.py")
    cfg.merge_from_dict(
        {
            "model.backbone.base_channels": 8,
            "model.neck.in_channels": [8, 16, 32, 64],
            "model.neck.out_channels": 64,
            "model.bbox_head.in_channels": 64,
            "model.bbox_head.feat_channels": 64,
            "model.bbox_head.stacked_convs": 1,
        }
    )
    cfg.merge_from_dict({f"model.{key.replace('__', '.')}": value for key, value in overrides.items()})
    return copy.deepcopy(cfg.model)


def tiny_teacher(**overrides: Any) -> ConfigDict:
    """Another ATSS, wider than `tiny_atss`."""
    wider = {"backbone__base_channels": 16, "neck__in_channels": [16, 32, 64, 128]}
    return tiny_atss(**{**wider, "bbox_head__stacked_convs": 2, **overrides})


def distilled(
    student: ConfigDict, teacher: ConfigDict, checkpoint: str | None = None, **options: Any
) -> ConfigDict:
    """The config of `KDSingleStageDetector` for a student and a teacher."""
    options.setdefault("distill", {"cls": {"type": "DistillationLoss"}})
    return ConfigDict(
        {
            **student,
            "type": "KDSingleStageDetector",
            "teacher": {"config": teacher, "checkpoint": checkpoint, "precision": "fp32"},
            **options,
        }
    )


def build(cfg: ConfigDict, seed: int = 0) -> Any:
    """Build and initialise a model with its own random numbers."""
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model


def fill_unset(model: Any) -> Any:
    """Initialise weights that mmdet leaves as uninitialised memory unless `init_weights` is called."""
    for parameter in model.parameters():
        if not parameter.abs().max() < 1e3:
            torch.nn.init.normal_(parameter.data, std=0.02)
    return model


def save_teacher(path: Path, cfg: ConfigDict, seed: int = 1, **meta: Any) -> str:
    """Write the checkpoint of a random teacher with confident predictions."""
    model = build(cfg, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.startswith("bbox_head.atss_"):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    return str(path)


def batch(*shapes: tuple[int, int], num_classes: int = 3, boxes: int = 3, seed: int = 0) -> dict[str, Any]:
    """Random images (height, width) with boxes, in a data loader's format."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for index, (height, width) in enumerate(shapes or ((96, 128), (96, 128))):
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        corner = torch.rand(boxes, 2, generator=generator) * 0.5
        size = torch.rand(boxes, 2, generator=generator) * 0.4 + 0.1
        scale = torch.tensor([width, height, width, height])
        sample = DetDataSample(
            metainfo={
                "img_id": index,
                "img_shape": (height, width),
                "ori_shape": (height, width),
                "scale_factor": (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], 1) * scale,
            labels=torch.randint(0, num_classes, (boxes,), generator=generator),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def losses_of(model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The losses of one batch, which the model preprocesses."""
    processed = model.data_preprocessor(copy.deepcopy(data), True)
    return model.loss(processed["inputs"], processed["data_samples"])


def run_tool(*arguments: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one of the repository's tools in a separate process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
