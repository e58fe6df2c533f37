"""Expected AP of a teacher: from mmdet's model zoo, or from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet
import yaml


def zoo_ap(config: Any, checkpoint: str) -> tuple[float, str] | None:
    """The box AP on COCO val2017 that mmdet's metafiles report for a model.

    Args:
        config: the teacher's config; only config names can be looked up.
        checkpoint: its file or URL.

    Returns:
        The AP in [0, 1] and the model's name; ``None`` if it is not in the zoo.
    """
    stem = Path(str(config).rpartition("::")[2]).stem if isinstance(config, (str, Path)) else None
    for model in _models([name for name in (stem, Path(checkpoint).name) if name]):
        weights = str(model.get("Weights") or "").rpartition("/")[2]
        if (weights and weights == Path(checkpoint).name) or (stem is not None and model.get("Name") == stem):
            for result in model.get("Results") or []:
                ap = (result.get("Metrics") or {}).get("box AP")
                if result.get("Dataset") == "COCO" and isinstance(ap, (int, float)):
                    return float(ap) / 100, str(model["Name"])
    return None


def logged_ap(checkpoint: Mapping[str, Any]) -> float | None:
    """The last box AP that mmengine logged before it wrote a checkpoint, in [0, 1]."""
    hub = checkpoint.get("message_hub")
    scalars = hub.get("log_scalars") if isinstance(hub, Mapping) else None
    for name, history in (scalars or {}).items():
        if name.startswith("val/") and name.endswith("bbox_mAP"):
            return float(history.current())
    return None


def _models(names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The models of the metafiles that mention one of these names; parsing them all takes seconds."""
    root = Path(mmdet.__file__).parent
    for base in (root / ".mim", root.parent):  # installed, or a clone
        for file in sorted((base / "configs").glob("*/metafile.yml")):
            try:
                text = file.read_text(encoding="utf-8")
                found = yaml.safe_load(text) if any(name in text for name in names) else None
            except (OSError, yaml.YAMLError):
                continue
            models = found.get("Models") if isinstance(found, Mapping) else found  # both forms exist
            yield from (model for model in models or [] if isinstance(model, Mapping))
