"""Distillation losses as functions of tensors, for any model; they need only torch.

Gradients flow to the student, never to the teacher. Half precision is computed in float32.

Example:
    >>> import torch
    >>> from mmkd.functional import kl_divergence
    >>> student_NK, teacher_NK = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10)
    >>> kl_divergence(student_NK, teacher_NK, temperature=4.0).backward()
"""

from mmkd.functional.boxes import box_iou_loss, box_l1_loss, inside_boxes, pairwise_iou
from mmkd.functional.crossed import match_statistics
from mmkd.functional.features import (
    channel_kl,
    cosine_distance,
    feature_mse,
    pearson_distance,
    pool_channels,
    squared_distance,
)
from mmkd.functional.kl import kl_divergence, reduce_priors, standardized_logits
from mmkd.functional.localization import localization_kl, square_anchors, valuable_region
from mmkd.functional.logits import decoupled_kl, modulated_bce
from mmkd.functional.masks import attention, box_masks, focal_terms, random_keep_mask
from mmkd.functional.quality import gaussian_weights, prediction_quality
from mmkd.functional.relations import relation_distances, relation_loss

__all__ = [
    "attention",
    "box_iou_loss",
    "box_l1_loss",
    "box_masks",
    "channel_kl",
    "cosine_distance",
    "decoupled_kl",
    "feature_mse",
    "focal_terms",
    "gaussian_weights",
    "inside_boxes",
    "kl_divergence",
    "localization_kl",
    "match_statistics",
    "modulated_bce",
    "pairwise_iou",
    "pearson_distance",
    "pool_channels",
    "prediction_quality",
    "random_keep_mask",
    "reduce_priors",
    "relation_distances",
    "relation_loss",
    "square_anchors",
    "squared_distance",
    "standardized_logits",
    "valuable_region",
]
