"""Exports what deployment needs from a training checkpoint: weights, class names, a config without mmkd."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor

from mmkd.checkpoints.names import hash_in_name
from mmkd.compat import config_of
from mmkd.datasets import class_names, common_metainfo
from mmkd.durable import write_durably
from mmkd.errors import UserError
from mmkd.registry import MODELS
from mmkd.student_config import literal_config, student_config
from mmkd.teachers.checkpoint import load_weights, own_keys, read_checkpoint

WRITTEN = "# Written by mmkd-publish: the student alone, for stock MMDetection."


def write_deployable(checkpoint: str, out: Path, half: bool, config: str | None = None) -> int:
    """Write the weights with the data set's meta information, and the student's config next to them.

    The config has the same name as the weights, with the suffix ``.py``: a single file with only stock types,
    from which mmdet's `init_detector` builds the student. It is derived from the training's config, which
    every checkpoint of mmengine's `Runner` contains. If that fails, the log says why and only the weights are
    written.

    Args:
        checkpoint: a training checkpoint, path or URL.
        out: the file to write; replaced atomically, never half written.
        half: store floating-point weights in half precision.
        config: the training's config, if it is not in the checkpoint.

    Returns:
        The number of tensors.

    Raises:
        UserError: the checkpoint is unreadable or has no weights; ``out`` looks like it contains a hash, see
            `mmkd.checkpoints.names`; ``config`` is unreadable, needs mmkd or does not match the weights; or
            the student's config would replace a file that this function did not write.
    """
    check_out_name(out)
    beside = out.with_suffix(".py")
    _check_replaceable(beside, out)
    content = read_checkpoint(checkpoint)
    if "state_dict" not in content:
        raise UserError(
            "The checkpoint contains no `state_dict`.",
            expected="a checkpoint of tools/train.py",
            found=f"keys {', '.join(map(str, list(content)[:10]))}",
            remedy="give the checkpoint written by training",
        )
    weights = own_keys(content["state_dict"], checkpoint)
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    found = meta.get("dataset_meta")
    dataset_meta = common_metainfo(found, class_names(found)) if found else {}
    text = _config_text(str(meta.get("cfg", "")), config, dataset_meta, weights, checkpoint)
    if half:
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in weights.items()
        }
    buffer = BytesIO()
    torch.save(
        {"meta": {"dataset_meta": dataset_meta} if dataset_meta else {}, "state_dict": weights}, buffer
    )
    write_durably(out, buffer.getbuffer())
    if text is None:
        beside.unlink(missing_ok=True)  # it belongs to other weights
    else:
        write_durably(beside, f"{WRITTEN}\n{text}".encode())
        print_log(f"{beside}: the student's config, for stock MMDetection", "current")
    return len(weights)


def _config_text(
    own: str,
    config: str | None,
    dataset_meta: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    checkpoint: str,
) -> str | None:
    """The text of the student's config; ``None`` if the checkpoint contains no config."""
    if config is not None:
        return _fitting(_read_config(config), dataset_meta, weights, checkpoint)
    try:
        return _fitting(literal_config(own), dataset_meta, weights, checkpoint)
    except Exception as error:  # the weights are useful without it
        print_log(
            f"Weights written without a config, because the one in {checkpoint} cannot be used: "
            f"{error}; pass the training config with --config",
            "current",
            logging.WARNING,
        )
    return None


def _fitting(
    cfg: Mapping[str, Any], dataset_meta: Mapping[str, Any], weights: Mapping[str, Tensor], checkpoint: str
) -> str:
    made = student_config(cfg, dataset_meta)
    if "custom_imports" not in made:
        with DefaultScope.overwrite_default_scope(made.default_scope):
            load_weights(MODELS.build(ConfigDict(made.model).copy()), weights, checkpoint)
    return str(made.pretty_text)


def _read_config(name: str) -> dict[str, Any]:
    cfg: dict[str, Any] = config_of("the training", name).to_dict()
    if not isinstance(cfg.get("model"), Mapping):
        raise UserError(f"{name} has no model: name the training config of the checkpoint")
    return cfg


def _check_replaceable(beside: Path, out: Path) -> None:
    """Refuse to replace a config that the user wrote."""
    if beside == out:
        raise UserError(f"{out} is the name of a config: call the weights {out.with_suffix('.pth')}")
    if beside.exists() and not beside.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN):
        raise UserError(
            "The output config would overwrite one of yours.",
            expected=f"no {beside}, or one written by mmkd-publish",
            found=f"{beside}, not written by mmkd-publish",
            remedy="choose another name for the weights",
        )


def check_out_name(out: Path) -> None:
    """Refuse a name for a new checkpoint that looks like it contains a hash.

    Raises:
        UserError: it does, see `mmkd.checkpoints.names`.
    """
    if hash_in_name(out.name):
        raise UserError(
            f"The name {out.name} implies a SHA-256 that the file will not have.",
            expected="a name that does not end in a dash and eight hexadecimal digits",
            found=out.name,
            remedy="choose another name; add the hash once the file exists",
        )
