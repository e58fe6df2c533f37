"""Watch mmdet's own forward and loss from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Observation:
    """What a dense head was given and gave during one loss.

    Attributes:
        feats: the head's input, one entry per call of its forward.
        raw: the head's output, likewise.
        loss_cls_args: positional arguments of each call of its ``loss_cls``;
            ``None`` if they were not asked for.
        towers: by name, for each layer of that tower its outputs in the order of its calls.
    """

    feats: list[Sequence[Tensor]] = field(default_factory=list)
    raw: list[Any] = field(default_factory=list)
    loss_cls_args: list[tuple[Any, ...]] | None = None
    towers: dict[str, list[list[Tensor]]] = field(default_factory=dict)


@contextmanager
def observe(head: nn.Module, *, labels: bool, towers: bool = False) -> Iterator[Observation]:
    """Record one loss of a head by forward hooks, which change nothing.

    Args:
        head: a dense head.
        labels: also record the calls of its classification loss.
        towers: also record the outputs of each layer of its ``cls_convs`` and ``reg_convs``.
    """
    seen = Observation(loss_cls_args=[] if labels else None)

    def on_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.feats.append(args[0])
        seen.raw.append(output)

    def on_loss_cls(_: nn.Module, args: tuple[Any, ...]) -> None:
        assert seen.loss_cls_args is not None
        seen.loss_cls_args.append(args)

    handles = [head.register_forward_hook(on_forward)]
    loss_cls = getattr(head, "loss_cls", None)
    if labels and isinstance(loss_cls, nn.Module):
        handles.append(loss_cls.register_forward_pre_hook(on_loss_cls))
    for name in ("cls_convs", "reg_convs") if towers else ():
        seen.towers[name] = [[] for _ in getattr(head, name, ())]
        for layer, outputs in zip(getattr(head, name, ()), seen.towers[name]):
            handles.append(layer.register_forward_hook(lambda _, __, out, kept=outputs: kept.append(out)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
