"""Strict loading of a detector's weights, with helpful errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmkd.checkpoints.local import checked
from mmkd.errors import UserError

# Prefixes that DistributedDataParallel and MMRazor add to the model's own keys.
WRAPPER_PREFIXES = ("module.", "architecture.")
SHOWN = 10


def load_strictly(model: nn.Module, filename: str) -> dict[str, Any]:
    """Load a checkpoint into a model; the keys of both must match exactly.

    Args:
        model: the detector.
        filename: path, URL or ``scheme://`` name, as mmengine reads them.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        UserError: the file cannot be read, or keys are missing, unexpected or
            misshapen; lists the first ten of each and a likely cause.
    """
    checkpoint = read_checkpoint(filename)
    load_weights(model, own_keys(checkpoint.get("state_dict", checkpoint), filename), filename)
    meta = checkpoint.get("meta")
    return meta if isinstance(meta, dict) else {}


def load_weights(model: nn.Module, weights: Mapping[str, Any], filename: str) -> None:
    """Load weights into a model; the keys of both must match exactly, as in `load_strictly`.

    Args:
        model: the detector.
        weights: tensors by the model's own keys.
        filename: their source, for the message.
    """
    _check_kinds(model, weights, filename)
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        misshapen: list[str] = []
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        misshapen = [line.removeprefix("size mismatch for ") for line in lines]
        missing = sorted(set(model.state_dict()) - set(weights))
        unexpected = sorted(set(weights) - set(model.state_dict()))
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected or misshapen:
        raise UserError(
            f"The checkpoint {filename} does not fit the model {type(model).__name__}.",
            expected=f"the {len(model.state_dict())} keys of the model",
            found="; ".join(
                _listed(name, keys)
                for name, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
                if keys
            ),
            remedy=_likely_cause(model, weights, missing, unexpected, misshapen),
        )


def read_checkpoint(filename: str) -> dict[str, Any]:
    """Read a checkpoint from any location that mmengine supports, as a dict on the CPU.

    Raises:
        UserError: it cannot be read, is not a dict, or a weight is not a number.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location="cpu", logger=None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"Cannot get {filename}.",
            expected="a path, or a URL that can be reached from here",
            found=f"{type(error).__name__}: {error}",
            remedy="download it by hand and name the file",
        ) from error
    checkpoint = checked(checkpoint, filename)
    weights = checkpoint.get("state_dict", checkpoint)
    broken = [key for key, value in weights.items() if _is_float(value) and value.isnan().any()]
    if broken:
        raise UserError(
            f"The checkpoint {filename} contains NaN weights.",
            expected="numbers",
            found=f"NaN in {_listed('tensors', broken)}",
            remedy="use an earlier checkpoint: the training diverged, or the file is corrupt",
        )
    return checkpoint


def own_keys(weights: Mapping[str, Any], filename: str) -> dict[str, Tensor]:
    """The model's keys without the prefixes added by wrappers.

    ``architecture.`` is MMRazor's prefix for its student; other keys of such a file (its teacher) are left
    out. Logs what it removed.
    """
    for prefix in WRAPPER_PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if inner:
            left_out = len(weights) - len(inner)
            rest = f", ignored {left_out} other keys" if left_out else ""
            print_log(f"{filename}: loaded the keys below '{prefix}'{rest}", logger="current")
            return own_keys(inner, filename)
    return dict(weights)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.element_size() > 1  # no float8


def _check_kinds(model: nn.Module, weights: Mapping[str, Any], filename: str) -> None:
    """Refuse what torch would silently round or drop: integers for floats, and the reverse."""
    own = model.state_dict()
    other = [
        f"{key} ({value.dtype})"
        for key, value in weights.items()
        if isinstance(value, Tensor)
        and key in own
        and (value.is_floating_point(), value.is_complex())
        != (own[key].is_floating_point(), own[key].is_complex())
    ]
    if other:
        raise UserError(
            f"The dtypes in checkpoint {filename} do not match {type(model).__name__}.",
            expected="floating-point and integer tensors as in the model",
            found=_listed("differ", other),
            remedy="convert them, or use the original published file",
        )


def _listed(name: str, keys: list[str]) -> str:
    more = f", … {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {name}: {', '.join(keys[:SHOWN])}{more}"


def _likely_cause(
    model: nn.Module,
    weights: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    if not set(weights) & set(model.state_dict()):
        return (
            "none of its keys match the model: it comes from another code base or is wrapped; "
            "`mmkd-convert` handles those for distillation"
        )
    if misshapen and not missing and not unexpected and all("cls" in key for key in misshapen):
        return "only the classifier differs: set bbox_head.num_classes to the checkpoint's number of classes"
    if any(key.startswith("backbone.") for key in [*missing, *unexpected, *misshapen]):
        return "the backbone differs (depth, width or type): use the config that it was trained with"
    return "config and checkpoint belong to different models: use the config that it was trained with"
