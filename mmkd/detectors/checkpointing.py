"""Detect layers that get no gradient because of activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import UserError


@contextmanager
def watch_checkpointed(model: nn.Module) -> Iterator[None]:
    """Refuse layers whose checkpointed forward gives their weights no gradient.

    mmengine's ``activation_checkpointing=[…]`` uses torch's reentrant form: a layer only learns if one of its
    arguments is a tensor with a gradient. Images, the output of frozen stages and tuples of feature maps are
    not, and torch only warns. Watches one pass with forward hooks, which change nothing.

    Raises:
        UserError: at the end, if there is such a layer; names it.
    """
    handles = []
    if model.training and torch.is_grad_enabled():
        for name, module in model.named_modules():
            if "forward" in vars(module) and any(p.requires_grad for p in module.parameters()):
                handles.append(module.register_forward_hook(partial(_check, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(name: str, _: nn.Module, __: Any, output: Any) -> None:
    if any(tensor.requires_grad for tensor in _tensors(output)):
        return
    raise UserError(
        f"{name} would not be trained: with activation checkpointing, its weights get no gradient.",
        expected="activation checkpointing of layers whose input is a tensor that requires a gradient",
        found=f"{name}, whose input is images, a list of feature maps, or the output of frozen layers",
        remedy="set backbone.with_cp=True instead, or list layers inside it "
        "(activation_checkpointing=['backbone.layer3', 'backbone.layer4'])",
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
