"""Distances between feature maps; they need only torch.

All compute in float32 (float64 for float64 input), also under autocast, and give the teacher no gradient.

Shape suffixes: B images, C channels, H and W map size; V the elements of a statistic.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional.checks import check_choice, checked_maps
from mmkd.functional.kl import check_kl_options, kl_divergence

Vector = Literal["map", "mean"]
Statistics = Literal["batch", "image"]


def feature_mse(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    r"""The mean squared difference, :math:`\frac{1}{BCHW} \sum (f^s - f^t)^2`.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3: half the sum. The mean, as in RepDistiller's ``HintLoss``, does not depend on the map's size.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same shape.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).

    Example:
        >>> feature_mse(torch.zeros(2, 8, 4, 4), torch.full((2, 8, 4, 4), 3.0))
        tensor(9.)
    """
    student, teacher = checked_maps(student_BCHW, teacher_BCHW)
    with torch.autocast(student_BCHW.device.type, enabled=False):
        return F.mse_loss(student, teacher, reduction="sum") / max(1, student.numel())


def squared_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The sum of squared differences per image, averaged over images. Half precision is summed in float32.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same shape.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).

    Example:
        >>> squared_distance(torch.zeros(2, 8, 1, 1), torch.ones(2, 8, 1, 1))
        tensor(8.)
    """
    student_BCHW, teacher_BCHW = checked_maps(student_BCHW, teacher_BCHW)
    return (student_BCHW - teacher_BCHW).square().sum() / max(1, len(student_BCHW))


def cosine_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, *, vector: Vector = "map") -> Tensor:
    r"""One minus the cosine between the two maps of an image, averaged over images.

    .. math:: \frac{1}{B} \sum_b 1 - \frac{v^s_b \cdot v^t_b}{\lVert v^s_b \rVert \, \lVert v^t_b \rVert}

    Where the widths differ, neighbouring channels of the wider map are first averaged to match the narrower
    one (adaptive average pooling; if one width is no multiple of the other, groups share channels). A map
    that is zero everywhere has no direction: its cosine is 0, without gradient.

    Source: the cosine loss of PyTorch's knowledge distillation tutorial
    (https://pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html), which flattens maps and
    averages neighbouring elements of the teacher's vector; this function averages channels, never positions.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same B, H and W.
        vector: ``'map'``: v is the whole map, C·H·W numbers; ``'mean'``: the mean over positions, C numbers.

    Returns:
        A scalar in [0, 2] up to rounding; does not depend on the scale of either map.

    Raises:
        ValueError: the shapes do not match or are not (B, C, H, W); a bad option.

    Example:
        >>> student = torch.tensor([[[[3.0, 0.0]]]])
        >>> cosine_distance(student, 5 * student), cosine_distance(student, student.flip(3))
        (tensor(0.), tensor(1.))
    """
    check_choice("vector", vector, Vector)
    maps = checked_maps(student_BCHW, teacher_BCHW, same_width=False)
    with torch.autocast(student_BCHW.device.type, enabled=False):
        width = min(level.shape[1] for level in maps)
        student, teacher = (pool_channels(level, width) for level in maps)
        if vector == "mean":
            student, teacher = student.mean(dim=(2, 3)), teacher.mean(dim=(2, 3))
        student_BV, teacher_BV = student.flatten(1), teacher.flatten(1)
        norms_B = student_BV.norm(dim=1) * teacher_BV.norm(dim=1)
        cosine_B = (student_BV * teacher_BV).sum(dim=1) / norms_B.masked_fill(norms_B == 0, torch.inf)
        return (1 - cosine_B).sum() / max(1, len(cosine_B))


def pool_channels(map_BCHW: Tensor, width: int) -> Tensor:
    """Average neighbouring channels down to ``width``; (B, width, H, W).

    Example:
        >>> pool_channels(torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1, 1), 2).flatten()
        tensor([2., 6.])
    """
    if map_BCHW.shape[1] == width:
        return map_BCHW
    # As a matrix product: torch has no deterministic gradient of adaptive pooling on GPUs.
    share_CD = F.adaptive_avg_pool1d(torch.eye(map_BCHW.shape[1]).to(map_BCHW), width)
    return torch.einsum("bchw,cd->bdhw", map_BCHW, share_CD)


def pearson_distance(
    student_BCHW: Tensor, teacher_BCHW: Tensor, *, statistics: Statistics = "batch", eps: float = 1e-6
) -> Tensor:
    r"""One minus Pearson's correlation of each channel, averaged over channels.

    Computed as half the mean squared difference of the normalised maps
    :math:`\hat f_c = (f_c - \mu_c) / (\sigma_c + \epsilon)`, with mean and standard deviation of a channel
    over the positions of all images of the batch. A constant channel is normalised to zero.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022 (https://arxiv.org/abs/2207.02039). Reference implementation: mmrazor's
    ``PKDLoss``. It uses the unbiased standard deviation, which makes its value (n − 1)/n of this one for n =
    B·H·W (a map of one position would be NaN). With the population's deviation the value is 1 − r, as in the
    paper, and does not depend on the size of batch and map.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same shape.
        statistics: ``'batch'``: over images and positions, as published; ``'image'``: over the positions of
            each image.
        eps: ε > 0.

    Returns:
        A scalar in [0, 2]; up to ε, scale and offset of a channel do not change it.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W); a bad option.

    Example:
        >>> student = torch.randn(2, 8, 4, 4)
        >>> bool(pearson_distance(student, 3 * student + 1) < 1e-6)
        True
    """
    check_choice("statistics", statistics, Statistics)
    maps = checked_maps(student_BCHW, teacher_BCHW)
    dims = (0, 2, 3) if statistics == "batch" else (2, 3)
    if not len(student_BCHW):  # without images there are no statistics
        return maps[0].sum()
    with torch.autocast(student_BCHW.device.type, enabled=False):
        student, teacher = (_normalised(level, dims, eps) for level in maps)
        return F.mse_loss(student, teacher) / 2


def channel_kl(student_BCHW: Tensor, teacher_BCHW: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""KL divergence of each channel's distribution over positions, averaged over channels and images.

    With :math:`p_{bc} = \mathrm{softmax}_{HW}(f_{bc} / T)`

    .. math:: \frac{T^2}{B C} \sum_{b,c} \sum_i p^t_{bci} \log (p^t_{bci} / p^s_{bci})

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021
    (https://arxiv.org/abs/2011.13256); reference implementation: mmrazor's ``ChannelWiseDivergence``, which
    also has the 1/B.

    Args:
        student_BCHW: the student's map.
        teacher_BCHW: the teacher's, of the same shape.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0 up to rounding; the offset of a channel does not change it. A map of one position gives
        0.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W); a bad option.

    Example:
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
        >>> bool(channel_kl(student, teacher) > channel_kl(student, student + 1).abs())
        True
    """
    check_kl_options(temperature, "softmax", "batchmean")
    student_BCHW, teacher_BCHW = checked_maps(student_BCHW, teacher_BCHW)
    B, C, H, W = student_BCHW.shape
    if H * W == 1:  # both softmaxes are 1
        return (student_BCHW * 0).sum()
    student_NK, teacher_NK = student_BCHW.reshape(B * C, H * W), teacher_BCHW.reshape(B * C, H * W)
    return kl_divergence(student_NK, teacher_NK, temperature=temperature)


def _normalised(level: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    mean = level.mean(dims, keepdim=True)
    centered = level - mean
    # Unlike the square root of the variance, the norm has a gradient where everything is zero.
    norm = torch.linalg.vector_norm(centered, dim=dims, keepdim=True)
    std = norm / (level.numel() / mean.numel()) ** 0.5
    return centered / (std + eps)
