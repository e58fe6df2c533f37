"""What deployment needs of a training checkpoint: weights and class names."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mmkd.checkpoints.names import hash_in_name
from mmkd.datasets import class_names, common_metainfo
from mmkd.errors import user_error
from mmkd.teachers.checkpoint import own_keys, read_checkpoint


def write_deployable(checkpoint: str, out: Path, half: bool) -> int:
    """Write the weights and the data set's meta information alone.

    Args:
        checkpoint: a checkpoint of training, path or URL.
        out: the file to write; replaced whole, never half written.
        half: store floating-point weights in half precision.

    Returns:
        The number of tensors.

    Raises:
        UserError: the checkpoint cannot be read, or holds no weights; or the name
            promises a hash, see `mmkd.checkpoints.names`.
    """
    check_out_name(out)
    content = read_checkpoint(checkpoint)
    if "state_dict" not in content:
        raise user_error(
            "This checkpoint holds no `state_dict`.",
            expected="a checkpoint of tools/train.py",
            found=f"keys {', '.join(map(str, list(content)[:10]))}",
            remedy="name the file that training wrote",
        )
    weights = own_keys(content["state_dict"], checkpoint)
    if half:
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in weights.items()
        }
    meta = content.get("meta")
    if isinstance(meta, dict) and meta.get("dataset_meta"):
        dataset_meta = meta["dataset_meta"]
        meta = {"dataset_meta": common_metainfo(dataset_meta, class_names(dataset_meta))}
    else:
        meta = {}
    temporary = out.with_suffix(".tmp")
    torch.save({"meta": meta, "state_dict": weights}, temporary)
    os.replace(temporary, out)
    return len(weights)


def check_out_name(out: Path) -> None:
    """Refuse a name for a new checkpoint that promises a hash.

    Raises:
        UserError: it does, see `mmkd.checkpoints.names`.
    """
    if hash_in_name(out.name):
        raise user_error(
            f"The name {out.name} promises a SHA-256 that the file will not have.",
            expected="a name that does not end in - and eight hexadecimal digits",
            found=out.name,
            remedy="name it otherwise; add the hash when the file is there",
        )
