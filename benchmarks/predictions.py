"""Predictions in files: their size, the time and memory to read them, and the memory of the workers.

    python benchmarks/predictions.py

For each number of images, `PredictionsWriter` writes the files and a new process reads them, as in training.
The teacher lives in the main process; the data loader's workers are forked from it. Times are processor
times, which other jobs on the machine affect little.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write
from torch.utils.data import DataLoader, Dataset

from mmkd.data import PredictionsWriter
from mmkd.teachers import PredictionsTeacher

CLASSES = [f"class {i}" for i in range(80)]
MIB = 2**20


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--boxes", type=int, default=20, help="in each image")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument(
        "--one-file", type=int, default=100_000, help="number of images to read from a single file as well"
    )
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary one)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def name_of(number: int) -> str:
    """The name of an image file."""
    return f"images/train/{number:012d}.jpg"


def generate(out: Path, images: int, boxes: int) -> float:
    """Write predictions with random boxes; returns the processor time in seconds."""
    random = np.random.default_rng(0)
    began = time.process_time()
    with PredictionsWriter(out, CLASSES) as writer:
        for number in range(images):
            corners_M2 = random.random((boxes, 2)) * (500, 400)
            sides_M2 = 10 + random.random((boxes, 2)) * 100
            boxes_M4 = np.concatenate([corners_M2, corners_M2 + sides_M2], 1)
            labels_M = random.integers(0, len(CLASSES), boxes)
            writer.add(name_of(number), (640, 480), boxes_M4, random.random(boxes), labels_M)
    return time.process_time() - began


class Numbers(Dataset[int]):
    """An empty data set, so that a worker's memory is only what it inherits."""

    collected = False

    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> int:
        if not self.collected:
            gc.collect()  # touches all inherited objects: the worst case
            self.collected = True
        return number


def memory(pid: int | str) -> dict[str, float]:
    """Memory of a process in MiB: `Pss` includes its share of shared pages, `Private` does not."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    parts = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {"Pss": parts["Pss"], "Private": parts["Private_Clean"] + parts["Private_Dirty"]}


def resident(name: str) -> float:
    """Memory of this process in MiB: current (``VmRSS``) or peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Read the predictions in this process, look up each image, and start workers."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, began = resident("VmRSS"), (time.perf_counter(), time.process_time())
    teacher = PredictionsTeacher(str(args.one))
    loaded = time.perf_counter(), time.process_time()
    highest = resident("VmHWM")
    known = teacher.known
    missing = sum(known.find(f"/data/set/{name_of(i)}") is None for i in range(len(known)))
    found = time.process_time()
    assert not missing
    result: dict[str, Any] = {
        "read_s": loaded[1] - began[1],
        "read_by_the_clock_s": loaded[0] - began[0],
        "find_all_s": found - loaded[1],
        "peak_mib": highest - before,
        "kept_mib": resident("VmRSS") - before,
        "workers": {},
    }
    for workers in args.workers:
        loader = DataLoader(Numbers(), batch_size=1, num_workers=workers, persistent_workers=workers > 0)
        running = iter(loader)
        for _ in range(len(loader) - 1):
            next(running)
        own = [memory(process.pid) for process in getattr(running, "_workers", [])]
        result["workers"][workers] = {
            "all_mib": memory("self")["Pss"] + sum(each["Pss"] for each in own),
            "each_private_mib": max((each["Private"] for each in own), default=0.0),
        }
        del running, loader
    return result


def main() -> None:
    """Write and read predictions, and print the table."""
    args = parse_args()
    if args.one is not None:
        print(json.dumps(one(args)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        jobs = [(count, f"{count}") for count in args.images]
        jobs += [(args.one_file, f"{args.one_file}.json")] if args.one_file else []
        for count, name in jobs:
            out = Path(folder, name)
            seconds = generate(out, count, args.boxes)
            files = list(out.glob("*.json")) if out.is_dir() else [out]
            size = sum(file.stat().st_size for file in files)
            command = [sys.executable, "-W", "ignore", __file__, "--one", str(out), "--workers"]
            done = subprocess.run(
                [*command, *map(str, args.workers)], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            about = {"images": count, "files": len(files), "mib": size / MIB, "write_s": seconds}
            rows.append({**about, **found})
            print(json.dumps(rows[-1]), flush=True)
    most = str(max(args.workers))
    print("\n| images | files | MiB | written in | read in | kept | at its peak | all, by workers | own |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        alls = ", ".join(f"{n}: {each['all_mib']:.0f}" for n, each in row["workers"].items())
        print(
            f"| {row['images']} | {row['files']} | {row['mib']:.0f} | {row['write_s']:.1f} s | "
            f"{row['read_s']:.1f} s | {row['kept_mib']:.0f} MiB | {row['peak_mib']:.0f} MiB | {alls} | "
            f"{row['workers'][most]['each_private_mib']:.0f} MiB |"
        )
    write("predictions", args.out, rows=rows, boxes=args.boxes)


if __name__ == "__main__":
    main()
