"""Train teacher, student alone and distilled student on the bundled data."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence

from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.cli import parsers
from mmkd.cli.common import tool
from mmkd.cli.pictures import Result, draw_curves, draw_detections
from mmkd.compare.history import curve, read_history, seconds_per_iteration
from mmkd.errors import UserError
from mmkd.registry import MODELS
from mmkd.teachers import plain_detector, teacher_model_and_checkpoint

STUDENT, DISTILLED = "configs/bccd/student.py", "configs/bccd/kd_auto.py"
IMAGE = (3, 240, 320)


def demo(args: argparse.Namespace) -> str:
    """Run what is missing, then print the table and save the figures.

    Returns:
        The table.
    """
    init_default_scope("mmdet")
    results = [
        evaluate_teacher(args),
        train(args, "student", STUDENT),
        train(args, "distilled", DISTILLED),
    ]
    table = format_table(results)
    (args.work_dir / "table.md").write_text(table + "\n", encoding="utf-8")
    draw_curves(results, args.work_dir / "curves.png")
    draw_detections(results, Config.fromfile(STUDENT), args.work_dir / "detections.png")
    print(f"\n{table}\n\nBlood cells (BCCD), {args.work_dir}/: table.md, curves.png, detections.png")
    print("checkpoints, metrics and logs: teacher/, student/ and distilled/ in that folder")
    return table


def evaluate_teacher(args: argparse.Namespace) -> Result:
    """Evaluate the shipped teacher on the test split."""
    work_dir, cfg = args.work_dir / "teacher", Config.fromfile(DISTILLED)
    if not list(work_dir.glob("*/*.json")):
        _tool(args, "test.py", DISTILLED, "--teacher", "--work-dir", str(work_dir), options=args.cfg_options)
    newest = max(work_dir.glob("*/*.json"))
    model, checkpoint = teacher_model_and_checkpoint(cfg.model.teacher)
    return Result("teacher", model, str(checkpoint), json.loads(newest.read_text(encoding="utf-8")))


def train(args: argparse.Namespace, name: str, config: str) -> Result:
    """Train one student, unless the same recipe has already been trained here."""
    work_dir, options = args.work_dir / name, [*args.cfg_options, f"randomness.seed={args.seed}"]
    recipe, done = work_dir / "recipe.txt", work_dir / "metrics_val_last.json"
    text = "\n".join([Config.fromfile(config).pretty_text, *options])
    if not (recipe.is_file() and recipe.read_text(encoding="utf-8") == text and done.is_file()):
        shutil.rmtree(work_dir, ignore_errors=True)
        _tool(args, "train.py", config, "--work-dir", str(work_dir), options=options)
        recipe.write_text(text, encoding="utf-8")
    last = json.loads(done.read_text(encoding="utf-8"))
    rows = read_history(work_dir)
    return Result(
        name,
        plain_detector(Config.fromfile(config).model),
        str(work_dir / last["checkpoint"]),
        last["metrics"],
        curve(rows),
        seconds_per_iteration(rows),
    )


def format_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table, with step times relative to the student alone."""
    alone = next(result.step_time for result in results if result.name == "student")
    assert alone is not None
    lines = [
        "| | mAP | AP50 | parameters | GFLOPs | training step |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        model = MODELS.build(plain_detector(result.model))
        # mmengine counts multiply-adds and calls them FLOPs, as is common.
        cost = get_model_complexity_info(model, IMAGE, show_table=False, show_arch=False)
        # mmdet returns no metrics if nothing was detected.
        ap, ap50 = (result.metrics.get(f"coco/bbox_mAP{suffix}", 0.0) for suffix in ("", "_50"))
        params, flops = cost["params"] / 1e6, cost["flops"] / 1e9
        step = "" if result.step_time is None else f"{result.step_time / alone:.2f} ×"
        lines.append(f"| {result.name} | {ap:.3f} | {ap50:.3f} | {params:.2f} M | {flops:.2f} | {step} |")
    return "\n".join(lines)


def _tool(args: argparse.Namespace, name: str, *arguments: str, options: Sequence[str]) -> None:
    command = [sys.executable, "-W", "ignore", f"tools/{name}", *arguments]
    command += ["--verbose"] if args.verbose else []
    if options:
        command += ["--cfg-options", *options]
    print("$", " ".join(command[3:]), flush=True)
    if subprocess.run([*command, "--no-files"]).returncode != 0:
        raise UserError(f"{name} did not finish; see its message above")


parse_args, main = tool(parsers.demo, demo)

if __name__ == "__main__":
    sys.exit(main())
