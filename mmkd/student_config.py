"""Derives the student's config without mmkd from the training config."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv.ops
from mmengine.config import Config

from mmkd.datasets import places_of
from mmkd.errors import UserError
from mmkd.registry import imported_modules, name_of, package_of, registered
from mmkd.teachers.config import plain_detector

# What running and testing a detector needs; the rest is for training.
KEPT = (
    "default_scope",
    "model",
    "test_dataloader",
    "test_evaluator",
    "test_cfg",
    "test_pipeline",
    "tta_model",
    "tta_pipeline",
    "visualizer",
    "default_hooks",
    "env_cfg",
    "log_processor",
    "log_level",
)
STOCK = ("mmdet", "mmengine", "mmcv", "torch")


def student_config(cfg: Mapping[str, Any], dataset_meta: Mapping[str, Any]) -> Config:
    """The student's own config, with stock types and only what running and testing it needs.

    Args:
        cfg: a training config, distilled or not.
        dataset_meta: the data set's meta information; replaces files that a config names there.

    Returns:
        A config without inheritance. It imports the user's own modules if it still uses their types.

    Raises:
        UserError: something that it needs belongs to mmkd, or is in no module that the config imports.
    """
    kept = _plain_types({name: cfg[name] for name in KEPT if cfg.get(name) is not None})
    for name in {"default_hooks", "visualizer"} & set(kept):  # mmengine has defaults for these
        kept[name] = _without_mmkd(kept[name])
    if _is_mmkd(str(kept.setdefault("default_scope", "mmdet"))):
        kept["default_scope"] = "mmdet"
    model = plain_detector(_plain_types(cfg["model"]))
    if cfg.get("data_preprocessor") is not None:  # the Runner puts it there
        model.setdefault("data_preprocessor", cfg["data_preprocessor"])
    kept["model"] = _plain_types(_without_pretrained(model))
    _read_no_file(kept.get("test_dataloader") or {}, dataset_meta)
    imports = [name for name in imported_modules(cfg) if not _is_mmkd(name)]
    packages = {str(kind): _package(kind) for kind in _types(kept)}
    others = sorted(kind for kind, package in packages.items() if package not in STOCK)
    needed = [kind for kind in others if packages[kind] is not None]
    if "mmkd" in packages.values() or (needed and not imports):
        raise UserError(
            "The student's config needs more than stock MMDetection.",
            expected=f"types of {', '.join(STOCK)}, or of a module in custom_imports",
            found=", ".join(needed),
            remedy="add the module that registers them to custom_imports",
        )
    if others and imports:
        kept["custom_imports"] = {"imports": imports, "allow_failed_imports": False}
    return Config(kept)


def literal_config(text: str) -> dict[str, Any]:
    """Read the config that mmengine stored in a checkpoint, without running it.

    Raises:
        ValueError: it contains more than literals and ``dict(…)``, or has no model.
    """
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError("it is not valid Python") from error
    cfg: dict[str, Any] = {}
    for line in body:
        if not (isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)):
            raise ValueError("it contains more than assignments")
        cfg[line.targets[0].id] = _value(line.value)
    if not isinstance(cfg.get("model"), dict):
        raise ValueError("no model")
    return cfg


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        if node.args or any(pair.arg is None for pair in node.keywords):
            raise ValueError("it contains a dict that is not written as literal keys")
        return {str(pair.arg): _value(pair.value) for pair in node.keywords}
    if isinstance(node, ast.Dict) and all(node.keys):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values) if key}
    if isinstance(node, (ast.List, ast.Tuple)):
        parts = [_value(part) for part in node.elts]
        return parts if isinstance(node, ast.List) else tuple(parts)
    return ast.literal_eval(node)


def _is_mmkd(name: str) -> bool:
    return name.partition(".")[0] == "mmkd"


def _plain_types(value: Any) -> Any:
    """A copy with classes and functions replaced by their names, without mmkd's scope."""
    if isinstance(value, Mapping):
        return {
            key: name_of(part) if key == "type" else _plain_types(part)
            for key, part in value.items()
            if not (key == "_scope_" and _is_mmkd(str(part)))
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_types(part) for part in value)
    return value


def _without_mmkd(value: Any) -> Any:
    """A copy without mmkd's own entries."""
    if isinstance(value, dict):
        return {key: _without_mmkd(part) for key, part in value.items() if not _of_mmkd(part)}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_mmkd(part) for part in value if not _of_mmkd(part))
    return value


def _of_mmkd(value: Any) -> bool:
    return isinstance(value, Mapping) and _package(value.get("type")) == "mmkd"


def _without_pretrained(value: Any) -> Any:
    """A copy that does not download initial weights."""
    if isinstance(value, Mapping):
        return {
            key: _without_pretrained(part)
            for key, part in value.items()
            if not (key == "init_cfg" and isinstance(part, Mapping) and "checkpoint" in part)
        }
    return [_without_pretrained(part) for part in value] if isinstance(value, list) else value


def _read_no_file(parent: dict[str, Any], dataset_meta: Mapping[str, Any]) -> None:
    """Make a loader's data set, which is built only for its meta information, read no file; in place."""
    for container, key in places_of(parent):
        dataset = container[key]
        if container is not parent:  # mmdet's tools pass it only to the outermost
            dataset["lazy_init"] = True
        metainfo = dataset.get("metainfo") or {}
        for name in [name for name, value in metainfo.items() if isinstance(value, str)]:
            metainfo[name] = dataset_meta.get(name, metainfo[name])


def _types(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if isinstance(value.get("type"), str):
            yield value["type"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _types(part)


def _package(kind: Any) -> str | None:
    """The package of the class with this name, without importing what it names; ``None`` if unknown."""
    if not isinstance(kind, str):
        return None
    first, _, rest = kind.partition(".")
    if "." in rest:  # a class's full name
        return first
    found = registered(rest or first)
    if found is not None:
        return package_of(found)
    if hasattr(mmcv.ops, kind):  # found there by name, not in a registry
        return "mmcv"
    return first if rest else None
