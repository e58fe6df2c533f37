"""Reduce a training checkpoint to what deployment needs: weights, class names, and a config without mmkd."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmkd.cli.common import run
from mmkd.deployment import write_deployable


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint of tools/train.py")
    parser.add_argument(
        "out", type=Path, help="the file to write; the student's config gets its name, ending in .py"
    )
    parser.add_argument("--config", help="the training's config (default: the one in the checkpoint)")
    parser.add_argument("--full-precision", action="store_true", help="keep float32 (default: half)")
    return parser.parse_args(argv)


def publish(args: argparse.Namespace) -> None:
    """Write the weights, in half precision, the data set's meta information, and the student's config.

    Raises:
        UserError: see `write_deployable`.
    """
    tensors = write_deployable(args.checkpoint, args.out, not args.full_precision, args.config)
    print(f"{args.out}: {tensors} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run(lambda: publish(args))
