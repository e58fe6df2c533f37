"""Compare teacher, student alone and distilled students over several seeds, reported on one page."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import init_default_scope

from mmkd.cli import parsers
from mmkd.cli.common import prepare_data, tool
from mmkd.compare.plan import Plan, plan_of_configs, read_plan
from mmkd.data import listed_images
from mmkd.errors import UserError, check_options

NEEDED = ("pandas", "jinja2", "scipy", "filelock")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    wrong = misplaced(args)
    if wrong is not None:
        parser.error(wrong)
    if args.share is not None and not args.probe:
        parser.error("--share requires --probe")
    if args.probe and args.images:
        parser.error("--probe draws nothing: leave out --images")
    if args.probe and args.report_only:
        parser.error("--probe writes no separate report: rerun the command, finished runs are kept")


def misplaced(args: argparse.Namespace) -> str | None:
    """The message about arguments that the given plan or configs cannot use, if there are any."""
    own = ("name", "dataset", "seeds", "teacher", "teacher_checkpoint", "evaluate", "cfg_options")
    given = [f"--{name.replace('_', '-')}" for name in own if getattr(args, name) is not None]
    if _is_file(args.plan) and given:
        return f"{', '.join(given)}: set it in the plan file"
    if args.teacher_checkpoint and not args.teacher:
        return "--teacher-checkpoint requires --teacher"
    return None


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan from the arguments.

    Raises:
        UserError: the plan cannot be read or is invalid.
    """
    if _is_file(args.plan):
        plan = read_plan(args.plan[0])
    else:
        teacher = {"config": args.teacher, "checkpoint": args.teacher_checkpoint} if args.teacher else None
        settings: dict[str, Any] = {"name": args.name, "dataset": args.dataset, "teacher": teacher}
        settings |= {"seeds": args.seeds, "evaluate": args.evaluate, "cfg-options": args.cfg_options}
        plan = plan_of_configs(args.plan, **settings)
    check_options("--rerun", args.rerun, [member.name for member in plan.members])
    return plan


def compare(args: argparse.Namespace) -> int:
    """Execute the unfinished runs, then write the report.

    Returns:
        The number of failed runs.

    Raises:
        UserError: the plan is invalid, a package is missing, or no run has results.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"a comparison needs {', '.join(missing)}: pip install {' '.join(missing)} (or 'mmkd[compare]')"
        )
    from mmkd.compare.report import Report
    from mmkd.compare.runs import Runs

    plan = plan_of(args)
    folder = args.work_dir or Path("work_dirs") / plan.name
    if args.images:
        listed_images(args.images, what="--images")  # before hours of training
    runs = Runs(plan, folder)
    if args.probe:
        return probe(args, runs)
    records = runs.records() if args.report_only else runs.make(args.rerun)
    failed = [record for record in records if record.error is not None]
    if not any(record.finished for record in records):
        raise UserError(
            f"no run in {folder} has results"
            + (f"; the first one failed with: {failed[0].error}" if failed else "")
        )
    print("measuring and drawing", flush=True)
    report = Report(runs, folder / "report")
    page = report.write()
    seen = report.show(args.images) if args.images else None
    print(f"\n{page}: open it in a browser")
    if seen is not None:
        print(f"{seen}: pictures of {args.images}, and all.gif")
    for record in failed:
        print(f"failed: {record.member}, seed {record.seed}: {record.error}", file=sys.stderr)
    return len(failed)


def probe(args: argparse.Namespace, runs: Any) -> int:
    """Run short trainings of the plan, and print the verdicts.

    Returns:
        The number of failed runs.

    Raises:
        UserError: as for `Probe`.
    """
    from mmkd.compare.probe import VERDICT, Probe
    from mmkd.compare.shorten import budget_of
    from mmkd.compare.verdict import page

    def budget(cfg: Any) -> tuple[int, int]:
        cfg = copy.deepcopy(cfg)
        init_default_scope(cfg.get("default_scope") or "mmdet")
        prepare_data(cfg, ["train_dataloader"])
        return budget_of(cfg)

    short = Probe(runs, 0.1 if args.share is None else args.share, budget)
    found = short.make(args.rerun)
    print(f"\n{page(found)}\nfigures: {short.folder / VERDICT}")
    return len(found["failed"])


def _is_file(words: Sequence[str]) -> bool:
    return len(words) == 1 and words[0].endswith((".yaml", ".yml"))


def _work(args: argparse.Namespace) -> int:
    try:
        return min(compare(args), 1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("rerun the same command to continue") from None


parse_args, main = tool(parsers.compare, _work, _check)

if __name__ == "__main__":
    sys.exit(main())
