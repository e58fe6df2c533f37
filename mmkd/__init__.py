"""Knowledge distillation for MMDetection 3.x.

``custom_imports = dict(imports=['mmkd'])`` in a config registers everything.
"""

import sys
from pathlib import Path

from mmkd.version import __version__


def _only_tells_of_itself() -> bool:
    """Whether this process is one of mmkd's commands that only prints its help or version."""
    program = Path(sys.argv[0])
    ours = program.name.startswith("mmkd") or program.parent.name == "tools" or sys.argv[0] == "-m"
    asked = not {"-h", "--help", "--version"}.isdisjoint(sys.argv[1:])
    return (ours and asked) or sys.argv in ([str(program.with_name("mmkd"))], ["-m"])


if not _only_tells_of_itself():
    from mmkd.compat import check_environment
    from mmkd.mmengine_adaptations import adapt_mmengine

    check_environment()
    adapt_mmengine()

    from mmkd.amp import BFloat16OptimWrapper
    from mmkd.datasets import fraction_of_dataset
    from mmkd.detectors import KDSingleStageDetector
    from mmkd.errors import UserError
    from mmkd.hooks import MetricsFileHook, ProgressHook, StopHook, WandbSweepHook
    from mmkd.losses import DistillationLoss
    from mmkd.structures import DenseOutputs, DistillContext
    from mmkd.teachers import FrozenTeacher
    from mmkd.visualization import WandbBackend

__all__ = [
    "BFloat16OptimWrapper",
    "DenseOutputs",
    "DistillContext",
    "DistillationLoss",
    "FrozenTeacher",
    "KDSingleStageDetector",
    "MetricsFileHook",
    "ProgressHook",
    "StopHook",
    "UserError",
    "WandbBackend",
    "WandbSweepHook",
    "__version__",
    "fraction_of_dataset",
]
