"""What deployment needs of a training checkpoint: weights, class names, and a config that knows no mmkd."""

from __future__ import annotations

import ast
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv.ops
import mmengine.registry
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope, Registry
from torch import Tensor

from mmkd.checkpoints.names import hash_in_name
from mmkd.compat import load_config
from mmkd.datasets import class_names, common_metainfo, places_of
from mmkd.errors import UserError, user_error
from mmkd.registry import MODELS, REGISTRIES, imported_modules
from mmkd.teachers.checkpoint import load_weights, own_keys, read_checkpoint
from mmkd.teachers.config import plain_detector

WRITTEN = "# Written by mmkd-publish: the student alone, for stock MMDetection."
# What running and testing a detector reads; the rest is about training.
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


def write_deployable(checkpoint: str, out: Path, half: bool, config: str | None = None) -> int:
    """Write the weights with the data set's meta information, and beside them the student's config.

    The config has the name of the weights and the ending ``.py``: one file with stock types alone, from
    which mmdet's `init_detector` builds the student. It is made of the training's config, which every
    checkpoint of mmengine's `Runner` holds. If none can be made, the log says why and the weights are written
    alone.

    Args:
        checkpoint: a checkpoint of training, path or URL.
        out: the file to write; replaced whole, never half written.
        half: store floating-point weights in half precision.
        config: the training's config, if not that in the checkpoint.

    Returns:
        The number of tensors.

    Raises:
        UserError: the checkpoint cannot be read, or holds no weights; the name promises a hash, see
            `mmkd.checkpoints.names`; ``config`` cannot be read, needs mmkd or does not fit the weights; or
            the student's config would replace a file that is not of this function.
    """
    check_out_name(out)
    beside = out.with_suffix(".py")
    _check_replaceable(beside, out)
    content = read_checkpoint(checkpoint)
    if "state_dict" not in content:
        raise user_error(
            "This checkpoint holds no `state_dict`.",
            expected="a checkpoint of tools/train.py",
            found=f"keys {', '.join(map(str, list(content)[:10]))}",
            remedy="name the file that training wrote",
        )
    weights = own_keys(content["state_dict"], checkpoint)
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    found = meta.get("dataset_meta")
    dataset_meta = common_metainfo(found, class_names(found)) if found else {}
    text = _config_text(str(meta.get("cfg", "")), config, dataset_meta, weights, checkpoint)
    if half:
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in weights.items()
        }
    temporary = out.with_suffix(".tmp")
    torch.save(
        {"meta": {"dataset_meta": dataset_meta} if dataset_meta else {}, "state_dict": weights}, temporary
    )
    os.replace(temporary, out)
    if text is None:
        beside.unlink(missing_ok=True)  # one of other weights
    else:
        temporary.write_text(f"{WRITTEN}\n{text}", encoding="utf-8")
        os.replace(temporary, beside)
        print_log(f"{beside}: the student's config, for stock MMDetection", "current")
    return len(weights)


def student_config(cfg: Mapping[str, Any], dataset_meta: Mapping[str, Any]) -> Config:
    """The config of the student alone, of stock types: what running and testing it reads.

    Args:
        cfg: a config of training, distilled or not.
        dataset_meta: the data set's meta information; stands in place of files that a config names there.

    Returns:
        A config that inherits from none. It imports the user's own modules if types of theirs are left.

    Raises:
        UserError: something that it needs is mmkd's, or is in no module that the config imports.
    """
    kept = _plain_types({name: cfg[name] for name in KEPT if cfg.get(name) is not None})
    for name in {"default_hooks", "visualizer"} & set(kept):  # for which mmengine has others
        kept[name] = _without_mmkd(kept[name])
    if _is_mmkd(str(kept.setdefault("default_scope", "mmdet"))):
        kept["default_scope"] = "mmdet"
    model = plain_detector(_plain_types(cfg["model"]))
    if cfg.get("data_preprocessor") is not None:  # where the Runner would put it
        model.setdefault("data_preprocessor", cfg["data_preprocessor"])
    kept["model"] = _plain_types(_without_pretrained(model))
    _read_no_file(kept.get("test_dataloader") or {}, dataset_meta)
    imports = [name for name in imported_modules(cfg) if not _is_mmkd(name)]
    packages = {str(kind): _package(kind) for kind in _types(kept)}
    others = sorted(kind for kind, package in packages.items() if package not in STOCK)
    needed = [kind for kind in others if packages[kind] is not None]
    if "mmkd" in packages.values() or (needed and not imports):
        raise user_error(
            "The student's config needs more than stock MMDetection.",
            expected=f"types of {', '.join(STOCK)}, or of a module that custom_imports names",
            found=", ".join(needed),
            remedy="list the module that registers them under custom_imports",
        )
    if others and imports:
        kept["custom_imports"] = {"imports": imports, "allow_failed_imports": False}
    return Config(kept)


def _config_text(
    own: str,
    config: str | None,
    dataset_meta: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    checkpoint: str,
) -> str | None:
    """The text of the student's config; ``None`` if the checkpoint holds none to make it of."""
    if config is not None:
        return _fitting(_read_config(config), dataset_meta, weights, checkpoint)
    try:
        return _fitting(_literal_config(own), dataset_meta, weights, checkpoint)
    except Exception as error:  # the weights are of use without
        print_log(
            f"The weights are written without a config. None can be made of that in {checkpoint}: {error}; "
            "name the training's config by --config",
            "current",
            logging.WARNING,
        )
    return None


def _fitting(
    cfg: Mapping[str, Any], dataset_meta: Mapping[str, Any], weights: Mapping[str, Tensor], checkpoint: str
) -> str:
    made = student_config(cfg, dataset_meta)
    if "custom_imports" not in made:
        with DefaultScope.overwrite_default_scope(made.default_scope):
            load_weights(MODELS.build(ConfigDict(made.model).copy()), weights, checkpoint)
    return str(made.pretty_text)


def _read_config(name: str) -> dict[str, Any]:
    try:
        cfg: dict[str, Any] = load_config(name).to_dict()
    except Exception as error:
        raise user_error(
            "The config cannot be read.",
            expected="the config that the checkpoint was trained with",
            found=f"{name} ({type(error).__name__}: {error})",
            remedy="correct the path",
        ) from error
    if not isinstance(cfg.get("model"), Mapping):
        raise UserError(f"{name} has no model: name the config that the checkpoint was trained with")
    return cfg


def _literal_config(text: str) -> dict[str, Any]:
    """Read the config that mmengine wrote into a checkpoint, without running it.

    Raises:
        ValueError: it is more than literals and ``dict(…)``, or has no model.
    """
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError("it is no Python") from error
    cfg: dict[str, Any] = {}
    for line in body:
        if not (isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)):
            raise ValueError("it has more than assignments")
        cfg[line.targets[0].id] = _value(line.value)
    if not isinstance(cfg.get("model"), dict):
        raise ValueError("no model")
    return cfg


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        if node.args or any(pair.arg is None for pair in node.keywords):
            raise ValueError("it has a dict of something else than its keys")
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
    """A copy with classes and functions by their names, and without mmkd's scope."""
    if isinstance(value, Mapping):
        return {
            key: _registered_name(part) if key == "type" else _plain_types(part)
            for key, part in value.items()
            if not (key == "_scope_" and _is_mmkd(str(part)))
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_types(part) for part in value)
    return value


def _registered_name(kind: Any) -> Any:
    """The name by which mmdet finds a class. Its tools look for some, like ``LoadImageFromFile``."""
    if callable(kind):
        kind = f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(kind, str):
        return kind
    package, name = kind.partition(".")[0], kind.rpartition(".")[2]
    found = _registered(name)
    return name if found is not None and found.__module__.partition(".")[0] == package else kind


def _without_mmkd(value: Any) -> Any:
    """A copy without the entries that are mmkd's own."""
    if isinstance(value, dict):
        return {key: _without_mmkd(part) for key, part in value.items() if not _of_mmkd(part)}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_mmkd(part) for part in value if not _of_mmkd(part))
    return value


def _of_mmkd(value: Any) -> bool:
    return isinstance(value, Mapping) and _package(value.get("type")) == "mmkd"


def _without_pretrained(value: Any) -> Any:
    """A copy that downloads no weights to begin with."""
    if isinstance(value, Mapping):
        return {
            key: _without_pretrained(part)
            for key, part in value.items()
            if not (key == "init_cfg" and isinstance(part, Mapping) and "checkpoint" in part)
        }
    return [_without_pretrained(part) for part in value] if isinstance(value, list) else value


def _read_no_file(parent: dict[str, Any], dataset_meta: Mapping[str, Any]) -> None:
    """Have the data set of a loader, built for its meta information alone, read no file; in place."""
    for container, key in places_of(parent):
        dataset = container[key]
        if container is not parent:  # mmdet's tools say it to the outermost alone
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
    """The package of the class that a name means, without importing what it names; ``None`` if unknown."""
    if not isinstance(kind, str):
        return None
    first, _, rest = kind.partition(".")
    if "." in rest:  # the full name of a class
        return first
    found = _registered(rest or first)
    if found is not None:
        return str(found.__module__).partition(".")[0]
    if hasattr(mmcv.ops, kind):  # found by its name there, in no registry
        return "mmcv"
    return first if rest else None


def _registered(name: str) -> Any:
    """What mmdet finds under a name; ``None`` if nothing."""
    for registry in _registries():
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None


@functools.cache
def _registries() -> list[Registry]:
    for node in REGISTRIES:
        node.import_from_location()
    roots = [node for node in vars(mmengine.registry).values() if isinstance(node, Registry)]
    return [*REGISTRIES, *roots]


def _check_replaceable(beside: Path, out: Path) -> None:
    """Refuse to replace a config that somebody wrote."""
    if beside == out:
        raise UserError(f"{out} would be a config by its name: name the weights {out.with_suffix('.pth')}")
    if beside.exists() and not beside.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN):
        raise user_error(
            "A config of yours has the name of the one to write.",
            expected=f"no {beside}, or one that mmkd-publish wrote",
            found=f"{beside}, which begins otherwise",
            remedy="choose another name for the weights",
        )


def check_out_name(out: Path) -> None:
    """Refuse a name for a new checkpoint that promises a hash.

    Raises:
        UserError: it does, see `mmkd.checkpoints.names`.
    """
    if hash_in_name(out.name):
        raise user_error(
            f"The name {out.name} promises a SHA-256 that the file will not have.",
            expected="a name that does not end in - and eight hexadecimal digits",
            found=out.name,
            remedy="name it otherwise; add the hash when the file is there",
        )
