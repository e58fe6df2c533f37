"""Draws the learning curves of results: ``python -m mmkd.compare.curves RESULTS.json PICTURE.png``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmkd.compare.figures import draw_curves
from mmkd.compare.plan import TEACHER
from mmkd.compare.tables import read_results
from mmkd.errors import UserError


def curves_of(path: Path) -> pd.DataFrame:
    """The validations of all students in a results file.

    Args:
        path: a report's ``results.json``.

    Returns:
        Rows of ``member``, ``seed``, ``step`` (the number of the validation), ``seconds`` and ``mAP``.

    Raises:
        UserError: the file cannot be read, or its report has no times.
    """
    rows = [
        {"member": run["recipe"], "seed": run["seed"], "step": step, "seconds": seconds, "mAP": value}
        for run in read_results(path)["runs"]
        if run["recipe"] != TEACHER
        for step, (seconds, value) in enumerate(run.get("curve") or [], start=1)
    ]
    if not rows:
        raise UserError(
            "No learning curves.",
            expected=f"runs with a curve in {path}",
            found="none",
            remedy="rewrite the report: mmkd-compare PLAN --report-only",
        )
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of a comparison")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--only", nargs="+", metavar="MEMBER", help="student and variants (default: all)")
    args = parser.parse_args(argv)
    try:
        curves = curves_of(args.results)
        members = list(curves["member"].unique())
        if unknown := set(args.only or ()) - set(members):
            parser.error(f"--only: {', '.join(sorted(unknown))}: choose from {', '.join(members)}")
        members = args.only or members
        draw_curves(curves[curves["member"].isin(members)], None, members, args.picture)
    except UserError as error:
        print(f"\nmmkd: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
