"""Export what deployment needs from a training checkpoint: weights, class names, a config without mmkd."""

from __future__ import annotations

import argparse
import sys

from mmkd.cli import parsers
from mmkd.cli.common import tool
from mmkd.deployment import write_deployable


def publish(args: argparse.Namespace) -> None:
    """Write the weights in half precision, the data set's meta information, and the student's config.

    Raises:
        UserError: as for `write_deployable`.
    """
    tensors = write_deployable(args.checkpoint, args.out, not args.full_precision, args.config)
    print(f"{args.out}: {tensors} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")


parse_args, main = tool(parsers.publish, publish)

if __name__ == "__main__":
    sys.exit(main())
