"""Recreate the state before the first training iteration: message hub, loop and hooks."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.config import ConfigDict
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook, ProfilerHook, SyncBuffersHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmkd import hooks as ours
from mmkd.doctor.findings import Finding, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.registry import HOOKS, class_of
from mmkd.torchvision import survive

_NAME = "mmkd-doctor"
# Hooks that write, monitor a long run, or are created by this check itself.
_LEFT_OUT = (
    CheckpointHook,
    DetVisualizationHook,
    EMAHook,
    LoggerHook,
    ProfilerHook,
    SyncBuffersHook,
    ours.DistillMonitorHook,
    ours.DistillScheduleHook,
    ours.DistillStateHook,
    ours.EMATeacherHook,
    ours.MetricsFileHook,
    ours.ProgressHook,
    ours.ReproducibleHook,
    ours.ResumeHook,
    ours.StopHook,
    ours.TeacherCacheHook,
    ours.TeacherViewsHook,
    ours.WandbSweepHook,
)
_DEFAULTS = ("timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
_STAGES = ("before_run", "before_train", "before_train_epoch")


@contextmanager
def first_iteration(setup: TrainingSetup, model: Any, wrapper: Any, batch: Any) -> Iterator[list[Finding]]:
    """Recreate the Runner's state at the first iteration; yields the errors on the way.

    The Runner is real: its config, its loops, its message hub and the config's hooks that may change the
    model or its input. It writes to a temporary folder, and its message hub is removed afterwards.

    Args:
        setup: the training to check.
        model: the built model, on its device.
        wrapper: the model's optimizer wrapper.
        batch: a batch from the data loader.
    """
    hooks, later = _hooks(setup)
    findings: list[Finding] = []
    before = {kind: set(kind._instance_dict) for kind in (MessageHub, MMLogger, Visualizer)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            runner = _runner(setup, model, wrapper, hooks, folder)
            for stage in _STAGES:
                findings += _call(runner, stage)
            model.train()
            findings += _call(runner, "before_train_iter", batch_idx=0, data_batch=batch)
            if not findings:
                names = [type(hook).__name__ for hook in runner.hooks[1:]]  # the first tells the message hub
                found = f"run before the first iteration: {shortened(names)}"
                found += f"; not run: {shortened(later)}" if later else ""
                findings = [Finding.ok("hooks", found)]
            yield findings
        finally:
            for kind, there in before.items():
                for name in set(kind._instance_dict) - there:
                    del kind._instance_dict[name]


def _hooks(setup: TrainingSetup) -> tuple[list[Any], list[str]]:
    """The configs of the hooks to run, and the names of those that act later."""
    given = list(setup.cfg.get("custom_hooks") or [])
    defaults = setup.cfg.get("default_hooks") or {}
    given += [hook for name, hook in defaults.items() if name not in ("runtime_info", *_DEFAULTS)]
    asked, later = [ConfigDict(type=ours.SomeDataHook)], []
    for hook in given:
        kind = class_of(hook, HOOKS) if isinstance(hook, dict) else type(hook)
        if isinstance(kind, type) and issubclass(kind, _LEFT_OUT):
            later.append(kind.__name__)
        elif kind is not ours.SomeDataHook and hook is not None:
            asked.append(copy.deepcopy(hook))
    return asked, later


def _runner(setup: TrainingSetup, model: Any, wrapper: Any, hooks: list[Any], folder: str) -> Runner:
    cfg = copy.deepcopy(setup.cfg)
    cfg.work_dir = folder
    validation: dict[str, Any] = {}
    if all(cfg.get(f"val_{part}") for part in ("dataloader", "cfg", "evaluator")):
        loader = {**setup.loader("val", None), "dataset": cfg.val_dataloader.dataset}
        validation = {"val_dataloader": loader, "val_cfg": cfg.val_cfg, "val_evaluator": cfg.val_evaluator}
    survive()
    runner = Runner(
        model=model,
        work_dir=folder,
        train_dataloader={**setup.loader("train", None), "dataset": setup.dataset("train")},
        train_cfg=copy.deepcopy(cfg.get("train_cfg") or {"by_epoch": True, "max_epochs": 1}),
        optim_wrapper=wrapper,
        default_hooks=dict.fromkeys(_DEFAULTS),
        custom_hooks=hooks,
        load_from=cfg.get("load_from"),
        visualizer={"type": "Visualizer", "name": _NAME},
        log_level="ERROR",
        default_scope=cfg.get("default_scope") or "mmdet",
        randomness={"seed": (cfg.get("randomness") or {}).get("seed") or 0},
        experiment_name=_NAME,
        cfg=cfg,
        **validation,
    )
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    schedulers = copy.deepcopy(cfg.get("param_scheduler"))
    if schedulers:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)
    runner.load_or_resume()
    return runner


def _call(runner: Runner, stage: str, **arguments: Any) -> Iterator[Finding]:
    for hook in runner.hooks:
        try:
            getattr(hook, stage)(runner, **arguments)
        except Exception as error:
            yield Finding.error(
                f"hook: {type(hook).__name__}",
                f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
                "correct its entry in custom_hooks; training would stop here",
            )
