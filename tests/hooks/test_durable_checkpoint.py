from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import CheckpointHook

from mmkd.durable import DurableLocalBackend, use_durable_files
from mmkd.hooks import DurableCheckpointHook

from .toy import toy_runner

BEST = {"save_best": "toy/mean", "rule": "greater"}


def fewest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, hook: str, **options: Any) -> int:
    """The fewest checkpoints that there are while one is written, once there is one."""
    counts: list[int] = []
    had_one = False
    put = DurableLocalBackend.put

    def counting(self: Any, obj: Any, path: Any) -> None:
        nonlocal had_one
        if had_one:
            counts.append(len(list(tmp_path.glob(pattern))))
        put(self, obj, path)
        had_one = had_one or Path(path).match(pattern)

    use_durable_files()  # for mmengine's hook too
    monkeypatch.setattr(DurableLocalBackend, "put", counting)
    toy_runner(
        tmp_path,
        epochs=4,
        default_hooks={"checkpoint": {"type": hook, "interval": 1, "max_keep_ckpts": 1, **options}},
    ).train()
    return min(counts)


@pytest.mark.parametrize(("pattern", "options"), [("epoch_*.pth", {}), ("best_*.pth", BEST)])
def test_never_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, options: dict[str, str]
) -> None:
    assert fewest(tmp_path / "stock", monkeypatch, pattern, "CheckpointHook", **options) == 0, "mmengine's"
    assert fewest(tmp_path / "ours", monkeypatch, pattern, "mmdet.DurableCheckpointHook", **options) == 1


@pytest.mark.parametrize("keep", [1, 2, -1])
@pytest.mark.parametrize("by_epoch", [True, False])
def test_keeps_what_mmengines_keeps(tmp_path: Path, keep: int, by_epoch: bool) -> None:
    kept = []
    for hook in (CheckpointHook, DurableCheckpointHook):
        folder = tmp_path / hook.__name__
        cfg = {} if by_epoch else {"train_cfg": {"by_epoch": False, "max_iters": 9, "val_interval": 3}}
        saving = {
            "type": hook,
            "max_keep_ckpts": keep,
            "interval": 1 if by_epoch else 2,
            "by_epoch": by_epoch,
        }
        toy_runner(folder, epochs=4, default_hooks={"checkpoint": {**saving, **BEST}}, **cfg).train()
        again = {"epochs": 5} if by_epoch else {"train_cfg": {**cfg["train_cfg"], "max_iters": 12}}
        toy_runner(folder, default_hooks={"checkpoint": {**saving, **BEST}}, resume=True, **again).train()
        last = (folder / "last_checkpoint").read_text()
        kept.append((sorted(path.name for path in folder.glob("*.pth")), Path(last).name))
    assert kept[0] == kept[1]


def test_tells_whether_a_validation_is_due(tmp_path: Path) -> None:
    saved: dict[str, list[bool]] = {}

    class Watch(DurableCheckpointHook):
        def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
            super()._save_checkpoint_with_step(runner, step, meta)
            path = tmp_path / self.filename_tmpl.format(step)
            saved.setdefault(path.name, []).append(torch.load(path)["meta"]["validation_due"])

    toy_runner(
        tmp_path,
        epochs=3,
        train_cfg={"by_epoch": True, "max_epochs": 3, "val_interval": 2},
        default_hooks={"checkpoint": {"type": Watch, "interval": 1, **BEST}},
    ).train()
    assert saved["epoch_1.pth"] == [False], "none is done after the first epoch"
    assert saved["epoch_2.pth"] == [True, False], "written before it, and again with the best score"
    assert saved["epoch_3.pth"][0] is True, "the last epoch is always validated"
