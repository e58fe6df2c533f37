"""Make a frozen detector cheaper without changing its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import Tensor, nn

from mmkd.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Folding reorders float32 sums; a wrong fold changes far more.
_TOLERANCE = 1e-3


def choose_dtype(
    precision: Precision, device: torch.device, *, deformable: bool = False, windows: bool = False
) -> tuple[torch.dtype, str]:
    """Choose a teacher's dtype on a device, and give the reason.

    ``'auto'`` uses bfloat16 where the hardware supports it: CPUs with AMX or AVX512-BF16, CUDA from compute
    capability 8.0; float16 on older CUDA devices; float32 elsewhere.

    Args:
        precision: the configured precision.
        device: the teacher's device.
        deformable: whether it has deformable convolutions, which mmcv does not support in bfloat16 on CPUs.
        windows: whether it has shifted windows, which mmdet always masks in float32.

    Returns:
        The dtype and the reason.

    Raises:
        UserError: float16 is requested on a CPU, bfloat16 on a CPU for deformable convolutions, or either for
            shifted windows.
    """
    if windows and precision != "fp32":
        if precision != "auto":
            raise UserError(
                "The teacher does not support half precision: it uses shifted windows.",
                expected="teacher.precision='auto' or 'fp32'",
                found=repr(precision),
                remedy="choose another",
            )
        return torch.float32, "mmdet masks shifted windows in float32"
    if deformable and device.type == "cpu" and precision in ("auto", "bf16"):
        if precision == "bf16":
            raise UserError(
                "The teacher does not support bfloat16 on CPU: it uses deformable convolutions.",
                expected="teacher.precision='auto' or 'fp32' on CPU",
                found="'bf16'",
                remedy="choose another, or train on a GPU",
            )
        return torch.float32, "mmcv's deformable convolutions do not support bfloat16 on CPU"
    if precision != "auto":
        if precision == "fp16" and device.type == "cpu":
            raise UserError(
                "The teacher does not support float16 on CPU.",
                expected="teacher.precision='auto', 'fp32' or 'bf16' on CPU",
                found="'fp16'",
                remedy="choose another, or train on a GPU",
            )
        return _DTYPES[precision], "set in the config"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"CUDA capability {major}.{minor}"
        return torch.float16, f"CUDA capability {major}.{minor} does not support bfloat16"
    if device.type == "cpu":
        for feature, name in (
            ("_is_amx_tile_supported", "AMX"),
            ("_is_avx512_bf16_supported", "AVX512-BF16"),
        ):
            if getattr(torch.cpu, feature, lambda: False)():  # torch below 2.4 cannot tell
                return torch.bfloat16, f"a CPU with {name}"
        return torch.float32, "a CPU without AMX and AVX512-BF16"
    return torch.float32, f"unknown device {device.type}"


def has_shifted_windows(model: nn.Module) -> bool:
    """Whether it contains a layer of mmdet's Swin transformer that shifts its windows (every second one)."""
    return any(isinstance(module, ShiftWindowMSA) and module.shift_size > 0 for module in model.modules())


_Result = TypeVar("_Result")


def compiled(forward: Callable[..., _Result]) -> Callable[..., _Result]:
    """A forward compiled by `torch.compile`, for images of any size and number.

    Raises:
        UserError: when called, if compilation fails here but the plain forward works.
    """
    fast = torch.compile(forward, dynamic=True)

    def run(*args: Any) -> _Result:
        try:
            return fast(*args)
        except Exception as error:
            forward(*args)  # errors unrelated to compilation come first
            raise UserError(
                "Cannot compile the teacher.",
                expected="torch.compile to support this model on this machine",
                found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
                remedy="install what it needs (on CPU, a C++ compiler), or remove teacher.compile",
            ) from error

    return run


@torch.no_grad()
def fold_batch_norm(model: nn.Module, run: Callable[[], Sequence[Tensor]]) -> bool:
    """Fold each BatchNorm into the convolution before it, using mmcv.

    mmcv relies on the order in which layers are declared. The outputs are compared before and after; if they
    differ by more than rounding, all layers are restored. Parts of the model that the example does not run
    stay unchanged.

    Args:
        model: in eval mode, float32; changed in place.
        run: returns the model's outputs for an example.

    Returns:
        Whether anything was folded.
    """
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        return False
    ran: dict[str, nn.Module] = {}
    handles = [
        child.register_forward_hook(lambda layer, *_, name=name: ran.update({name: layer}))
        for name, child in model.named_children()
    ]
    before = run()
    for handle in handles:
        handle.remove()
    # The other layers are set aside, not copied: DDQ's share cached state with the detector.
    idle = {name: child for name, child in model.named_children() if name not in ran}
    children = {name: copy.deepcopy(child) for name, child in ran.items()}
    for name in idle:
        setattr(model, name, nn.Identity())
    try:
        fuse_conv_bn(model)
        folded = alike(run(), before, _TOLERANCE)
    except RuntimeError:  # layers that do not match, as in NAS-FCOS's neck
        folded = False
    for name, child in {**idle, **({} if folded else children)}.items():
        setattr(model, name, child)
    return folded


def alike(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> bool:
    """Whether each pair of tensors differs at most by this fraction of the largest value, or of 1."""
    pairs = [(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, wanted, strict=True) if b.numel()]
    return all((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1) for a, b in pairs)
