"""Watch mmdet's own forward and loss from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmkd.heads.calls import Calls


class Observation:
    """What a dense head was given and gave during one loss.

    Args:
        labels: whether the calls of its ``loss_cls`` are recorded as well.
    """

    def __init__(self, labels: bool) -> None:
        self.forwards: Calls[tuple[Sequence[Tensor], Any]] = Calls()
        self.scorings: Calls[tuple[Any, ...]] | None = Calls() if labels else None

    @property
    def feats(self) -> list[Sequence[Tensor]]:
        """The head's input, one entry per call of its forward."""
        return [feats for feats, _ in self.forwards]

    @property
    def raw(self) -> list[Any]:
        """The head's output, likewise."""
        return [raw for _, raw in self.forwards]

    @property
    def loss_cls_args(self) -> list[tuple[Any, ...]] | None:
        """Positional arguments of each call of its ``loss_cls``; ``None`` if they were not asked for."""
        return None if self.scorings is None else list(self.scorings)


@contextmanager
def observe(head: nn.Module, *, labels: Sequence[str] = ()) -> Iterator[Observation]:
    """Record one loss of a head by forward hooks, which change nothing.

    `torch.compile` traces them with the head: they break no graph and make it compile nothing anew.

    Args:
        head: a dense head.
        labels: the names of the loss modules whose calls to record as well, `DenseHeadAdapter.label_losses`.
    """
    seen = Observation(bool(labels))

    def on_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.forwards.add((args[0], output))

    def on_loss_cls(_: nn.Module, args: tuple[Any, ...]) -> None:
        assert seen.scorings is not None
        seen.scorings.add(args)

    handles = [head.register_forward_hook(on_forward)]
    losses = [getattr(head, name, None) for name in labels]
    handles += [x.register_forward_pre_hook(on_loss_cls) for x in losses if isinstance(x, nn.Module)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
