"""Watch mmdet's own forward and loss from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.heads.calls import Calls


class Observation:
    """Inputs and outputs of a dense head during one loss computation.

    Args:
        labels: whether to record the calls of its ``loss_cls``.
        quality: whether to record the calls of its ``loss_centerness``.
    """

    def __init__(self, labels: bool, quality: bool = False) -> None:
        self.judgings: Calls[tuple[Any, ...]] | None = Calls() if quality else None
        self.forwards: Calls[tuple[Sequence[Tensor], Any]] = Calls()
        self.scorings: Calls[tuple[Any, ...]] | None = Calls() if labels else None

    @property
    def feats(self) -> list[Sequence[Tensor]]:
        """The head's input, one entry per call of its forward."""
        return [feats for feats, _ in self.forwards]

    @property
    def raw(self) -> list[Any]:
        """The head's output, one entry per call of its forward."""
        return [raw for _, raw in self.forwards]

    @property
    def loss_cls_args(self) -> list[tuple[Any, ...]] | None:
        """Scores, targets and weights of each call of its ``loss_cls``; ``None`` if not recorded."""
        return None if self.scorings is None else list(self.scorings)

    def quality_sum(self, like: Tensor) -> Tensor:
        """The sum of the targets of its ``loss_centerness``, a scalar."""
        assert self.judgings is not None
        targets = [args[1].detach().float().sum() for args in self.judgings]
        return torch.stack(targets).sum() if targets else like.new_zeros((), dtype=torch.float32)


@contextmanager
def observe(
    head: nn.Module, *, labels: Sequence[str] = (), quality: str | None = None
) -> Iterator[Observation]:
    """Record one loss of a head with forward hooks, which change nothing.

    `torch.compile` traces them with the head: they cause no graph break and no recompilation.

    Args:
        head: a dense head.
        labels: the names of the loss modules whose calls to record too, `DenseHeadAdapter.label_losses`.
        quality: the name of the loss module that receives centerness targets.
    """
    seen = Observation(bool(labels), quality is not None)

    def on_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.forwards.add((args[0], output))

    def on_loss_cls(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert seen.scorings is not None
        weight = kwargs.get("weight")
        seen.scorings.add((*args, weight) if len(args) == 2 and weight is not None else args)

    def on_loss_quality(_: nn.Module, args: tuple[Any, ...]) -> None:
        assert seen.judgings is not None
        seen.judgings.add(args)

    handles = [head.register_forward_hook(on_forward)]
    losses = [getattr(head, name, None) for name in labels]
    for loss in losses:
        if isinstance(loss, nn.Module):
            handles.append(loss.register_forward_pre_hook(on_loss_cls, with_kwargs=True))
    if quality is not None:
        handles.append(getattr(head, quality).register_forward_pre_hook(on_loss_quality))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
