"""Knowledge distillation for MMDetection 3.x.

``custom_imports = dict(imports=['mmkd'])`` in a config registers everything.
"""

from mmkd.compat import adapt_mmengine, check_environment

check_environment()
adapt_mmengine()

from mmkd.durable import use_durable_files  # noqa: E402

use_durable_files()

from mmkd.amp import BFloat16OptimWrapper  # noqa: E402
from mmkd.datasets import fraction_of_dataset  # noqa: E402
from mmkd.detectors import KDSingleStageDetector  # noqa: E402
from mmkd.errors import UserError  # noqa: E402
from mmkd.hooks import MetricsFileHook, ProgressHook, StopHook, WandbSweepHook  # noqa: E402
from mmkd.losses import DistillationLoss  # noqa: E402
from mmkd.structures import DenseOutputs, DistillContext  # noqa: E402
from mmkd.teachers import FrozenTeacher  # noqa: E402
from mmkd.version import __version__  # noqa: E402
from mmkd.visualization import WandbBackend  # noqa: E402

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
