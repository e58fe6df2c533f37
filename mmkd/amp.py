"""Mixed precision on CPUs, which mmengine's `AmpOptimWrapper` does not support."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast

from mmkd.errors import UserError
from mmkd.registry import OPTIM_WRAPPERS, name_in


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """An optimizer whose forward passes run in bfloat16 where autocast allows it.

    Works on any device. bfloat16 has the range of float32, so losses are not scaled; the weights, their
    gradients and the optimizer stay in float32. Useful on CPUs with AMX or AVX512-BF16. Takes the arguments
    of mmengine's `OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Run forward passes inside under autocast.

        Raises:
            UserError: a layer or loss of the model does not compute in bfloat16 on this device.
        """
        try:
            with super().optim_context(model), autocast(dtype=torch.bfloat16):
                yield
        except RuntimeError as error:
            if "BFloat16" not in str(error):
                raise
            student = model.module if is_model_wrapper(model) else model
            raise UserError(
                f"Cannot train {type(student).__name__} in bfloat16.",
                expected="layers and losses that compute in bfloat16; on CPUs RoIAlign and deformable "
                "convolutions do not",
                found=f"{type(error).__name__}: {error}",
                remedy="train without --amp, or with optim_wrapper.type='OptimWrapper'",
            ) from error


def use_amp(cfg: Any, device: str) -> None:
    """Switch a config's ``optim_wrapper`` to mixed precision, in place.

    bfloat16 on CPUs, otherwise mmengine's float16 with a dynamic loss scale.
    """
    optim_wrapper = cfg.optim_wrapper
    if device == "cpu":
        optim_wrapper.type = name_in(cfg, "BFloat16OptimWrapper")
    else:
        optim_wrapper.type = "AmpOptimWrapper"
        optim_wrapper.setdefault("loss_scale", "dynamic")
