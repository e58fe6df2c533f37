"""Export what deployment needs from a training checkpoint: weights, class names, a config without mmkd."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmkd.cli import parsers
from mmkd.cli.common import run
from mmkd.deployment import write_deployable


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the tool."""
    parser = parsers.publish()
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


if __name__ == "__main__":
    sys.exit(main())
