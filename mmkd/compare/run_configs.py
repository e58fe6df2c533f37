"""The config of each run, its fingerprint, and checks that runs are comparable."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.config import Config, ConfigDict

from mmkd.compare.plan import STUDENT, TEACHER, Member, Plan
from mmkd.compat import config_of
from mmkd.datasets import metric_configs
from mmkd.errors import UserError
from mmkd.registry import METRICS, is_kind, name_in
from mmkd.sweeps.overrides import KeepingDictAction, check_overrides, resolve_aliases
from mmkd.teachers import is_detector, plain_detector, teacher_entries, teacher_model_and_checkpoint

BUDGET = (
    "train_cfg",
    "optim_wrapper",
    "param_scheduler",
    "train_dataloader",
    "auto_scale_lr",
    "val_dataloader",
    "val_evaluator",
    "test_dataloader",
    "test_evaluator",
    "model",
)
SHOWN = 8


def options_of(
    plan: Plan, member: Member, seed: int, teacher_checkpoint: str | None = None
) -> dict[str, Any]:
    """The options with which a run overrides its member's config.

    Args:
        plan: the comparison.
        member: one of its detectors.
        seed: the run's seed.
        teacher_checkpoint: checkpoint of the teacher that this comparison trained.
    """
    options = {**plan.options, **member.options}
    if teacher_checkpoint is not None and member.role not in (TEACHER, STUDENT):
        options.setdefault("model.teacher.checkpoint", teacher_checkpoint)
    return {**options, "randomness.seed": seed}


def training_config(member: Member, options: Mapping[str, Any]) -> Config:
    """The config that ``tools/train.py`` builds from a member's config and options.

    Raises:
        UserError: the config cannot be read, or an option would replace a whole part of it.
    """
    cfg = config_of(member.name, member.config)
    try:
        resolved = resolve_aliases(cfg, options)
        check_overrides(cfg, resolved, strict=False)
        cfg.merge_from_dict(resolved)
    except UserError as error:
        raise error.at(member.name) from error
    except Exception as error:
        raise UserError(
            f"The cfg-options of {member.name} do not fit its config.",
            expected="cfg-options with keys of the config",
            found=f"{type(error).__name__}: {error}",
            remedy="correct cfg-options",
        ) from error
    return cfg


def evaluation_config(cfg: Config, data: Config, split: str) -> Config:
    """The config to evaluate a detector with: its plain model on the student's data.

    Args:
        cfg: the detector's config.
        data: the student's config; all detectors use its images and evaluator.
        split: ``test`` or ``val``.

    Raises:
        UserError: the split does not exist, or its evaluator computes no metrics.
    """
    for part in ("dataloader", "evaluator"):
        if data.get(f"{split}_{part}") is None:
            raise UserError(
                f"The student's config has no {split}_{part}.",
                expected=f"{split}_dataloader and {split}_evaluator to evaluate with",
                found=", ".join(key for key in data if key.endswith(part)) or "none",
                remedy="add it, or choose the other split with `evaluate` in the plan",
            )
    out = copy.deepcopy(data)
    evaluator = copy.deepcopy(data[f"{split}_evaluator"])
    for metric in metric_configs(evaluator):
        if metric.get("format_only"):
            raise UserError(
                f"{split}_evaluator only writes files and computes no metrics.",
                expected="a split with annotations",
                found="format_only=True",
                remedy="choose the other split with `evaluate` in the plan",
            )
        if is_kind(metric, CocoMetric, registry=METRICS):
            metric.classwise = True
    out.model = plain_detector(copy.deepcopy(cfg.model))
    for key in ("data_preprocessor", "custom_imports"):  # these belong to the detector, not to the data
        out.pop(key, None)
        if cfg.get(key) is not None:
            out[key] = cfg[key]
    out.test_evaluator, out.test_dataloader = evaluator, copy.deepcopy(data[f"{split}_dataloader"])
    out.test_cfg = data.get("test_cfg") or ConfigDict(type="TestLoop")
    out.custom_hooks, out.load_from, out.resume = [], None, False
    backends = [ConfigDict(type="LocalVisBackend")]
    kind = name_in(data, "DetLocalVisualizer")
    out.visualizer = ConfigDict(type=kind, name="visualizer", vis_backends=backends)
    for key in list(out):  # keep only what testing reads
        if key.startswith(("train_", "val_", "optim_", "param_")) or key == "tta_model":
            out.pop(key)
    return out


def fingerprint(cfg: Config, *files: str | None) -> str:
    """A hash of what defines a run: the merged config, its teachers and their weights.

    Args:
        cfg: the merged config.
        files: further checkpoints; of URLs and missing files only the name is hashed.
    """
    content: list[Any] = [cfg.to_dict()]
    for entry in teacher_entries(cfg.model.get("teacher")):
        if ("config" in entry or "type" in entry) and is_detector(entry):
            model, checkpoint = teacher_model_and_checkpoint(entry)
            content.append(model.to_dict())
            files = (*files, checkpoint)
    for file in files:
        path = Path(str(file)).expanduser()
        content.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(file))
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def budget_differences(student: Config, variant: Config) -> list[str]:
    """Where a variant's training, data or model differs from the student's; one line each."""
    lines = []
    for part in BUDGET:
        pair = [_plain(part, cfg.get(part)) for cfg in (student, variant)]
        lines += [f"{part}{path}: {a!r} → {b!r}" for path, a, b in _differences(*pair)]
    return lines


def check_budget(plan: Plan, configs: Mapping[str, Config]) -> dict[str, list[str]]:
    """Compare each variant's budget with the student's.

    Args:
        plan: the comparison.
        configs: member's name → config.

    Returns:
        The differences of each variant that has any.

    Raises:
        UserError: budgets differ, and the plan does not allow it.
    """
    student = configs[plan.student.name]
    found = {v.name: budget_differences(student, configs[v.name]) for v in plan.variants}
    found = {name: lines for name, lines in found.items() if lines}
    if found and plan.same_budget:
        name, lines = next(iter(found.items()))
        more = f"\n            and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"{', '.join(found)}: model, data or budget differs from the student alone.",
            expected=f"the same {', '.join(BUDGET)}",
            found=f"{name}, compared with the student:\n            "
            + "\n            ".join(lines[:SHOWN])
            + more,
            remedy="make them equal; if you want to compare the difference, set `budget: differs` in "
            "the plan",
        )
    return found


def check_teachers(plan: Plan, configs: Mapping[str, Config]) -> dict[str, list[str]]:
    """Compare the variants' teacher checkpoints with the plan's teacher.

    Args:
        plan: the comparison.
        configs: member's name → config.

    Returns:
        For each variant that learns from other checkpoints, these checkpoints.

    Raises:
        UserError: teachers differ, and the plan does not allow it.
    """
    if plan.teacher is None:
        return {}
    own = plan.teacher.checkpoint
    found = {}
    for variant in plan.variants:
        entries = teacher_entries(configs[variant.name].model.get("teacher"))
        named = [str(entry["checkpoint"]) for entry in entries if "checkpoint" in entry]
        if own is not None:
            named = [name for name in named if Path(name).resolve() != Path(own).resolve()]
        elif takes_trained_teacher(plan, variant, configs[variant.name]):
            named = []
        if named:
            found[variant.name] = named
    if found and plan.same_teacher:
        name, named = next(iter(found.items()))
        remedy = (
            "remove `model.teacher.checkpoint` and further teachers from these variants"
            if own is None
            else f"give these variants `cfg-options: {{model.teacher.checkpoint: {own}}}`"
        )
        raise UserError(
            f"{', '.join(found)}: teacher differs from the plan's.",
            expected=own or f"the one that the plan trains from {plan.teacher.config}, as the single teacher",
            found=f"{name} is distilled from {', '.join(named)}",
            remedy=f"{remedy}; if you want to compare teachers, set `teachers: differ` in the plan",
        )
    return found


def takes_trained_teacher(plan: Plan, member: Member, cfg: Config) -> bool:
    """Whether the teacher that the plan trains replaces a detector's own single teacher.

    Args:
        plan: the comparison.
        member: one of its detectors; if it sets ``model.teacher.checkpoint``, it keeps that one.
        cfg: the detector's config.
    """
    if plan.teacher is None or plan.teacher.checkpoint is not None or member.role == TEACHER:
        return False
    entries = teacher_entries(cfg.model.get("teacher"))
    sets_checkpoint = "model.teacher.checkpoint" in {**plan.options, **member.options}
    return len(entries) == 1 and "config" in entries[0] and not sets_checkpoint


def option_text(key: str, value: Any) -> str:
    """Format an option for ``--cfg-options``."""
    plain = isinstance(value, str) and KeepingDictAction._parse_iterable(value) == value
    return f"{key}={value if plain else repr(value)}"


def _plain(part: str, value: Any) -> Any:
    """A part of a config as plain containers; a model without its class and what mmkd adds."""
    if part == "model":
        value = plain_detector(value)
        return {key: inner for key, inner in value.to_dict().items() if key != "type"}
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            if str(key) != "_scope_":
                yield from _differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b)):
            yield from _differences(left, right, f"{path}.{index}")
    elif a != b:
        yield path, a, b
