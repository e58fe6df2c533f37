"""The towers of a head, ``cls_convs`` and ``reg_convs``: what they give, and going on with something else.

A layer of a tower is called once for each level, in the order of the levels.
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
        layer: how many layers are passed.
        whose: ``student`` or ``teacher``, for the message.
    """
    for name in TOWERS:
        tower = getattr(head, name, None)
        plain = isinstance(tower, nn.ModuleList) and not any(isinstance(t, nn.ModuleList) for t in tower)
        depth = len(tower) if isinstance(tower, nn.ModuleList) and plain else 0
        # SSD has one layer per level there, and says that it stacks none.
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
    """Record by forward hooks what each layer of each tower gives, level by level."""
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
    """The outputs of a head with what `record_towers` has seen."""
    return replace(
        outputs, towers={name: [tuple(levels) for levels in layers] for name, layers in seen.items()}
    )


class _Give(nn.Module):
    """In place of a layer: the next of what was given."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        super().__init__()
        self.levels = iter(levels)

    def forward(self, _: Tensor) -> Tensor:
        return next(self.levels)


@contextmanager
def substituted(head: nn.Module, layer: int, towers: Mapping[str, Levels]) -> Iterator[None]:
    """Let a head go on from the ``layer``-th layer of its towers with other features.

    Args:
        head: a head that `check_towers` accepts.
        layer: how many layers of each tower are left out; ≥ 1.
        towers: what the last of them is taken to give, per level.
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
