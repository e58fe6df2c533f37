"""Sweeps: W&B's sweep files, their options for a config, and a local controller."""

from mmkd.sweeps.hyperband import Hyperband
from mmkd.sweeps.sweep_file import SweepFile, read_sweep

__all__ = ["Hyperband", "SweepFile", "read_sweep"]
