"""Converts a head's classification targets to one class index per prior.

Shape suffixes: B images, N priors of the batch, K class channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.structures import Levels


def classes_of(targets: Tensor, background: int) -> Tensor:
    """Class indices from one-hot or soft targets.

    Args:
        targets: (…, K) ≥ 0, above 0 at the class of a foreground prior. If smoothed targets are above 0 at
            other classes too, the prior's own class is highest. Class indices (N,) are returned unchanged.
        background: the index of priors whose targets are all 0.
    """
    if not targets.is_floating_point() or targets.dim() < 2:
        return targets
    highest_N, labels_N = targets.reshape(-1, targets.shape[-1]).max(dim=1)
    return torch.where(highest_N > 0, labels_N, background)


def image_by_image(levels: Levels, K: int) -> Tensor:
    """For each prior in the order of `DenseOutputs`, its index when images come first, then levels.

    Args:
        levels: class logits, per level B×(A·K)×H×W.
        K: class channels per prior.

    Returns:
        (N,): ``images_first[place_N]`` is in the order of `DenseOutputs`.
    """
    B = levels[0].shape[0]
    counts = [level[0].numel() // K for level in levels]
    images_B1 = torch.arange(B, device=levels[0].device)[:, None] * sum(counts)
    places, start = [], 0
    for count in counts:
        places.append((images_B1 + torch.arange(start, start + count, device=images_B1.device)).flatten())
        start += count
    return torch.cat(places)
