"""Train any MMDetection config, distilled or not."""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint
from mmengine.visualization import WandbVisBackend

import mmkd
from mmkd.amp import use_amp
from mmkd.cli import parsers
from mmkd.cli.common import build_runner, prepare_data, read_config, tool
from mmkd.cli.failures import keep_state
from mmkd.cli.work_dir import check_work_dir
from mmkd.cli.written import tell_of_files
from mmkd.datasets import innermost
from mmkd.detectors.recipe import recommended
from mmkd.doctor.annotations import classes_of
from mmkd.doctor.preconditions import require
from mmkd.doctor.teacher_boxes import examine_predictions
from mmkd.errors import UserError, type_of
from mmkd.hooks.options import check_hooks
from mmkd.hooks.teacher_views import teachers_with_views
from mmkd.registry import HOOKS, VISBACKENDS, class_of, imported_modules, is_kind, name_in, name_of
from mmkd.sweeps.agent import in_hosted_sweep, run_id
from mmkd.teachers import distills, teacher_entries
from mmkd.teachers.config import DISTILLER_OF_ANY
from mmkd.terminal import Terminal, short_output, silence
from mmkd.visualization import WandbBackend

# Score a teacher's predictions on this many images before training.
_SCORED = 200


def config_of(args: argparse.Namespace) -> Config:
    """The config from the arguments, ready for the Runner.

    Raises:
        UserError: the arguments or the config are invalid.
    """
    add = partial(add_teacher, teacher=args.teacher, checkpoint=args.teacher_checkpoint)
    cfg = read_config(args, add if args.teacher or args.teacher_checkpoint else None)
    if args.amp:
        use_amp(cfg, get_device())
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise UserError(
                "--auto-scale-lr needs the base batch size of the learning rate.",
                expected="auto_scale_lr=dict(base_batch_size=…) in the config",
                found="none",
                remedy="add it, or leave out --auto-scale-lr",
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    elif run_id() is not None and find_latest_checkpoint(cfg.work_dir):  # a pre-empted run
        cfg.resume, cfg.load_from = True, None
    prepare_data(cfg, ["train_dataloader", "val_dataloader"])
    imports = dict.fromkeys([*imported_modules(cfg), "mmkd"])  # makes the dumped config self-contained
    cfg.custom_imports = {**(cfg.get("custom_imports") or {}), "imports": list(imports)}
    check_hooks(cfg.get("custom_hooks"))
    add_hooks(
        cfg, "SomeDataHook", "ReproducibleHook", "ProgressHook", "FreshMetricsHook", "StopHook", "ResumeHook"
    )
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if class_of(checkpoint, HOOKS) is CheckpointHook:
        checkpoint["type"] = name_in(cfg, "DurableCheckpointHook")
    if "distill" in cfg.model:
        add_hooks(cfg, "DistillStateHook")
    teachers = teacher_entries(cfg.model.get("teacher"))
    if any(entry.get("cache") is not None for entry in teachers):
        add_hooks(cfg, "TeacherCacheHook")
    if any("predictions" in entry for entry in teachers):
        add_hooks(cfg, "TeacherViewsHook")
    if any("ema" in entry for entry in teachers):
        add_hooks(cfg, "EMATeacherHook")
    if args.wandb or in_hosted_sweep():
        add_wandb(cfg)
    return cfg


def add_hooks(cfg: Config, *names: str) -> None:
    """Add hooks with default options, unless the config has them."""
    hooks = cfg.get("custom_hooks") or []
    have = [class_of(hook, HOOKS) if isinstance(hook, dict) else type(hook) for hook in hooks]
    missing = [name for name in names if HOOKS.get(name) not in have]
    cfg.custom_hooks = [*hooks, *({"type": name_in(cfg, name)} for name in missing)]


def add_wandb(cfg: Config) -> None:
    """Log to W&B with `WandbBackend`, instead of mmengine's backend, and `WandbSweepHook`."""
    visualizer = cfg.get("visualizer") or ConfigDict(
        type=name_in(cfg, "DetLocalVisualizer"), name="visualizer"
    )
    backends = visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    for backend in backends:
        if class_of(backend, VISBACKENDS) is WandbVisBackend:
            backend["type"] = name_in(cfg, "WandbBackend")
            for option in ("commit", "log_code_name"):
                backend.pop(option, None)
    if not any(class_of(backend, VISBACKENDS) is WandbBackend for backend in backends):
        backends = [*backends, {"type": name_in(cfg, "WandbBackend")}]
    visualizer["vis_backends"] = backends
    cfg.visualizer = visualizer
    add_hooks(cfg, "WandbSweepHook")


def add_teacher(cfg: Config, teacher: str | None, checkpoint: str | None) -> None:
    """Turn a stock config into a distilled one, in place, with losses that fit the pair.

    The config gets a separate work dir. If it is already distilled, this teacher replaces its own.

    Raises:
        UserError: teacher or checkpoint is missing, or the config's model is no detector.
    """
    if not (teacher and checkpoint):
        raise UserError(
            "A teacher needs both its config and its checkpoint.",
            expected="--teacher CONFIG --teacher-checkpoint FILE",
            found=f"--teacher {teacher} --teacher-checkpoint {checkpoint}",
            remedy="give both",
        )
    init_default_scope(cfg.get("default_scope") or "mmdet")
    if not (distills(cfg.model) or is_kind(cfg.model, BaseDetector)):
        raise UserError(
            "--teacher cannot distil this config.",
            expected="an mmdet detector, or your own subclass of BaseDetector",
            found=f"model.type={type_of(cfg.model)}",
            remedy="choose another student",
        )
    entry = {"config": teacher, "checkpoint": checkpoint}
    if not distills(cfg.model):
        data = innermost((cfg.get("train_dataloader") or {}).get("dataset"))
        recipe = {"teacher": entry, **recommended(cfg.model, entry, next(map(classes_of, data), ()) or None)}
        # Name the student's own class, to keep its overrides.
        cfg.model.update(copy.deepcopy(recipe), student=name_of(cfg.model.type))
        cfg.model.type = name_in(cfg, DISTILLER_OF_ANY)
        student = cfg.filename and Path(cfg.filename).stem
        cfg.work_dir = f"{cfg.get('work_dir') or f'work_dirs/{student}'}-kd-{Path(teacher).stem}"
        _show(cfg, {"student": cfg.model.student, **recipe})
    else:
        cfg.model.teacher = ConfigDict(entry)


def _show(cfg: Config, recipe: dict[str, Any]) -> None:
    """Print the recipe as a user would write it in a config."""
    if os.environ.get("RANK", "0") != "0":
        return
    model = Config({"model": {"type": DISTILLER_OF_ANY, **recipe}}).pretty_text.strip()
    print(f"mmkd: losses that fit this pair, as a config:\n\n_base_ = [{cfg.filename!r}]\n{model}\n")


def train(args: argparse.Namespace) -> None:
    """Build the Runner and train."""
    with short_output(args.verbose) as terminal:
        began = time.time()
        runner = _train(args, terminal)
        if not args.no_files:
            tell_of_files(terminal, runner, began)


def _train(args: argparse.Namespace, terminal: Terminal) -> Any:
    setup_cache_size_limit_of_dynamo()
    cfg = config_of(args)
    check_work_dir(cfg)
    warnings = require(cfg, ("train", "val"))
    runner = build_runner(cfg)
    terminal.keep(f"mmkd {mmkd.__version__}")
    for one in warnings:
        runner.logger.warning(f"{one.what}: {one.found}; {one.remedy}")
    runner.register_hook(_TellOfPredictions(), priority="LOWEST")
    try:
        runner.train()
    except KeyboardInterrupt:
        last = find_latest_checkpoint(cfg.work_dir)
        raise KeyboardInterrupt(
            f"use --resume to continue from {last}" if last else "no checkpoint was saved yet"
        ) from None
    except Exception as error:
        raise keep_state(runner, error) from error
    return runner


class _TellOfPredictions(Hook):
    """Logs the doctor's findings on a teacher's predictions."""

    def before_train(self, runner: Any) -> None:
        entries = [x for x in teacher_entries(runner.cfg.model.get("teacher")) if "predictions" in x]
        teachers = teachers_with_views(runner.model)
        if not teachers or get_rank():
            return
        val = getattr(runner.val_loop, "dataloader", None)
        sets = runner.train_dataloader.dataset, None if val is None else val.dataset
        for entry, teacher in zip(entries, teachers):
            with silence():
                findings = list(examine_predictions(teacher.known, entry, *sets, most=_SCORED))
            for one in findings:
                if one.level != "ok" or one.what == "teacher: AP":
                    say = runner.logger.info if one.level == "ok" else runner.logger.warning
                    say(f"{one.what}: {one.found}{one.remedy and '; '}{one.remedy}")


parse_args, main = tool(parsers.train, train)

if __name__ == "__main__":
    sys.exit(main())
