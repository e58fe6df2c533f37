"""MMRazor 1.0.0, for comparison.

    pip install mmrazor==1.0.0 joblib pydacefit scikit-learn

Its quantization tables, which are not needed here, cannot be imported under torch ≥ 2.0. MMRazor skips them
for older versions, so `import_mmrazor` shows it an older version number.
"""

from __future__ import annotations

from typing import Any

import torch


def import_mmrazor() -> Any:
    """MMRazor's model registry, or the reason why it cannot be imported."""
    real = torch.__version__
    torch.__version__ = type(real)("1.12.0")
    try:
        from mmrazor.models import SingleTeacherDistill  # noqa: F401, registers it
        from mmrazor.registry import MODELS
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        torch.__version__ = real
    return MODELS


def single_teacher_distill(registry: Any, student: Any, teacher: Any, layer: str, levels: int) -> Any:
    """MMRazor's `SingleTeacherDistill` with its `KLDivergence` on the class logits of each level."""
    recorder = {"cls": {"type": "mmrazor.ModuleOutputs", "source": layer}}
    names = [f"loss_kd_{level}" for level in range(levels)]
    return registry.build(
        {
            "type": "mmrazor.SingleTeacherDistill",
            "architecture": student,
            "teacher": teacher,
            "distiller": {
                "type": "mmrazor.ConfigurableDistiller",
                "student_recorders": recorder,
                "teacher_recorders": recorder,
                "distill_losses": {name: {"type": "mmrazor.KLDivergence", "tau": 1} for name in names},
                "loss_forward_mappings": {
                    name: {
                        preds: {"from_student": ours, "recorder": "cls", "record_idx": level}
                        for preds, ours in (("preds_S", True), ("preds_T", False))
                    }
                    for level, name in enumerate(names)
                },
            },
        }
    )
