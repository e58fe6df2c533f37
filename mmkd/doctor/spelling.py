"""Finds misspelt config keys: unused keys similar to a known name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, IterBasedTrainLoop, Runner

from mmkd.doctor.findings import Finding
from mmkd.errors import nearest
from mmkd.registry import OPTIM_WRAPPERS, REGISTRIES, accepted_arguments, class_of, is_kind
from mmkd.sweeps.overrides import ALIASES

# For short names like ``lr``, and for others.
_CLOSE = {True: 0.8, False: 0.83}
# Top-level keys of a config besides the Runner's arguments.
_AT_TOP = (
    "auto_scale_lr",
    "backend_args",
    "compile",
    "data_preprocessor",
    "data_root",
    "dataset_type",
    "find_unused_parameters",
    "metainfo",
    "runner_type",
    "test_pipeline",
    "train_pipeline",
    "tta_model",
    "tta_pipeline",
    "val_pipeline",
)
_RUNNERS = (Runner, FlexibleRunner)
KNOWN = sorted({*_AT_TOP, *(name for kind in _RUNNERS for name in inspect.signature(kind).parameters)})
# Besides the short names of sweeps. (Inherited configs have a variable max_epochs of their own.)
_SETTINGS = {
    "num_classes": "model.bbox_head.num_classes",
    "num_workers": "train_dataloader.num_workers",
}
# Read by mmengine before a class is called.
_ALWAYS = {"type", "_scope_", "_delete_", "by_epoch", "priority", "convert_to_iter_based"}
_LOOKED_INTO = (
    "model",
    "optim_wrapper",
    "param_scheduler",
    "train_dataloader",
    "val_dataloader",
    "custom_hooks",
)


def examine_spelling(cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Look for misspelled keys at the top level, in the loops, and in every dict with a ``type``."""
    for key in cfg:
        near = nearest(key, KNOWN, cutoff=0.85)
        # Names like ``test_pipeline_stage2`` are variables of the config.
        if near and key not in KNOWN and not key.startswith(near) and not key.endswith(near):
            yield Finding.warning(f"key {key}", "nothing reads it", f"did you mean {near}?")
    yield from _stray(cfg)
    yield from _loop(cfg.get("train_cfg"))
    for key in _LOOKED_INTO:
        yield from _within(cfg.get(key), key)


def _stray(cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Top-level variables that have the name of a deeper setting but another value."""
    for name, place in {**ALIASES, **_SETTINGS}.items():
        value = cfg.get(name)
        part: Any = cfg
        for step in place.split("."):
            part = part.get(step) if hasattr(part, "get") else None
        if isinstance(value, (int, float)) and part is not None and part != value:
            found = f"nothing reads {name}={value}; {place} is {part}"
            yield Finding.warning(f"key {name}", found, f"did you mean {place}?")


def _loop(train_cfg: Any) -> Iterator[Finding]:
    if not isinstance(train_cfg, Mapping):
        return
    loop = class_of(train_cfg, LOOPS) if "type" in train_cfg else None
    if loop is None:
        by_epoch = train_cfg.get("by_epoch", "max_iters" not in train_cfg)
        loop = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    yield from _unknown(train_cfg, "train_cfg", loop)
    for name in ("max_epochs", "max_iters", "val_interval"):
        value = train_cfg.get(name)
        remedy = f"set train_cfg.{name} to 1 or more"
        # mmengine accepts an interval of 100.0.
        if value is not None and not isinstance(value, (int, float) if name == "val_interval" else int):
            kind = "number" if name == "val_interval" else "whole number"
            yield Finding.error("train_cfg", f"{name}={value!r} is not a {kind}", remedy)
        elif value is not None and value < 1:
            verdict = "is not a valid interval" if name == "val_interval" else "trains nothing"
            yield Finding.error("train_cfg", f"{name}={value} {verdict}", remedy)


def _within(part: Any, place: str) -> Iterator[Finding]:
    if isinstance(part, Mapping):
        kind = _class(part)
        if kind is not None and not is_kind(part, OptimWrapper, registry=OPTIM_WRAPPERS):
            yield from _unknown(part, place, kind)
        for key, value in part.items():
            yield from _within(value, f"{place}.{key}")
    elif isinstance(part, (list, tuple)):
        for position, value in enumerate(part):
            yield from _within(value, f"{place}[{position}]")


def _class(part: Mapping[str, Any]) -> type | None:
    for registry in (*REGISTRIES, OPTIMIZERS, PARAM_SCHEDULERS) if "type" in part else ():
        try:
            kind = class_of(part, registry)
        except Exception:  # an unknown dotted name, reported when it is built
            return None
        if isinstance(kind, type):
            return kind
    return None


def _unknown(part: Mapping[str, Any], place: str, kind: type) -> Iterator[Finding]:
    """Keys that a class does not accept, if they are similar to one that it accepts."""
    if any(hasattr(vars(one).get("__init__"), "__wrapped__") for one in kind.__mro__):
        return  # a decorator may translate older names
    valid, takes_any = accepted_arguments(kind)
    for key in part:
        if key in valid or key in _ALWAYS or not isinstance(key, str):
            continue
        near = nearest(key, valid, cutoff=_CLOSE[len(key) <= 4])
        if near:
            yield Finding(
                # Detectors and heads may remove an option from a part before building it.
                "warning" if takes_any or place.startswith("model.") else "error",
                place,
                f"{kind.__name__} has no option {key}",
                f"did you mean {place}.{near}?",
            )
