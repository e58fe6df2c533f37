"""Detectors that learn from a teacher."""

from mmkd.detectors.kd_detector import KDDetector
from mmkd.detectors.kd_single_stage import KDSingleStageDetector

__all__ = ["KDDetector", "KDSingleStageDetector"]
