"""Where on a feature map to distil: random masks, boxes, attention, the teacher's own predictions.

Torch is all that these need. Shape suffixes: B images, C channels, H and W map size, G boxes of one image,
P positions of one image (or its priors), K classes, M candidates per box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

ChannelAttention = Literal["image", "position"]

# The variance in px² of the noise, uniform in ±0.05, that PGD's reference implementation adds to positions.
_POSITION_VARIANCE = 0.1**2 / 12


def random_keep_mask(like_BCHW: Tensor, ratio: float) -> Tensor:
    """Zeros at random positions of a map, ones elsewhere, B×1×H×W.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022 (https://arxiv.org/abs/2205.01529):
    one mask for all channels.

    Args:
        like_BCHW: gives size, device and dtype.
        ratio: λ in [0, 1), the probability of a zero.

    Raises:
        ValueError: the ratio is out of its range.
    """
    check_mask_ratio(ratio)
    B, _, H, W = like_BCHW.shape
    return (torch.rand(B, 1, H, W, device=like_BCHW.device) >= ratio).to(like_BCHW.dtype)


def check_mask_ratio(ratio: float) -> None:
    """Raise ValueError unless the ratio is in [0, 1)."""
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(f"mask_ratio must be a number in [0, 1), found {ratio!r}")


def squared_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The sum of squared differences of an image, mean over images. Half precision is summed in float32.

    Raises:
        ValueError: the shapes differ or are not B×C×H×W.
    """
    student_BCHW, teacher_BCHW = _checked_pair(student_BCHW, teacher_BCHW)
    return (student_BCHW - teacher_BCHW).square().sum() / max(1, len(student_BCHW))


def box_masks(
    boxes: Sequence[Tensor], input_sizes: Sequence[tuple[int, int]], map_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """FGD's masks of foreground and background, each divided by its area.

    A box covers the positions from ⌊x1·W/w⌋ to ⌈x2·W/w⌉ inclusive, rows alike, in an input of size (h, w). Of
    n positions, those outside the map counted as well, each gets 1/n; where boxes overlap, the smallest's.
    Positions under no box share a weight of 1.

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022
    (https://arxiv.org/abs/2111.11837), section on focal distillation. Rounding is that of the reference
    implementation (https://github.com/yzd-v/FGD, ``fgd.py``). That divides by the image's size before
    padding, which shifts boxes on padded images; give the padded size, which the map stands for.

    Args:
        boxes: per image (G, 4): x1, y1, x2, y2 in pixels. Any may lie outside or be empty.
        input_sizes: per image (height, width) of what the map covers.
        map_size: (H, W).

    Returns:
        Foreground and background, B×H×W each, in the boxes' dtype or float32 if that is half; ≥ 0.

    Raises:
        ValueError: boxes are not (G, 4), or the numbers of images differ.
    """
    if len(boxes) != len(input_sizes):
        raise ValueError(f"expected one input size per image, found {len(input_sizes)} for {len(boxes)}")
    foreground = []
    for boxes_G4, (height, width) in zip(boxes, input_sizes):
        _check_boxes(boxes_G4)
        H, W = map_size
        boxes_G4 = boxes_G4.to(torch.promote_types(boxes_G4.dtype, torch.float32))
        scaled_G4 = boxes_G4 * boxes_G4.new_tensor([W / width, H / height, W / width, H / height])
        first_G2, last_G2 = scaled_G4[:, :2].floor(), scaled_G4[:, 2:].ceil()
        area_G = (last_G2 - first_G2 + 1).clamp(min=1).prod(dim=1)
        columns_GW, rows_GH = (
            _between(torch.arange(count).to(area_G), first_G2[:, axis], last_G2[:, axis])
            for axis, count in enumerate((W, H))
        )
        weight_GHW = (rows_GH[:, :, None] & columns_GW[:, None, :]) / area_G[:, None, None]
        foreground.append(torch.cat([area_G.new_zeros(1, H, W), weight_GHW]).amax(dim=0))
    foreground_BHW = torch.stack(foreground)
    background_BHW = (foreground_BHW == 0).to(foreground_BHW.dtype)
    return foreground_BHW, background_BHW / background_BHW.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def attention(
    feat_BCHW: Tensor, temperature: float, channels: ChannelAttention = "image"
) -> tuple[Tensor, Tensor]:
    r"""Where, and in which channels, a map is large.

    .. math:: S = HW \, \mathrm{softmax}_{hw}\Big(\frac{1}{C}\sum_c |F_c| / T\Big), \quad
        A = C \, \mathrm{softmax}_c\Big(\frac{1}{HW}\sum_{hw} |F| / T\Big)

    and with ``channels='position'`` :math:`A = C \, \mathrm{softmax}_c(|F| / T)` at each position.

    Source: FGD (https://arxiv.org/abs/2111.11837); the form by position: PGD
    (https://arxiv.org/abs/2203.05469).

    Returns:
        S as B×1×H×W and A as B×C×1×1, or B×C×H×W by position; their means over HW and C are 1.
    """
    B, C, H, W = feat_BCHW.shape
    size_BCHW = feat_BCHW.abs()
    spatial_BP = (size_BCHW.mean(dim=1).flatten(1) / temperature).softmax(dim=1) * (H * W)
    if channels == "image":
        size_BCHW = size_BCHW.mean(dim=(2, 3), keepdim=True)
    return spatial_BP.reshape(B, 1, H, W), (size_BCHW / temperature).softmax(dim=1) * C


def focal_terms(
    student_BCHW: Tensor,
    teacher_BCHW: Tensor,
    foreground_BHW: Tensor,
    background_BHW: Tensor,
    *,
    temperature: float = 0.5,
    channels: ChannelAttention = "image",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The three focal terms of FGD (and, with ``channels='position'``, of PGD).

    With the `attention` S, A of each map, and m the weight of foreground or background, per image

    .. math:: \sum_{chw} m_{hw} S^t_{hw} A^t_c (F^t - F^s)^2, \quad
        \sum_{hw} |S^t - S^s| + \sum_c |A^t - A^s|

    mean over images; the last sum is a mean over positions too if A is by position. Half precision is
    computed in float32, also under autocast. The teacher gets no gradient.

    Source: FGD, Yang et al., CVPR 2022 (https://arxiv.org/abs/2111.11837), as summed in
    https://github.com/yzd-v/FGD; PGD, Yang et al., ECCV 2022 (https://arxiv.org/abs/2203.05469), as in
    ``pgd_cls.py`` of https://github.com/ChenhongyiYang/PGD.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same shape.
        foreground_BHW: m ≥ 0 of the foreground.
        background_BHW: m ≥ 0 of the background.
        temperature: T > 0.
        channels: ``'image'``: one channel attention for an image; ``'position'``: one for each position.

    Returns:
        Foreground, background and attention term, scalars ≥ 0.

    Raises:
        ValueError: the shapes do not fit, or an option is out of its range.
    """
    check_attention_options(temperature, channels)
    student_BCHW, teacher_BCHW = _checked_pair(student_BCHW, teacher_BCHW)
    B, _, H, W = student_BCHW.shape
    for mask_BHW in (foreground_BHW, background_BHW):
        if mask_BHW.shape != (B, H, W):
            raise ValueError(f"expected masks {(B, H, W)}, found {tuple(mask_BHW.shape)}")
    with torch.autocast(student_BCHW.device.type, enabled=False):
        spatial_s, channel_s = attention(student_BCHW, temperature, channels)
        spatial_t, channel_t = attention(teacher_BCHW, temperature, channels)
        error_BHW = ((student_BCHW - teacher_BCHW).square() * channel_t).sum(dim=1) * spatial_t.squeeze(1)
        foreground, background = (
            (error_BHW * mask_BHW).sum() / B for mask_BHW in (foreground_BHW, background_BHW)
        )
        difference = (spatial_s - spatial_t).abs().sum() / B + (channel_s - channel_t).abs().sum(1).mean()
    return foreground, background, difference


def check_attention_options(temperature: float, channels: str = "image") -> None:
    """Raise ValueError if an option of `focal_terms` is out of its range."""
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, found {temperature!r}")
    if channels not in get_args(ChannelAttention):
        raise ValueError(
            f"channels must be one of {', '.join(get_args(ChannelAttention))}, found {channels!r}"
        )


@torch.no_grad()
def prediction_quality(
    scores_PK: Tensor, boxes_P4: Tensor, gt_boxes_G4: Tensor, gt_labels_G: Tensor, xi: float
) -> Tensor:
    r"""How well each prediction finds each object: :math:`q = p^{1-\xi} \, \mathrm{IoU}^{\xi}`, (P, G).

    Source: PGD (https://arxiv.org/abs/2203.05469), without its factor of 0 for positions outside the box: the
    reference implementation applies that after the choice, as `gaussian_weights` does.

    Args:
        scores_PK: class scores p in [0, 1].
        boxes_P4: the predicted boxes, x1, y1, x2, y2.
        gt_boxes_G4: the objects' boxes, in the same units.
        gt_labels_G: their classes, < K.
        xi: ξ in [0, 1].

    Raises:
        ValueError: the shapes do not fit, or ξ is out of its range.
    """
    check_xi(xi)
    _check_boxes(boxes_P4)
    _check_boxes(gt_boxes_G4)
    if scores_PK.dim() != 2 or len(scores_PK) != len(boxes_P4) or gt_labels_G.shape != gt_boxes_G4.shape[:1]:
        raise ValueError(
            f"expected scores ({len(boxes_P4)}, K) and labels ({len(gt_boxes_G4)},), "
            f"found {tuple(scores_PK.shape)} and {tuple(gt_labels_G.shape)}"
        )
    overlap_PG = _pairwise_iou(boxes_P4, gt_boxes_G4)
    return scores_PK[:, gt_labels_G] ** (1 - xi) * overlap_PG**xi


def check_xi(xi: float) -> None:
    """Raise ValueError unless ξ is in [0, 1]."""
    if not isinstance(xi, (int, float)) or not 0 <= xi <= 1:
        raise ValueError(f"xi must be a number in [0, 1], found {xi!r}")


@torch.no_grad()
def gaussian_weights(
    quality_PG: Tensor, centers_P2: Tensor, gt_boxes_G4: Tensor, valid_P: Tensor, topk: int
) -> Tensor:
    r"""PGD's weight of each position, (P,), in [0, 1].

    For each object the ``topk`` valid positions of highest quality are taken, a Gaussian is fitted to them
    (maximum likelihood), and each of them gets

    .. math:: \exp\big(-\tfrac12 (x - \mu)^\top \Sigma^{-1} (x - \mu)\big)

    or 0 if it is outside the object's box; all other positions 0. A position of several objects has its
    largest weight.

    Source: PGD (https://arxiv.org/abs/2203.05469). The reference implementation
    (``pgw_anchor_based.py``) moves positions by noise so that Σ has an inverse; here its variance is added
    to Σ, which needs no random numbers.

    Args:
        quality_PG: of `prediction_quality`.
        centers_P2: x, y in pixels.
        gt_boxes_G4: x1, y1, x2, y2 in pixels.
        valid_P: bool; others are never chosen.
        topk: ≥ 1, positions per object; fewer if there are fewer.

    Raises:
        ValueError: the shapes do not fit.
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


def inside_boxes(centers_P2: Tensor, boxes_G4: Tensor) -> Tensor:
    """Whether each point is strictly inside each box, (P, G) bool."""
    after = centers_P2[:, None] > boxes_G4[None, :, :2]
    before = centers_P2[:, None] < boxes_G4[None, :, 2:]
    return (after & before).all(dim=2)


def _pairwise_iou(a_P4: Tensor, b_G4: Tensor) -> Tensor:
    low, high = (
        fn(a_P4[:, None, part], b_G4[None, :, part])
        for fn, part in ((torch.maximum, slice(0, 2)), (torch.minimum, slice(2, 4)))
    )
    shared_PG = (high - low).clamp(min=0).prod(dim=2)
    area_P, area_G = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (a_P4, b_G4))
    return shared_PG / (area_P[:, None] + area_G[None] - shared_PG).clamp(min=1e-6)


def _between(index_W: Tensor, first_G: Tensor, last_G: Tensor) -> Tensor:
    return (index_W[None] >= first_G[:, None]) & (index_W[None] <= last_G[:, None])


def _check_boxes(boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes (G, 4), found {tuple(boxes.shape)}")


def _checked_pair(student_BCHW: Tensor, teacher_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    if student_BCHW.dim() != 4 or student_BCHW.shape != teacher_BCHW.shape:
        raise ValueError(
            f"expected maps of one shape B×C×H×W, found student {tuple(student_BCHW.shape)} "
            f"and teacher {tuple(teacher_BCHW.shape)}"
        )
    student_BCHW = student_BCHW.to(torch.promote_types(student_BCHW.dtype, torch.float32))
    return student_BCHW, teacher_BCHW.detach().to(student_BCHW.dtype)
