"""Remove head branches whose outputs no loss reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Skipped(nn.Module):
    """Replaces an unused layer: outputs zero channels."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """B×0×H×W."""
        return x[:, :0]


def skip_unread(
    head: nn.Module, feats: Sequence[Tensor], read: Callable[[Any], Sequence[Tensor]]
) -> list[str]:
    """Replace the layers of a head that do not affect the outputs that are read.

    Autograd shows which layers do, so this works for any head structure. The head is then run again; if the
    outputs that are read are not bit-identical, or the head needs the layers after all, they are restored.

    Args:
        head: a head in eval mode.
        feats: an example input.
        read: maps the head's raw outputs to the tensors that are read.

    Returns:
        The names of the layers left out.
    """
    parameters = dict(head.named_parameters())
    frozen = {name: p.requires_grad for name, p in parameters.items()}
    with torch.enable_grad():
        head.requires_grad_(True)
        wanted = read(head(tuple(feats)))
        if not wanted:  # the head lacks the requested outputs; the loss will report it
            head.requires_grad_(False)
            return []
        total = torch.stack([out.float().sum() for out in wanted]).sum()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, parameter in parameters.items():
        parameter.requires_grad_(frozen[name])
    unread = {name for name, grad in zip(parameters, grads) if grad is None}

    replaced = _replace(head, "", unread)
    if replaced and not _same(head, feats, read, wanted):
        for parent, key, layer in replaced.values():
            parent._modules[key] = layer
        return []
    return list(replaced)


def _replace(parent: nn.Module, path: str, unread: set[str]) -> dict[str, tuple[nn.Module, str, nn.Module]]:
    """Replace the largest unused layers below ``parent`` with `Skipped`."""
    replaced = {}
    for key, layer in list(parent.named_children()):
        name = f"{path}{key}"
        own = [f"{name}.{inner}" for inner, _ in layer.named_parameters()]
        if own and unread.issuperset(own) and not isinstance(layer, (nn.ModuleList, nn.ModuleDict)):
            replaced[name] = (parent, key, layer)
            parent._modules[key] = Skipped()
        elif own:
            replaced.update(_replace(layer, f"{name}.", unread))
    return replaced


@torch.no_grad()
def _same(
    head: nn.Module,
    feats: Sequence[Tensor],
    read: Callable[[Any], Sequence[Tensor]],
    wanted: Sequence[Tensor],
) -> bool:
    try:
        found = read(head(tuple(feats)))
    except Exception:  # any error here means that the head needs the channels
        return False
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
