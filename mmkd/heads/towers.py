"""A head's towers, ``cls_convs`` and ``reg_convs``: record their outputs, or replace them.

A tower's layer is called once per level, in the order of the levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.heads.calls import Calls
from mmkd.structures import DenseOutputs, Levels

TOWERS = ("cls_convs", "reg_convs")
Towers = dict[str, list[Calls[Tensor]]]


def check_towers(head: nn.Module, layer: int, whose: str) -> None:
    """Raise `UserError` unless a head has two towers with more layers than ``layer``.

    Args:
        head: a dense head.
        layer: the number of layers to pass.
        whose: ``student`` or ``teacher``, for the message.
    """
    for name in TOWERS:
        tower = getattr(head, name, None)
        plain = isinstance(tower, nn.ModuleList) and not any(isinstance(t, nn.ModuleList) for t in tower)
        depth = len(tower) if isinstance(tower, nn.ModuleList) and plain else 0
        # SSD has one layer per level there, and reports no stacked layers.
        depth = min(depth, getattr(head, "stacked_convs", depth))
        if depth < layer:
            raise UserError(
                f"CrossKD cannot split the {whose}'s head after layer {layer}.",
                expected=f"cls_convs and reg_convs with at least {layer} layers, shared by all levels",
                found=f"{type(head).__name__} with {name} of {depth}" if depth else f"{type(head).__name__}",
                remedy=f"choose a layer up to {depth}" if depth else "choose a loss on the head's outputs",
            )


@contextmanager
def record_towers(head: nn.Module) -> Iterator[Towers]:
    """Record each tower layer's output by forward hooks, level by level."""
    seen: Towers = {}
    handles = []

    def keep(outputs: Calls[Tensor], _: nn.Module, __: Any, output: Tensor) -> None:
        outputs.add(output)

    for name in TOWERS:
        layers = list(getattr(head, name, ()))
        seen[name] = [Calls() for _ in layers]
        for layer, outputs in zip(layers, seen[name]):
            handles.append(layer.register_forward_hook(partial(keep, outputs)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def with_towers(outputs: DenseOutputs, seen: Towers) -> DenseOutputs:
    """A head's outputs with the towers that `record_towers` recorded."""
    return replace(
        outputs, towers={name: [tuple(levels) for levels in layers] for name, layers in seen.items()}
    )


class _Give(nn.Module):
    """Replaces a layer and returns the next of the given features."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        super().__init__()
        self.levels = iter(levels)

    def forward(self, _: Tensor) -> Tensor:
        return next(self.levels)


@contextmanager
def substituted(head: nn.Module, layer: int, towers: Mapping[str, Levels]) -> Iterator[None]:
    """Let a head continue after the ``layer``-th layer of its towers with other features.

    Args:
        head: a head that `check_towers` accepts.
        layer: the number of layers to skip in each tower; ≥ 1.
        towers: the features to use as the output of the last skipped layer, per level.
    """
    kept = {name: list(getattr(head, name)[:layer]) for name in TOWERS}
    for name in TOWERS:
        tower = getattr(head, name)
        for index in range(layer - 1):
            tower[index] = nn.Identity()
        tower[layer - 1] = _Give(towers[name])
    try:
        yield
    finally:
        for name, layers in kept.items():
            for index, module in enumerate(layers):
                getattr(head, name)[index] = module
