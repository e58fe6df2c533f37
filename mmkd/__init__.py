"""Knowledge distillation for MMDetection 3.x.

``custom_imports = dict(imports=['mmkd'])`` in a config registers everything. Without MMDetection only
`mmkd.functional` is available, which needs only torch.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmkd.version import __version__


def _is_command() -> bool:
    """Whether this process is one of mmkd's commands."""
    program = Path(sys.argv[0])
    return program.name.startswith("mmkd") or program.parent.name == "tools" or sys.argv[0] == "-m"


def _only_tells_of_itself() -> bool:
    """Whether this process is one of mmkd's commands and only prints its help or version."""
    asked = not {"-h", "--help", "--version"}.isdisjoint(sys.argv[1:])
    return (_is_command() and asked) or sys.argv in ([str(Path(sys.argv[0]).with_name("mmkd"))], ["-m"])


def _has_mmdet() -> bool:
    try:
        return find_spec("mmdet") is not None
    except ImportError:
        return False


if not (_has_mmdet() or _is_command()):

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'mmkd' has no attribute {name!r}")
        raise ImportError(
            f"mmkd.{name} needs MMDetection 3.x, which is not installed; mmkd.functional needs only torch.\n"
            "Remedy: run `make install` in a clone of mmkd, or see 'Install' in its README"
        )

elif not _only_tells_of_itself():
    from mmkd.compat import check_environment
    from mmkd.mmengine_adaptations import adapt_mmengine

    check_environment()
    adapt_mmengine()

    from mmkd.amp import BFloat16OptimWrapper
    from mmkd.data import MixedBatchSampler, PackTwoViews, UnlabelledImages
    from mmkd.datasets import fraction_of_dataset
    from mmkd.detectors import KDDetector, KDSingleStageDetector
    from mmkd.errors import UserError
    from mmkd.hooks import MetricsFileHook, ProgressHook, StopHook, WandbSweepHook
    from mmkd.losses import DistillationLoss
    from mmkd.structures import DenseOutputs, DistillContext
    from mmkd.teachers import FrozenTeacher, Teacher
    from mmkd.visualization import WandbBackend

    def __getattr__(name: str) -> Any:
        """The commands as functions; their tools are imported on first access."""
        if name == "compare":
            return import_module("mmkd.compare")  # callable, and still a package
        if name in ("distill", "evaluate", "init"):
            return getattr(import_module("mmkd.api"), name)
        raise AttributeError(f"module 'mmkd' has no attribute {name!r}")


if TYPE_CHECKING:
    from mmkd.api import compare, distill, evaluate, init

__all__ = [
    "BFloat16OptimWrapper",
    "DenseOutputs",
    "DistillContext",
    "DistillationLoss",
    "FrozenTeacher",
    "KDDetector",
    "KDSingleStageDetector",
    "MetricsFileHook",
    "MixedBatchSampler",
    "PackTwoViews",
    "ProgressHook",
    "StopHook",
    "Teacher",
    "UnlabelledImages",
    "UserError",
    "WandbBackend",
    "WandbSweepHook",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "fraction_of_dataset",
    "init",
]
