"""Create a project for a data set: configs for teacher, student and distillation, comparison, sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmkd.cli import parsers
from mmkd.cli.common import run
from mmkd.doctor.examine import silence
from mmkd.project import make_project


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the tool."""
    return parsers.init().parse_args(argv)


def init(args: argparse.Namespace) -> None:
    """Make the project and print what was found and chosen."""
    with silence():
        project = make_project(args.project, args.data, args.student, args.teacher, args.format)
    print("\n".join(project.lines()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    args = parse_args(argv)
    return run(lambda: init(args))


if __name__ == "__main__":
    sys.exit(main())
