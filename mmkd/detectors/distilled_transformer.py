"""`Distilled` for detection transformers."""

from __future__ import annotations

from typing import Any

from mmkd.detectors.distilled import Distilled
from mmkd.outputs import has_own_memory


class DistilledTransformer(Distilled):
    """A distilled detection transformer; its features are the encoder's output."""

    def forward_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """As the student's own; recorded during a loss."""
        outputs = super().forward_encoder(*args, **kwargs)
        if self.recorded is not None and has_own_memory(self):
            self.recorded.memory.add(outputs)
        return outputs
