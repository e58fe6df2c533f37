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
    """

    feats: list[Sequence[Tensor]] = field(default_factory=list)
    raw: list[Any] = field(default_factory=list)
    loss_cls_args: list[tuple[Any, ...]] | None = None


@contextmanager
def observe(head: nn.Module, *, labels: Sequence[str] = ()) -> Iterator[Observation]:
    """Record one loss of a head by forward hooks, which change nothing.

    Args:
        head: a dense head.
        labels: the names of the loss modules whose calls to record as well, `DenseHeadAdapter.label_losses`.
    """
    seen = Observation(loss_cls_args=[] if labels else None)

    def on_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.feats.append(args[0])
        seen.raw.append(output)

    def on_loss_cls(_: nn.Module, args: tuple[Any, ...]) -> None:
        assert seen.loss_cls_args is not None
        seen.loss_cls_args.append(args)

    handles = [head.register_forward_hook(on_forward)]
    losses = [getattr(head, name, None) for name in labels]
    handles += [x.register_forward_pre_hook(on_loss_cls) for x in losses if isinstance(x, nn.Module)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
