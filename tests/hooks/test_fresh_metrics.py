from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.evaluator import BaseMetric

from mmkd.hooks import FreshMetricsHook

from .toy import toy_runner


class SecondOnly(BaseMetric):
    """Finds nothing but in the second of three validations."""

    default_prefix = "toy"
    validations = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: Any) -> dict[str, float]:
        self.validations += 1
        return {"mean": 0.5} if self.validations == 2 else {}


@pytest.mark.parametrize("fresh", [True, False])
def test_no_value_is_logged_twice(tmp_path: Path, fresh: bool) -> None:
    visualizer = {
        "type": "Visualizer",
        "name": str(tmp_path),
        "save_dir": str(tmp_path),
        "vis_backends": [{"type": "LocalVisBackend"}],
    }
    hooks = [FreshMetricsHook()] if fresh else []
    toy_runner(tmp_path, *hooks, val_evaluator=[SecondOnly()], visualizer=visualizer).train()
    (file,) = tmp_path.glob("**/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines() if '"lr"' not in line]
    assert ["toy/mean" in row for row in rows] == [False, True, not fresh], "mmengine still needs the hook"
    assert all("time" in row for row in rows)
