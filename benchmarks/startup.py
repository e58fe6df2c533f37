"""What mmkd adds before the first step: import, build, and the teacher's first forward pass.

    python benchmarks/startup.py

The variants take turns, each in a new process. Figures are ratios to the student alone in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STUDENT, TEACHER = "mmdet::atss/atss_r50_fpn_1x_coco.py", "mmdet::atss/atss_r101_fpn_1x_coco.py"


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=["alone", "live", "cached"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def one(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part, in this process."""
    began = time.perf_counter()
    if args.one == "alone":
        import mmdet.models  # noqa: F401
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
    else:
        from mmdet.utils import register_all_modules

        import mmkd  # noqa: F401
        from mmkd.registry import MODELS
    imported = time.perf_counter()
    register_all_modules()
    import torch
    from common import random_batch

    from mmkd.compat import load_config

    student = load_config(args.student).model
    entry: dict[str, Any] = {"config": load_config(args.teacher).model, "checkpoint": None}
    if args.one == "cached":
        entry["cache"] = {"dir": str(args.folder / "cache")}
    torch.manual_seed(0)
    begins_build = time.perf_counter()
    if args.one == "alone":
        model = MODELS.build(student)
    else:
        terms = {"cls": {"type": "DistillationLoss"}}
        model = MODELS.build({**student, "type": "KDSingleStageDetector", "teacher": entry, "distill": terms})
    built = time.perf_counter()
    found = {"import": imported - began, "build": built - begins_build}
    if args.one != "alone":
        inputs, samples = random_batch(2, args.size, args.size, model.bbox_head.num_classes)
        for index, sample in enumerate(samples):
            sample.set_metainfo({"img_path": str(args.folder / f"{index}.jpg")})
        if args.one == "cached":
            model.teacher.for_pipeline("benchmark")
        before = time.perf_counter()
        model.teacher.ask(inputs, samples)()
        found["first answer"] = time.perf_counter() - before
    return found


def main() -> None:
    """Start processes in turn, print the table and write the JSON."""
    args = parse_args()
    if args.one:
        print(json.dumps(one(args)))
        return
    from common import write

    found: dict[str, list[dict[str, float]]] = {"alone": [], "live": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(2):
            (Path(folder) / f"{index}.jpg").touch()
        for turn in range(args.rounds + 1):
            for kind in found:
                command = [sys.executable, "-W", "ignore", __file__, "--one", kind, "--folder", folder]
                command += ["--student", args.student, "--teacher", args.teacher, "--size", str(args.size)]
                ran = subprocess.run(command, capture_output=True, text=True)
                if ran.returncode:
                    raise RuntimeError(ran.stderr)
                if turn:  # the first round fills the cache and the file system's cache
                    found[kind].append(json.loads(ran.stdout.splitlines()[-1]))
    ratios: dict[str, dict[str, float]] = {kind: {} for kind in found}
    for kind, rows in found.items():
        for part in rows[0]:
            base = "build" if part == "first answer" else part
            ratios[kind][part] = statistics.median(
                row[part] / alone[base] for row, alone in zip(rows, found["alone"])
            )
    print(f"\n{args.student} ← {args.teacher}; 1 is the student alone (first answer: its build)\n")
    print("| | import | build | first answer |\n|---|---|---|---|")
    for kind, parts in ratios.items():
        cells = [
            f"{parts[part]:.2f} ×" if part in parts else "" for part in ("import", "build", "first answer")
        ]
        print(f"| {kind} | {' | '.join(cells)} |")
    options = {key: str(value) for key, value in vars(args).items() if key not in ("one", "folder")}
    write("startup", args.out, options=options, ratios=ratios, seconds=found)


if __name__ == "__main__":
    main()
