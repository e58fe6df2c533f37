"""Images and metrics of a config, for calibrating and evaluating what was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.datasets import images_below, innermost, without_annotations, without_workers
from mmkd.registry import DATASETS


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
    loading = {**without_workers(cfg.test_dataloader), "batch_size": 1}
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
