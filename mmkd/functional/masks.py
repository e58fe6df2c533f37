"""Where to distil on a feature map: random masks, boxes and attention.

They need only torch. Shape suffixes: B images, C channels, H and W map size, G boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmkd.functional.boxes import check_boxes
from mmkd.functional.checks import check_choice, check_number, checked_maps, exact

ChannelAttention = Literal["image", "position"]


def random_keep_mask(like_BCHW: Tensor, ratio: float, *, channels: bool = False) -> Tensor:
    """A mask with zeros at random positions of a map, B×1×H×W; or in random channels, B×C×1×1.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022 (https://arxiv.org/abs/2205.01529):
    one mask for all channels.

    Args:
        like_BCHW: the tensor whose size, device and dtype to use.
        ratio: λ in [0, 1), the probability of a zero.
        channels: mask whole channels.

    Raises:
        ValueError: the ratio is out of its range.

    Example:
        >>> random_keep_mask(torch.zeros(2, 8, 4, 5), 0.5).shape
        torch.Size([2, 1, 4, 5])
    """
    check_number("[0, 1)", mask_ratio=ratio)
    B, C, H, W = like_BCHW.shape
    shape = (B, C, 1, 1) if channels else (B, 1, H, W)
    return (torch.rand(*shape, device=like_BCHW.device) >= ratio).to(like_BCHW.dtype)


def box_masks(
    boxes: Sequence[Tensor], input_sizes: Sequence[tuple[int, int]], map_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """FGD's foreground and background masks, each divided by its area.

    A box covers the positions from ⌊x1·W/w⌋ to ⌈x2·W/w⌉ inclusive, rows likewise, in an input of size (h, w).
    Each of its n positions, including those outside the map, gets 1/n; where boxes overlap, the smallest
    one's. Positions under no box share a weight of 1.

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022
    (https://arxiv.org/abs/2111.11837), section on focal distillation. Rounding follows the reference
    implementation (https://github.com/yzd-v/FGD, ``fgd.py``). That divides by the image's size before
    padding, which shifts boxes on padded images; pass the padded size, which the map covers.

    Args:
        boxes: per image (G, 4): x1, y1, x2, y2 in pixels. They may lie outside or be empty.
        input_sizes: per image (height, width) of what the map covers.
        map_size: (H, W).

    Returns:
        Foreground and background, B×H×W each, in the boxes' dtype, or float32 for half precision; ≥ 0.

    Raises:
        ValueError: boxes are not (G, 4), or the numbers of images differ.

    Example:
        >>> foreground, background = box_masks([torch.tensor([[0.0, 0, 15, 15]])], [(32, 32)], (4, 4))
        >>> foreground[0]
        tensor([[0.1111, 0.1111, 0.1111, 0.0000],
                [0.1111, 0.1111, 0.1111, 0.0000],
                [0.1111, 0.1111, 0.1111, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    if len(boxes) != len(input_sizes):
        raise ValueError(f"expected one input size per image, found {len(input_sizes)} for {len(boxes)}")
    foreground = []
    for boxes_G4, (height, width) in zip(boxes, input_sizes):
        check_boxes(boxes_G4)
        H, W = map_size
        boxes_G4 = exact(boxes_G4)
        scaled_G4 = boxes_G4 * boxes_G4.new_tensor([W / width, H / height, W / width, H / height])
        first_G2, last_G2 = scaled_G4[:, :2].floor(), scaled_G4[:, 2:].ceil()
        area_G = (last_G2 - first_G2 + 1).clamp(min=1).prod(dim=1)
        columns_GW, rows_GH = (
            _between(torch.arange(count).to(area_G), first_G2[:, axis], last_G2[:, axis])
            for axis, count in enumerate((W, H))
        )
        weight_GHW = (rows_GH[:, :, None] & columns_GW[:, None, :]) / area_G[:, None, None]
        foreground.append(torch.cat([area_G.new_zeros(1, H, W), weight_GHW]).amax(dim=0))
    foreground_BHW = torch.stack(foreground) if foreground else torch.zeros(0, *map_size)
    background_BHW = (foreground_BHW == 0).to(foreground_BHW.dtype)
    return foreground_BHW, background_BHW / background_BHW.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def attention(
    feat_BCHW: Tensor, temperature: float, channels: ChannelAttention = "image"
) -> tuple[Tensor, Tensor]:
    r"""A map's spatial and channel attention: where, and in which channels, it is large.

    .. math:: S = HW \, \mathrm{softmax}_{hw}\Big(\frac{1}{C}\sum_c |F_c| / T\Big), \quad
        A = C \, \mathrm{softmax}_c\Big(\frac{1}{HW}\sum_{hw} |F| / T\Big)

    and with ``channels='position'`` :math:`A = C \, \mathrm{softmax}_c(|F| / T)` at each position.

    Source: FGD (https://arxiv.org/abs/2111.11837); the per-position form: PGD
    (https://arxiv.org/abs/2203.05469).

    Returns:
        S as B×1×H×W and A as B×C×1×1, or B×C×H×W per position; their means over HW and C are 1.

    Example:
        >>> spatial, channel = attention(torch.tensor([[[[0.0, 9.0]], [[0.0, 1.0]]]]), temperature=1.0)
        >>> bool(spatial[0, 0, 0, 1] > spatial[0, 0, 0, 0]), bool(channel[0, 0] > channel[0, 1])
        (True, True)
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

    With `attention` S, A of each map, and m the weight of foreground or background, per image

    .. math:: \sum_{chw} m_{hw} S^t_{hw} A^t_c (F^t - F^s)^2, \quad
        \sum_{hw} |S^t - S^s| + \sum_c |A^t - A^s|

    averaged over images; the last sum is also averaged over positions if A is per position. Half precision is
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
        channels: ``'image'``: one channel attention per image; ``'position'``: one per position.

    Returns:
        Foreground, background and attention term, scalars ≥ 0.

    Raises:
        ValueError: the shapes do not match, or an option is out of its range.

    Example:
        >>> student, teacher = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
        >>> masks = box_masks([torch.tensor([[0.0, 0, 15, 15]])], [(32, 32)], (4, 4))
        >>> [bool(term > 0) for term in focal_terms(student, teacher, *masks)]
        [True, True, True]
    """
    check_attention_options(temperature, channels)
    student_BCHW, teacher_BCHW = checked_maps(student_BCHW, teacher_BCHW)
    B, _, H, W = student_BCHW.shape
    for mask_BHW in (foreground_BHW, background_BHW):
        if mask_BHW.shape != (B, H, W):
            raise ValueError(f"expected masks {(B, H, W)}, found {tuple(mask_BHW.shape)}")
    with torch.autocast(student_BCHW.device.type, enabled=False):
        spatial_s, channel_s = attention(student_BCHW, temperature, channels)
        spatial_t, channel_t = attention(teacher_BCHW, temperature, channels)
        error_BHW = ((student_BCHW - teacher_BCHW).square() * channel_t).sum(dim=1) * spatial_t.squeeze(1)
        foreground, background = (
            (error_BHW * mask_BHW).sum() / max(1, B) for mask_BHW in (foreground_BHW, background_BHW)
        )
        channel_BHW = (channel_s - channel_t).abs().sum(dim=1)
        difference = (spatial_s - spatial_t).abs().sum() / max(1, B)
        difference = difference + channel_BHW.sum() / max(1, channel_BHW.numel())
    return foreground, background, difference


def check_attention_options(temperature: float, channels: str = "image") -> None:
    """Raise ValueError if an option of `focal_terms` is out of its range."""
    check_number("(0, inf)", temperature=temperature)
    check_choice("channels", channels, ChannelAttention)


def _between(index_W: Tensor, first_G: Tensor, last_G: Tensor) -> Tensor:
    return (index_W[None] >= first_G[:, None]) & (index_W[None] <= last_G[:, None])
