"""Distillation losses: pure functions and the registered modules over them."""

from mmkd.functional.kl import kl_divergence
from mmkd.losses.automatic import AutoWeight, split_shares
from mmkd.losses.base import DistillLoss, build_losses, registered_losses
from mmkd.losses.bckd import BCKDLoss
from mmkd.losses.box_iou import BoxIoULoss
from mmkd.losses.box_l1 import BoxL1Loss
from mmkd.losses.cosine import CosineLoss
from mmkd.losses.crosskd import CrossKDLoss
from mmkd.losses.cwd import CWDLoss
from mmkd.losses.dist import DISTLoss
from mmkd.losses.dkd import DKDLoss
from mmkd.losses.fgd import FGDLoss
from mmkd.losses.fitnets import FitNetsLoss
from mmkd.losses.kl import DistillationLoss
from mmkd.losses.ld import LocalizationDistillationLoss
from mmkd.losses.mgd import MGDLoss
from mmkd.losses.pgd import PGDLoss
from mmkd.losses.pkd import PKDLoss
from mmkd.losses.quality import QualityLoss
from mmkd.losses.row_base import RowLoss
from mmkd.losses.teacher_boxes import TeacherBoxesLoss
from mmkd.losses.turns import Turns, end_iteration

__all__ = [
    "AutoWeight",
    "BCKDLoss",
    "BoxIoULoss",
    "BoxL1Loss",
    "CWDLoss",
    "CosineLoss",
    "CrossKDLoss",
    "DISTLoss",
    "DKDLoss",
    "DistillLoss",
    "DistillationLoss",
    "FGDLoss",
    "FitNetsLoss",
    "LocalizationDistillationLoss",
    "MGDLoss",
    "PGDLoss",
    "PKDLoss",
    "QualityLoss",
    "RowLoss",
    "TeacherBoxesLoss",
    "Turns",
    "build_losses",
    "end_iteration",
    "kl_divergence",
    "registered_losses",
    "split_shares",
]
