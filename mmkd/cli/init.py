"""Create a project for a data set: configs for teacher, student and distillation, comparison, sweep."""

from __future__ import annotations

import argparse
import sys

from mmkd.cli import parsers
from mmkd.cli.common import tool
from mmkd.project import make_project


def init(args: argparse.Namespace) -> None:
    """Make the project and print its summary."""
    project = make_project(args.project, args.data, args.student, args.teacher, args.format)
    print("\n".join(project.lines()))


parse_args, main = tool(parsers.init, init)

if __name__ == "__main__":
    sys.exit(main())
