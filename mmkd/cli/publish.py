"""Reduce a training checkpoint to what deployment needs: weights and class names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from mmkd.cli.common import run
from mmkd.errors import user_error
from mmkd.teachers.checkpoint import own_keys, read_checkpoint


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint of tools/train.py")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--full-precision", action="store_true", help="keep float32 (default: half)")
    return parser.parse_args(argv)


def publish(args: argparse.Namespace) -> None:
    """Write the weights, in half precision, and the data set's meta information.

    Raises:
        UserError: the checkpoint cannot be read, or holds no weights.
    """
    checkpoint = read_checkpoint(args.checkpoint)
    if "state_dict" not in checkpoint:
        raise user_error(
            "This checkpoint holds no `state_dict`.",
            expected="a checkpoint of tools/train.py",
            found=f"keys {', '.join(map(str, list(checkpoint)[:10]))}",
            remedy="name the file that training wrote",
        )
    weights = own_keys(checkpoint["state_dict"], args.checkpoint)
    if not args.full_precision:
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in weights.items()
        }
    meta = {key: value for key, value in checkpoint.get("meta", {}).items() if key == "dataset_meta"}
    temporary = args.out.with_suffix(".tmp")
    torch.save({"meta": meta, "state_dict": weights}, temporary)
    os.replace(temporary, args.out)
    print(f"{args.out}: {len(weights)} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run(lambda: publish(args))
