"""One batch of validation: loaded, predicted, and taken by each evaluator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from mmkd.doctor.findings import Finding, shortened
from mmkd.doctor.setup import TrainingSetup


@torch.no_grad()
def examine_validation(setup: TrainingSetup) -> Iterator[Finding]:
    """Build the evaluators, and give them what the model says of a first batch."""
    if not setup.cfg.get("val_dataloader"):
        yield Finding("ok", "validation", "none in the config")
        return
    dataset = setup.dataset("val")
    evaluator = Evaluator(setup.evaluators("val"))
    evaluator.dataset_meta = dataset.metainfo
    model = setup.model().to(setup.device)
    model.eval()
    loader = Runner.build_dataloader({**setup.loader("val", 1), "dataset": dataset}, seed=0)
    for batch in loader:
        outputs = model.val_step(batch)
        evaluator.process(data_samples=outputs, data_batch=batch)
        break
    names = [type(metric).__name__ for metric in evaluator.metrics]
    yield Finding("ok", "evaluators", f"{shortened(names)}: built; a prediction is accepted")
