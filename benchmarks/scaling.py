"""How the cost of a distilled step grows with batch size, image size, classes and processes.

    python benchmarks/scaling.py

Each figure is a ratio in this run: a distilled step over the student's alone at the same point, and each of
the two over its own first point. The exponent is the slope of a straight line through the logarithms. Two
processes (gloo, one thread each) are compared with one process with one thread and the same batch per
process; 1 would mean that the second process costs nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import socket
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Step, paired_ratios, random_batch, take_turns, trained, write
from mmdet.utils import register_all_modules
from mmengine.model import MMDistributedDataParallel

from mmkd.compat import load_config
from mmkd.registry import MODELS

POINTS = {"batch": [1, 2, 4, 8], "size": [128, 192, 256, 384], "classes": [1, 20, 80, 320]}
FIXED = {"batch": 2, "size": 256, "classes": 80}


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="mmkd::bccd/student.py")
    parser.add_argument("--teacher", default="mmkd::bccd/teacher.py")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def models(args: argparse.Namespace, classes: int) -> dict[str, Any]:
    """The student alone and distilled, for a number of classes; the loss uses all priors."""
    student, teacher = load_config(args.student).model, load_config(args.teacher).model
    for model in (student, teacher):
        model.bbox_head.num_classes = classes
    terms = {"cls": {"type": "DistillationLoss", "region": "all", "normalizer": "priors"}}
    entry = {"config": copy.deepcopy(teacher), "checkpoint": None}
    distilled = {**student, "type": "KDSingleStageDetector", "teacher": entry, "distill": terms}
    return {
        name: MODELS.build(copy.deepcopy(cfg)).train()
        for name, cfg in (("alone", student), ("mmkd", distilled))
    }


def steps_at(args: argparse.Namespace, point: dict[str, int]) -> dict[str, Step]:
    """A step of each model at one point."""
    batch = random_batch(point["batch"], point["size"], point["size"], point["classes"])
    return {name: trained(model, batch) for name, model in models(args, point["classes"]).items()}


def exponent(xs: list[int], ys: list[float]) -> float:
    """The slope of log y over log x."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def over(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The cost as a function of batch size, image size or classes."""
    steps = {
        f"{which} {x}": step
        for x in POINTS[name]
        for which, step in steps_at(args, {**FIXED, name: x}).items()
    }
    times = take_turns(steps, args.rounds)
    result: dict[str, Any] = {"points": POINTS[name]}
    for which in ("alone", "mmkd"):
        growth = paired_ratios(
            {f"{x}": times[f"{which} {x}"] for x in POINTS[name]}, base=f"{POINTS[name][0]}"
        )
        result[which] = list(growth.values())
        result[f"exponent_{which}"] = exponent(POINTS[name], result[which])
    result["ratio"] = [
        paired_ratios({key: times[f"{key} {x}"] for key in ("alone", "mmkd")}, "alone")["mmkd"]
        for x in POINTS[name]
    ]
    return result


def process(rank: int, world: int, port: int, args: argparse.Namespace, results: Any) -> None:
    """Run one process: a distilled model in DistributedDataParallel."""
    torch.set_num_threads(1)
    register_all_modules()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.distributed.init_process_group("gloo")
    model = MMDistributedDataParallel(models(args, FIXED["classes"])["mmkd"], broadcast_buffers=False)
    batch = random_batch(FIXED["batch"], FIXED["size"], FIXED["size"], FIXED["classes"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        total, _ = model.module.parse_losses(model(*batch, mode="loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    seconds = take_turns({"step": step}, args.rounds)["step"]
    if rank == 0:
        results.put(statistics.median(seconds))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def processes(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step in one and in two processes with the same batch in each, in turns."""
    context = torch.multiprocessing.get_context("spawn")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for world in found:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            results = context.SimpleQueue()
            torch.multiprocessing.spawn(process, (world, port, args, results), nprocs=world)
            found[world].append(results.get())
    ratio = statistics.median(two / one for one, two in zip(found[1], found[2]))
    return {"step_of_two_to_one": ratio, "efficiency": 1 / ratio}


def main() -> None:
    """Print the tables and write the JSON."""
    args = parse_args()
    register_all_modules()
    found: dict[str, Any] = {name: over(args, name) for name in POINTS}
    print(f"\n{args.student} ← {args.teacher}; where not said otherwise: {FIXED}\n")
    print("| | | mmkd / student alone | exponent, mmkd | exponent, alone |\n|---|---|---|---|---|")
    for name, rows in found.items():
        ratios = ", ".join(f"{ratio:.2f}" for ratio in rows["ratio"])
        points = ", ".join(map(str, rows["points"]))
        print(
            f"| {name} | {points} | {ratios} | {rows['exponent_mmkd']:.2f} | {rows['exponent_alone']:.2f} |"
        )
    found["processes"] = processes(args)
    print(f"\n1 → 2 processes: a step of both takes {found['processes']['step_of_two_to_one']:.2f} ×")
    options = {key: str(value) for key, value in vars(args).items()}
    write("scaling", args.out, options=options, fixed=FIXED, **found)


if __name__ == "__main__":
    main()
