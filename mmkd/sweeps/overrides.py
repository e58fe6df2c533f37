"""``--cfg-options`` that keep their values, and the short names of sweeps."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, DictAction

from mmkd.errors import UserError
from mmkd.registry import REGISTRIES, accepted_arguments, class_of

# What wandb.config.lr and the like mean in an MMDetection config.
ALIASES = {
    "lr": "optim_wrapper.optimizer.lr",
    "weight_decay": "optim_wrapper.optimizer.weight_decay",
    "batch_size": "train_dataloader.batch_size",
    "temperature": "model.distill.cls.temperature",
    "kd_loss_weight": "model.distill.cls.loss_weight",
    "task_loss_weight": "model.task_loss_weight",
    "seed": "randomness.seed",
}
# Arguments of the Runner that a config may leave out and an override may add.
_OPTIONAL = ("randomness", "auto_scale_lr", "optim_wrapper.clip_grad", "model.task_loss_weight", "work_dir")
# What the detector takes out of a loss's config before it is built.
_OF_LOSSES = re.compile(r"model\.distill\.\w+\.share")


class KeepingDictAction(DictAction):
    """mmengine's ``key=value`` options, without its loss of spaces in values.

    A value that is a Python literal is that literal; any other is parsed as
    mmengine does (``a,b`` is a list) unless it has a space, and is then a string.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        try:
            value = ast.literal_eval(val)
        except (ValueError, SyntaxError):
            return val if " " in val.strip() and val[0] not in "([" else DictAction._parse_iterable(val)
        # To mmengine `1,2` is a list; only `(1,2)` is a tuple.
        return list(value) if isinstance(value, tuple) and not val.strip().startswith("(") else value


def resolve_aliases(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the short names by the dotted keys that they stand for.

    Args:
        cfg: a config; a key that it has itself is no short name.
        options: key → value.
    """
    return {key if key in cfg else ALIASES.get(key, key): value for key, value in options.items()}


def check_overrides(cfg: Config, options: Mapping[str, Any], strict: bool) -> None:
    """Refuse overrides that would silently do something else than was meant.

    Args:
        cfg: the config before the overrides.
        options: dotted key → value.
        strict: refuse keys that neither the config nor the class there has, as in a sweep, where
            a misspelled key would search over nothing. mmengine adds them.

    Raises:
        UserError: a dict would replace a part of the config, or a key is unknown.
    """
    for key, value in options.items():
        found, missing = _follow(cfg, key)
        if isinstance(value, dict) and isinstance(found, Mapping) and not missing and found:
            inner = next(iter(value), "…")
            raise UserError(
                f"This would replace all of {key}.",
                expected=f"dotted keys, like {key}.{inner}=…",
                found=f"{key}={value}",
                remedy="in a sweep file, use flat dotted `parameters` instead of nested ones",
            )
        is_argument = key.endswith(f".{missing}") and missing in _arguments(found)
        optional = key.startswith(_OPTIONAL) or _OF_LOSSES.fullmatch(key)
        if strict and missing and not is_argument and not optional:
            siblings = [str(name) for name in found] if isinstance(found, Mapping) else []
            siblings = sorted({*siblings, *_arguments(found)})
            near = difflib.get_close_matches(missing, siblings, n=3) or siblings
            raise UserError(
                f"The config has no {key}.",
                expected=f"one of: {', '.join([*near, *ALIASES])}",
                found=key,
                remedy="correct the parameter's name in the sweep file",
            )


def _arguments(part: Any) -> set[str]:
    """What the class that a part of a config names by its ``type`` accepts."""
    for registry in REGISTRIES if isinstance(part, Mapping) and "type" in part else ():
        found = class_of(part, registry)
        if found is not None:
            return set(accepted_arguments(found)[0])
    return set()


def _follow(cfg: Any, dotted: str) -> tuple[Any, str]:
    """The deepest part of a config on the way of a key, and the first step that is not there."""
    for step in dotted.split("."):
        if isinstance(cfg, (list, tuple)) and step.isdigit() and int(step) < len(cfg):
            cfg = cfg[int(step)]
        elif hasattr(cfg, "keys") and step in cfg:
            cfg = cfg[step]
        else:
            return cfg, step
    return cfg, ""
