"""Shorten a training while keeping the shape of its schedule."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmkd.datasets import without_workers
from mmkd.errors import UserError
from mmkd.hooks import DistillMonitorHook, DistillScheduleHook
from mmkd.registry import HOOKS, is_kind, name_in
from mmkd.teachers import teacher_entries

# Arguments that schedulers count in iterations, unless they count in epochs.
_SPANS = ("begin", "end", "T_max", "step_size", "total_steps")
_LISTS = ("milestones", "periods")
LOGGED, MEASURED = 20, 10  # how often a short training logs and measures


def budget_of(cfg: Config) -> tuple[int, int]:
    """Iterations and epochs of a full training; 0 epochs for an iteration-based loop.

    Builds the training data set.

    Raises:
        UserError: the config does not say how long it trains.
    """
    train = cfg.get("train_cfg") or {}
    epochs, iterations = int(train.get("max_epochs") or 0), int(train.get("max_iters") or 0)
    if not epochs and not iterations:
        raise UserError(
            "Cannot determine the training length.",
            expected="train_cfg.max_epochs or train_cfg.max_iters",
            found=f"train_cfg={dict(train)}",
            remedy="set one of the two in the student's config",
        )
    if not epochs:
        return iterations, 0
    return epochs * len(Runner.build_dataloader(without_workers(cfg.train_dataloader), seed=0)), epochs


def short_budget(share: float, iterations: int, epochs: int) -> int:
    """The iterations of a share of the budget: the same number in each epoch, at least one.

    Args:
        share: in (0, 1).
        iterations: iterations of the full training.
        epochs: epochs of the full training; 0 for an iteration-based loop.
    """
    loops = max(1, epochs)
    return loops * max(1, round(share * iterations / loops))


def shortened(cfg: Config, budget: int, iterations: int, epochs: int) -> Config:
    """The config of a training with fewer iterations and a schedule of the same shape.

    The number of epochs stays the same and each gets shorter, so schedules, ``stop_epoch`` and hooks that
    count in epochs need no change. What counts in iterations (warm-up, schedules, `DistillScheduleHook`)
    shrinks by the same factor. Training does not validate, and `DistillMonitorHook` measures.

    Args:
        cfg: the full config; it is not changed.
        budget: iterations of the short training, from `short_budget`.
        iterations: iterations of the full training.
        epochs: epochs of the full training; 0 for an iteration-based loop.
    """
    cfg, factor = copy.deepcopy(cfg), budget / iterations
    loader = cfg.train_dataloader
    if epochs:
        kept = {"of": loader.get("batch_sampler"), "drop_last": loader.pop("drop_last", False)}
        kind = name_in(cfg, "ShortEpochs")
        loader.batch_sampler = ConfigDict(type=kind, batches=budget // epochs, **kept)
    else:
        cfg.train_cfg.max_iters = budget
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if not scheduler.get("by_epoch", True):
            _shorten_schedule(scheduler, factor)
    # ReduceOnPlateau needs a validation metric.
    if "ReduceOnPlateau" not in str(schedulers):
        cfg.train_cfg.val_begin = (epochs or budget) + 1
    hooks = list(cfg.get("custom_hooks") or [])
    for hook in hooks:
        if is_kind(hook, DistillScheduleHook, registry=HOOKS) and hook.get("warmup", 0) >= 1:
            hook["warmup"] = max(1, round(hook["warmup"] * factor))
        elif is_kind(hook, EMAHook, registry=HOOKS) and hook.get("begin_iter"):
            hook["begin_iter"] = round(hook["begin_iter"] * factor)
    if isinstance((cfg.get("default_hooks") or {}).get("logger"), Mapping):
        cfg.default_hooks.logger.interval = max(1, budget // LOGGED)
    if teacher_entries(cfg.model.get("teacher")) and cfg.model.get("distill"):
        hooks = [hook for hook in hooks if not is_kind(hook, DistillMonitorHook, registry=HOOKS)]
        monitor = ConfigDict(type=name_in(cfg, "DistillMonitorHook"), interval=max(1, budget // MEASURED))
        cfg.custom_hooks = [*hooks, monitor]
    return cfg


def _shorten_schedule(scheduler: Any, factor: float) -> None:
    for key in _SPANS:
        if scheduler.get(key):
            scheduler[key] = max(1, round(scheduler[key] * factor))
    for key in _LISTS:
        if key in scheduler:
            scheduler[key] = [max(1, round(value * factor)) for value in scheduler[key]]
    if "end" in scheduler:
        scheduler["end"] = max(scheduler["end"], scheduler.get("begin", 0) + 1)
    if str(scheduler["type"]).rpartition(".")[2].startswith("Exponential"):  # it decays once per iteration
        scheduler["gamma"] = scheduler["gamma"] ** (1 / factor)
