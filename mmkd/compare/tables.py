"""Results as tables for documents: ``python -m mmkd.compare.tables RESULTS.json … [--into DOC.md]``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.compare.plan import STUDENT, TEACHER
from mmkd.errors import UserError

_PLACE = re.compile(r"<!-- (results|summary): (.*?) -->.*?(<!-- end of results -->|\Z)", re.DOTALL)
RUN_KEYS = ("dataset", "recipe", "seed", "metrics", "commit", "command", "versions", "hardware")
SUMMARY_KEYS = (
    "dataset",
    "recipe",
    "recommended",
    "seeds",
    "positive_seeds",
    "map_mean",
    "map_std",
    "gap_recovered",
)
BEGIN, END = "<!-- {}: {} -->", "<!-- end of results -->"
HEADER = "| {} | mAP | difference to the student alone | better seeds | share of the gap | config |"
RULE = "|---|---|---|---|---|---|"
SUMMARY = """\
| data and pair | teacher | student alone | distilled | gain | better seeds | share of the gap |
|---|---|---|---|---|---|---|"""


def read_results(path: Path) -> dict[str, Any]:
    """Read one results file.

    Raises:
        UserError: the file is missing or has the wrong form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key, needed in (("runs", RUN_KEYS), ("summary", SUMMARY_KEYS)):
            for row in content[key]:
                missing = [name for name in needed if name not in row]
                if missing:
                    raise KeyError(f"{key}: {', '.join(missing)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "Cannot read results.",
            expected="a comparison's results.json, with `runs` and `summary`",
            found=f"{path} ({type(error).__name__}: {error})",
            remedy="correct the path, or regenerate the report",
        ) from error
    return dict(content)


def format_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for each results file."""
    return "\n\n".join(_table(each["summary"]) for each in results)


def format_summary(results: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table with a row per file: its recommended recipe, or else its best."""
    return "\n".join([SUMMARY, *(_summary_row(each["summary"]) for each in results)])


FORMATS: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "results": format_tables,
    "summary": format_summary,
}


def _summary_row(summary: Sequence[Mapping[str, Any]]) -> str:
    teacher, student = (next(r for r in summary if r["recipe"] == name) for name in (TEACHER, STUDENT))
    others = [r for r in summary if r not in (teacher, student) and r["map_mean"] is not None]
    best = max(others, key=lambda row: (row["recommended"], row["map_mean"]))
    maps = " | ".join(f"{row['map_mean']:.3f}" for row in (teacher, student, best))
    return f"| {student['dataset']} | {maps} | {_difference(best)} | {_better(best)} | {_gap(best)} |"


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    lines = [HEADER.format(summary[0]["dataset"] if summary else ""), RULE]
    for row in summary:
        bold = "**" if row["recommended"] else ""
        mean = "–" if row["map_mean"] is None else f"{bold}{row['map_mean']:.3f}{bold}"
        std = "" if row["map_std"] is None else f"\xa0±\xa0{row['map_std']:.3f}"
        config = f"`{row['config']}`" if row.get("config") else ""
        columns = [row["recipe"], mean + std, _difference(row), _better(row), _gap(row), config]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _better(row: Mapping[str, Any]) -> str:
    return "" if row["positive_seeds"] is None else f"{row['positive_seeds']} of {row['seeds']}"


def _gap(row: Mapping[str, Any]) -> str:
    return "" if row["gap_recovered"] is None else f"{round(100 * row['gap_recovered'])} %"


def _difference(row: Mapping[str, Any]) -> str:
    difference = row.get("map_difference")
    if difference is None:
        return ""
    interval = row.get("map_interval")
    text = f"{difference:+.3f}"
    return text if interval is None else f"{text} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def renew(document: str, read: Any = read_results) -> str:
    """Update the tables of a document.

    The files' tables go between ``<!-- results: a.json b.json -->`` and ``<!-- end of results -->``. With
    ``summary`` instead of ``results``, it is one table with a row per file.

    Args:
        document: the document's text.
        read: path → results.

    Raises:
        UserError: the document has no such place, the end is missing, or a file cannot be read.
    """

    def table(found: re.Match[str]) -> str:
        kind, files, ended = found.groups()
        if not ended:
            raise UserError(f"`<!-- {kind}: {files[:60]}` has no `{END}` after it")
        return f"{BEGIN.format(kind, files)}\n{FORMATS[kind]([read(Path(f)) for f in files.split()])}\n{END}"

    renewed, count = re.subn(_PLACE, table, document)
    if not count:
        raise UserError(
            f"the document has no markers for tables: `{BEGIN.format('results', 'FILE.json …')}` and `{END}`"
        )
    return renewed


def main(argv: Sequence[str] | None = None) -> int:
    """Print tables, or update those of documents; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="results.json of comparisons to print")
    parser.add_argument("--into", nargs="+", type=Path, default=[], help="documents whose tables to update")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a document is out of date"
    )
    args = parser.parse_args(argv)
    if not args.results and not args.into:
        parser.error("give result files, or documents with --into")
    stale = []
    try:
        if args.results:
            print(format_tables([read_results(path) for path in args.results]))
        for path in args.into:
            old = path.read_text(encoding="utf-8")
            new = renew(old)
            if new != old and not args.check:
                path.write_text(new, encoding="utf-8")
            if new != old:
                stale.append(str(path))
    except (UserError, OSError) as error:
        print(f"\nmmkd: error: {error}", file=sys.stderr)
        return 2
    if stale:
        print(f"{'out of date' if args.check else 'updated'}: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
