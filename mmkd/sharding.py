"""Refuse sharded training; mmkd needs the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mmkd.errors import UserError, type_of
from mmkd.registry import class_of

WHOLE = ("SingleDeviceStrategy", "DDPStrategy")


def check_strategy(cfg: Mapping[str, Any]) -> None:
    """Refuse a config that would shard a distilled model, before anything is built.

    Reads ``strategy`` of a `FlexibleRunner` and ``model_wrapper_cfg`` of a `Runner`. Models without
    ``distill`` are not restricted.

    Raises:
        UserError: the model would be sharded.
    """
    if "distill" not in (cfg.get("model") or {}):
        return
    strategy, wrapper = cfg.get("strategy"), cfg.get("model_wrapper_cfg") or {}
    kind, whole = class_of(strategy, STRATEGIES), tuple(STRATEGIES.get(name) for name in WHOLE)
    if strategy is not None and kind not in whole and not isinstance(kind, whole):
        _refuse(f"strategy={type_of(strategy) if isinstance(strategy, Mapping) else strategy!r}")
    found = class_of(wrapper, MODEL_WRAPPERS)
    if isinstance(found, type) and not issubclass(found, (DistributedDataParallel, DataParallel)):
        _refuse(f"model_wrapper_cfg.type={type_of(wrapper)}")


def unwrapped(model: Any) -> Any:
    """The model without its distributed wrapper.

    Raises:
        UserError: the wrapper shards the model: FSDP, DeepSpeed, ColossalAI.
    """
    if not is_model_wrapper(model):
        return model
    if not isinstance(model, (DistributedDataParallel, DataParallel)) and hasattr(model.module, "distill"):
        _refuse(type(model).__name__)
    return model.module


def check_whole(model: nn.Module) -> None:
    """Refuse a sharded model.

    Raises:
        UserError: its parameters are FSDP's, distributed tensors, or DeepSpeed's ZeRO-3.
    """
    for module in model.modules():
        # FSDP marks modules that it wraps; in its forward pass the parameters are views of others.
        if getattr(module, "_is_fsdp_managed_module", False):
            _refuse("FullyShardedDataParallel")
    for parameter in model.parameters():
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id"):
            _refuse(f"parameters of type {type(parameter).__name__}")


def _refuse(found: str) -> NoReturn:
    raise UserError(
        "Sharded training of a distilled model is not supported.",
        expected="the whole model in each process: mmengine's Runner, or FlexibleRunner with "
        + " or ".join(WHOLE),
        found=found,
        remedy="use DistributedDataParallel (--launcher pytorch); to save memory, set "
        "backbone.with_cp=True, use --amp, or reduce the batch size and set "
        "optim_wrapper.accumulative_counts",
    )
