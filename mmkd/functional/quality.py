"""Where on a feature map the teacher's own predictions find an object; needs only torch.

Shape suffixes: G boxes of one image, P positions of one image (or its priors), K classes, M candidates per
box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.functional.boxes import inside_boxes, pairwise_iou
from mmkd.functional.checks import check_number

# The variance in px² of the uniform noise in ±0.05 that PGD's reference implementation adds to positions.
_POSITION_VARIANCE = 0.1**2 / 12


@torch.no_grad()
def prediction_quality(
    scores_PK: Tensor, boxes_P4: Tensor, gt_boxes_G4: Tensor, gt_labels_G: Tensor, xi: float
) -> Tensor:
    r"""How well each prediction matches each object: :math:`q = p^{1-\xi} \, \mathrm{IoU}^{\xi}`, (P, G).

    Source: PGD (https://arxiv.org/abs/2203.05469), without its factor of 0 for positions outside the box: the
    reference implementation applies it after choosing positions, as `gaussian_weights` does.

    Args:
        scores_PK: class scores p in [0, 1].
        boxes_P4: the predicted boxes, x1, y1, x2, y2.
        gt_boxes_G4: the objects' boxes, in the same units.
        gt_labels_G: their classes, < K.
        xi: ξ in [0, 1].

    Raises:
        ValueError: the shapes do not match, or ξ is out of its range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4]])
        >>> scores, labels = torch.tensor([[0.5], [0.9]]), torch.tensor([0])
        >>> prediction_quality(scores, boxes, boxes[:1], labels, xi=0.0).squeeze(1)
        tensor([0.5000, 0.9000])
        >>> prediction_quality(scores, boxes, boxes[:1], labels, xi=1.0).squeeze(1)
        tensor([1.0000, 0.3333])
    """
    check_number("[0, 1]", xi=xi)
    overlap_PG = pairwise_iou(boxes_P4, gt_boxes_G4)
    if scores_PK.dim() != 2 or len(scores_PK) != len(boxes_P4) or gt_labels_G.shape != gt_boxes_G4.shape[:1]:
        raise ValueError(
            f"expected scores ({len(boxes_P4)}, K) and labels ({len(gt_boxes_G4)},), "
            f"found {tuple(scores_PK.shape)} and {tuple(gt_labels_G.shape)}"
        )
    return scores_PK[:, gt_labels_G] ** (1 - xi) * overlap_PG**xi


@torch.no_grad()
def gaussian_weights(
    quality_PG: Tensor, centers_P2: Tensor, gt_boxes_G4: Tensor, valid_P: Tensor, topk: int
) -> Tensor:
    r"""PGD's weight of each position, (P,), in [0, 1].

    For each object, a Gaussian is fitted (maximum likelihood) to the ``topk`` valid positions of highest
    quality, and each of them gets

    .. math:: \exp\big(-\tfrac12 (x - \mu)^\top \Sigma^{-1} (x - \mu)\big)

    or 0 if it is outside the object's box; all other positions get 0. A position chosen for several objects
    gets its largest weight.

    Source: PGD (https://arxiv.org/abs/2203.05469). The reference implementation (``pgw_anchor_based.py``)
    adds noise to positions so that Σ has an inverse; here the noise's variance is added to Σ, which needs no
    random numbers.

    Args:
        quality_PG: the result of `prediction_quality`.
        centers_P2: x, y in pixels.
        gt_boxes_G4: x1, y1, x2, y2 in pixels.
        valid_P: bool; only True positions may be chosen.
        topk: ≥ 1, positions per object, or all if there are fewer.

    Raises:
        ValueError: the shapes do not match.

    Example:
        >>> centers = torch.tensor([[1.0, 1], [2.0, 1], [3.0, 1], [9.0, 9]])
        >>> quality, box = torch.tensor([[0.4], [0.9], [0.4], [0.1]]), torch.tensor([[0.0, 0, 4, 4]])
        >>> weights = gaussian_weights(quality, centers, box, torch.ones(4, dtype=torch.bool), topk=3)
        >>> bool(weights[1] > weights[0] > 0), float(weights[3])
        (True, 0.0)
    """
    P, G = quality_PG.shape
    shapes = [tuple(tensor.shape) for tensor in (centers_P2, gt_boxes_G4, valid_P)]
    if shapes != [(P, 2), (G, 4), (P,)]:
        raise ValueError(f"expected centers, boxes, valid {[(P, 2), (G, 4), (P,)]}, found {shapes}")
    count = min(topk, int(valid_P.sum()))
    if G == 0 or count == 0:
        return centers_P2.new_zeros(P)
    best_MG = quality_PG.masked_fill(~valid_P[:, None], -1).topk(count, dim=0).indices
    points_GM2 = centers_P2[best_MG.T]
    offset_GM2 = points_GM2 - points_GM2.mean(dim=1, keepdim=True)
    covariance_G22 = offset_GM2.transpose(1, 2) @ offset_GM2 / count
    covariance_G22 = covariance_G22 + _POSITION_VARIANCE * torch.eye(2).to(covariance_G22)
    scaled_GM2 = torch.linalg.solve(covariance_G22, offset_GM2.transpose(1, 2)).transpose(1, 2)
    weight_GM = torch.exp(-(offset_GM2 * scaled_GM2).sum(dim=2) / 2)
    weight_PG = torch.zeros_like(quality_PG, dtype=weight_GM.dtype).scatter_(0, best_MG, weight_GM.T)
    return (weight_PG * inside_boxes(centers_P2, gt_boxes_G4)).amax(dim=1)
