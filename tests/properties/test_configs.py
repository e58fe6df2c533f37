"""Damaged configs: each trains, or ends in a message of ours; none hangs."""

from __future__ import annotations

import gc
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.cli.train import main

from ..conftest import repeats
from .damaged_configs import Damage, bases, damages, text_of

if sys.platform != "linux":
    pytest.skip("processes are bounded by means of Linux", allow_module_level=True)

from .isolated import Ended, isolated

SEED = 0
SECONDS, GIGABYTES = 120, 3
ERROR = "\nmmkd: error: "


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes mmengine seconds and does not depend on the config."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports the compiler, once for all processes


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


def test_undamaged_configs_train(tmp_path: Path) -> None:
    for name, cfg in bases(tmp_path).items():
        ended = train(cfg, tmp_path, name)
        assert ended.code == 0, f"{name}: {ended.printed[-3000:]}"


@pytest.mark.soak
def test_damaged_configs_train_or_end_in_a_message(tmp_path: Path) -> None:
    configs = bases(tmp_path)
    gc.freeze()  # or each process copies what it only looks at
    ends: dict[int, int] = {}
    wrong = []
    for number, (damage, cfg) in enumerate(islice(damages(configs, SEED), repeats(20, 500))):
        ended = train(cfg, tmp_path, f"damaged_{number}")
        ends[ended.code] = ends.get(ended.code, 0) + 1
        problem = verdict(damage, ended)
        if problem:
            wrong.append(f"seed {SEED}, number {number}, {damage}: {problem}\n{ended.printed[-600:]}")
    gc.unfreeze()
    print(f"by exit code: {dict(sorted(ends.items()))}")  # for `pytest -s`
    assert not wrong, f"{len(wrong)} of {sum(ends.values())}:\n" + "\n\n".join(wrong)
