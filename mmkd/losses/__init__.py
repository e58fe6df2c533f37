"""Distillation losses: pure functions and the registered modules over them."""

from mmkd.losses.base import DistillLoss, registered_losses
from mmkd.losses.functional import kl_divergence
from mmkd.losses.kl import DistillationLoss

__all__ = ["DistillLoss", "DistillationLoss", "kl_divergence", "registered_losses"]
