"""Damage configs and train each in a process of its own, forked from an interpreter with nothing else in it.

    python -m tests.properties.drive_damages FOLDER COUNT

0 damages train the configs as they are. Prints what went wrong; the exit code is 1 if something did.
"""

from __future__ import annotations

import gc
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.registry import init_default_scope

from mmkd.cli.train import main

from .damaged_configs import Damage, bases, damages, text_of
from .isolated import Ended, isolated

SEED = 0
SECONDS, GIGABYTES = 120, 3
ERROR = "\nmmkd: error: "


def train(cfg: dict[str, Any], folder: Path, name: str) -> Ended:
    file = folder / f"{name}.py"
    file.write_text(text_of(cfg))
    argv = [str(file), "--work-dir", str(folder / "work_dir" / name)]
    return isolated(lambda: main(argv), folder / f"{name}.txt", SECONDS, GIGABYTES)


def verdict(damage: Damage, ended: Ended) -> str | None:
    """What is wrong with how it ended, if something is."""
    message = ended.printed.rpartition(ERROR)[2] if ERROR in ended.printed else ""
    if ended.code == 0:
        return "trained" if damage.cannot_run else None
    if ended.code == 2 and not damage.own:
        return None if message and "Traceback" not in ended.printed else "no message of ours alone"
    if ended.code == 2:
        if not message or "Traceback" in ended.printed:
            return "no message of ours alone"
        return None if any(name in message for name in damage.names) else "the message does not name it"
    if ended.code != 1:
        return f"exit code {ended.code}"
    if damage.own:
        return "an error from deep inside"
    placed = "while building" in message or "\n  in " in message or any(n in message for n in damage.names)
    return None if message and placed else "the last word is not ours, or does not say where"


def undamaged(folder: Path) -> list[str]:
    """What is wrong with the configs as they are."""
    ends = {name: train(cfg, folder, name) for name, cfg in bases(folder).items()}
    return [f"{name}: {ended.printed[-3000:]}" for name, ended in ends.items() if ended.code]


def damaged(folder: Path, count: int) -> list[str]:
    """What is wrong with how damaged ones end."""
    configs = bases(folder)
    gc.freeze()  # or each process copies what it only looks at
    ends: dict[tuple[str, int], int] = {}
    wrong = []
    for number, (damage, cfg) in enumerate(islice(damages(configs, SEED), count)):
        ended = train(cfg, folder, f"damaged_{number}")
        kind = ("own" if damage.own else "others'", ended.code)
        ends[kind] = ends.get(kind, 0) + 1
        problem = verdict(damage, ended)
        if problem:
            wrong.append(f"seed {SEED}, number {number}, {damage}: {problem}\n{ended.printed[-600:]}")
    print(f"whose options, exit code: how many: {dict(sorted(ends.items()))}")
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports the compiler, once for all processes
    # What takes mmengine seconds and does not depend on the config.
    with (
        mock.patch("mmengine.config.config.FormatCode", lambda text, **_: (text, True), create=True),
        mock.patch("mmengine.runner.runner.collect_env", dict),
    ):
        folder, count = Path(sys.argv[1]), int(sys.argv[2])
        found = damaged(folder, count) if count else undamaged(folder)
    print("\n\n".join(found))
    sys.exit(bool(found))
