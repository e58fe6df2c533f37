"""The cost of mmkd's train tool compared with mmdet's, on a stock config without distillation.

    python benchmarks/train_cost.py
    python benchmarks/train_cost.py --config mmdet::atss/atss_r50_fpn_1x_coco.py

Each training is a new process of `tools/train.py`, mmdet's or mmkd's, with the same config, without mmkd's
own parts; a hook of this benchmark measures the times in both. They take turns, each round starting with
another one. mmdet's tool runs twice: the second one shows how far to trust the figures. Figures are medians
over the rounds of the ratio to mmdet's in the same round. A step lasts from the end of one iteration to the
end of the next, including its data; an epoch from its start to the start of the next, including the start of
workers, the checkpoint and validation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mmdet
from clock import FILE
from common import paired_ratios, write
from mmengine.config import Config, ConfigDict, DictAction

from mmkd.compat import load_config

ROOT = Path(__file__).resolve().parents[1]
MMDET, MMKD, AGAIN = "mmdet's tools/train.py", "mmkd's tools/train.py", "mmdet's tools/train.py, again"
WARM_UP = 3  # first iterations of an epoch, not representative for a step
PARTS = ("step", "epoch")


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="configs/bccd/student.py", help="of a detector without a teacher")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def stock(args: argparse.Namespace) -> Config:
    """The config that both tools train: without mmkd's parts, with the clock, a few epochs, one seed."""
    cfg = load_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.train_cfg.max_epochs = args.epochs
    cfg.custom_imports = ConfigDict(imports=["clock"], allow_failed_imports=False)
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] != "MetricsFileHook"]
    cfg.custom_hooks.append(ConfigDict(type="mmengine.ClockHook"))
    cfg.randomness = ConfigDict(seed=0)
    return cfg


def mmdets_tool() -> Path:
    """mmdet's train tool, from an installation or a clone."""
    package = Path(mmdet.__file__).parent
    for path in (package / ".mim/tools/train.py", package.parent / "tools/train.py"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"mmdet's tools/train.py is not in {package / '.mim'} or {package.parent}")


def train(tool: Path, config: Path, folder: Path) -> dict[str, float]:
    """Seconds per step (median) and per epoch (mean) of one training."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", str(tool), str(config), "--work-dir", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if ran.returncode:
        raise RuntimeError(f"{tool}:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    return seconds(json.loads((folder / FILE).read_text()))


def seconds(clock: Any) -> dict[str, float]:
    """Seconds per step and epoch, from the clock's file."""
    steps = [
        after - before
        for ends in clock["iterations"]
        for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])
    ]
    epochs = (clock["end"] - clock["epochs"][0]) / len(clock["epochs"])
    return {"step": statistics.median(steps), "epoch": epochs}


def main() -> None:
    """Train in turn, print the table and write the JSON."""
    args = parse_args()
    tools = {MMDET: mmdets_tool(), MMKD: ROOT / "tools" / "train.py", AGAIN: mmdets_tool()}
    times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in tools} for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "stock.py"
        stock(args).dump(config)
        names = list(tools)
        for turn in range(args.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found = train(tools[name], config, Path(folder) / f"{turn}_{names.index(name)}")
                for part, value in found.items():
                    times[part][name].append(value)
                print(f"round {turn + 1}, {name}: step {found['step']:.3f} s, epoch {found['epoch']:.1f} s")
    ratios = {part: paired_ratios(times[part], MMDET) for part in PARTS}
    print(f"\n{args.config}, without a teacher, {args.epochs} epochs, {args.rounds} rounds\n")
    print("| | step | epoch |\n|---|---|---|")
    for name in tools:
        print(f"| {name} | {ratios['step'][name]:.3f} × | {ratios['epoch'][name]:.3f} × |")
    options = {key: str(value) for key, value in vars(args).items()}
    write("train_cost", args.out, options=options, ratios=ratios, seconds=times)


if __name__ == "__main__":
    main()
