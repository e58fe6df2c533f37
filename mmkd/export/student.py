"""The plain student of a checkpoint, with its config and class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from mmkd.compat import load_config
from mmkd.datasets import class_names, common_metainfo, innermost
from mmkd.errors import UserError
from mmkd.registry import MODELS
from mmkd.student_config import literal_config, student_config
from mmkd.teachers.checkpoint import load_weights, own_keys, read_checkpoint


def load_student(checkpoint: str, config: str | None = None) -> tuple[Any, Config, tuple[str, ...]]:
    """Build the plain student of a checkpoint and load its weights.

    Args:
        checkpoint: path or URL of a checkpoint from training or ``mmkd-publish``.
        config: the training config; by default the ``.py`` file beside the checkpoint, or else the config
            stored in the checkpoint.

    Returns:
        The detector in eval mode on the CPU, its config, and the class names.

    Raises:
        UserError: checkpoint or config cannot be read or do not fit together, or class names are missing.
    """
    content = read_checkpoint(checkpoint)
    weights = own_keys(content.get("state_dict", content), checkpoint)
    meta = content.get("meta") or {}
    beside = Path(checkpoint).with_suffix(".py")
    if config is None and beside.exists():
        config = str(beside)
    try:
        cfg = load_config(config).to_dict() if config else literal_config(str(meta.get("cfg", "")))
    except Exception as error:
        raise UserError(
            "Cannot read the student's config.",
            expected=f"the training's config by --config, {beside.name} beside the checkpoint, or one in it",
            found=f"{config or checkpoint} ({type(error).__name__}: {error})",
            remedy="add --config with the config of the training",
        ) from error
    found = meta.get("dataset_meta")
    classes = class_names(found)
    if not classes and cfg.get("test_dataloader"):
        classes = class_names(next(innermost(cfg["test_dataloader"]["dataset"])).get("metainfo"))
    if not classes:
        raise UserError(
            "The classes have no names.",
            expected="dataset_meta in the checkpoint, or metainfo of test_dataloader in the config",
            found="neither",
            remedy="add metainfo=dict(classes=(…)) to the data set of the config",
        )
    made = student_config(cfg, common_metainfo(found, classes) if found else {})
    # For calibration and evaluation; `student_config` keeps only what publishing needs.
    for key in ("train_dataloader", "test_dataloader", "test_evaluator", "work_dir"):
        if cfg.get(key) is not None:
            made[key] = cfg[key]
    with DefaultScope.overwrite_default_scope(made.default_scope):
        model = MODELS.build(ConfigDict(made.model).copy())
    load_weights(model, weights, checkpoint)
    return revert_sync_batchnorm(model).eval(), made, classes
