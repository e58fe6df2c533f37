"""``--cfg-options`` that keep their values, and short names for sweeps."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, DictAction

from mmkd.errors import UserError
from mmkd.registry import REGISTRIES, accepted_arguments, class_of

# The meaning of wandb.config.lr and the like in an MMDetection config.
ALIASES = {
    "lr": "optim_wrapper.optimizer.lr",
    "weight_decay": "optim_wrapper.optimizer.weight_decay",
    "batch_size": "train_dataloader.batch_size",
    "temperature": "model.distill.cls.temperature",
    "kd_loss_weight": "model.distill.cls.loss_weight",
    "task_loss_weight": "model.task_loss_weight",
    "seed": "randomness.seed",
}
# Runner arguments that a config may omit and an override may add.
_OPTIONAL = ("randomness", "auto_scale_lr", "optim_wrapper.clip_grad", "model.task_loss_weight", "work_dir")
# What the detector removes from a loss's config before building it.
_OF_LOSSES = re.compile(r"model\.distill\.\w+\.share")


class KeepingDictAction(DictAction):
    """mmengine's ``key=value`` options, without losing spaces in values.

    A Python literal is read as that literal; any other value is parsed as in mmengine (``a,b`` is a list),
    unless it contains a space: then it is a string.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        try:
            value = ast.literal_eval(val)
        except (ValueError, SyntaxError):
            return val if " " in val.strip() and val[0] not in "([" else DictAction._parse_iterable(val)
        # In mmengine `1,2` is a list; only `(1,2)` is a tuple.
        return list(value) if isinstance(value, tuple) and not val.strip().startswith("(") else value


def resolve_aliases(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace short names by their dotted keys.

    Args:
        cfg: a config; its own keys are not treated as short names.
        options: key → value.
    """
    return {key if key in cfg else ALIASES.get(key, key): value for key, value in options.items()}


def check_overrides(cfg: Config, options: Mapping[str, Any], strict: bool) -> None:
    """Refuse overrides that would silently do something other than intended.

    Args:
        cfg: the config before the overrides.
        options: dotted key → value.
        strict: refuse keys that neither the config nor the class there has, as in a sweep, where a misspelled
            key would search over nothing. mmengine adds such keys.

    Raises:
        UserError: a dict would replace part of the config, or a key is unknown.
    """
    for key, value in options.items():
        found, missing = _follow(cfg, key)
        if isinstance(value, dict) and isinstance(found, Mapping) and not missing and found:
            inner = next(iter(value), "…")
            raise UserError(
                f"This would replace all of {key}.",
                expected=f"dotted keys, like {key}.{inner}=…",
                found=f"{key}={value}",
                remedy="write each inner key with its full dotted key; to replace all of it in a plan or on "
                f"the command line, add {key}._delete_=true",
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
    """The arguments accepted by the class that a part of a config names in ``type``."""
    for registry in REGISTRIES if isinstance(part, Mapping) and "type" in part else ():
        found = class_of(part, registry)
        if found is not None:
            return set(accepted_arguments(found)[0])
    return set()


def _follow(cfg: Any, dotted: str) -> tuple[Any, str]:
    """The deepest part of a config along a key, and the first step that does not exist."""
    for step in dotted.split("."):
        if isinstance(cfg, (list, tuple)) and step.isdigit() and int(step) < len(cfg):
            cfg = cfg[int(step)]
        elif hasattr(cfg, "keys") and step in cfg:
            cfg = cfg[step]
        else:
            return cfg, step
    return cfg, ""
