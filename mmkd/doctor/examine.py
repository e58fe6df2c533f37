"""Runs all checks in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from mmkd.doctor.dataset import examine_dataset
from mmkd.doctor.environment import examine_environment
from mmkd.doctor.findings import Finding, Section, collect
from mmkd.doctor.memory import examine_memory
from mmkd.doctor.pipeline import examine_pipeline
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.step import examine_step
from mmkd.doctor.teacher import examine_teachers
from mmkd.doctor.validation import examine_validation
from mmkd.terminal import silence


def examine_nothing_of(setup: TrainingSetup) -> Iterator[Finding]:
    """Report what no check covers."""
    rest = ["later epochs and changes made by hooks", "schedules after the first step", "several processes"]
    if setup.cfg.get("test_dataloader") and setup.cfg.test_dataloader != setup.cfg.get("val_dataloader"):
        rest.append("test_dataloader")
    yield Finding.note("never checked", "; ".join(rest))


Examination = Callable[[TrainingSetup], Iterator[Finding]]
EXAMINATIONS: dict[str, Examination] = {
    "environment": examine_environment,
    "dataset": examine_dataset,
    "pipeline": examine_pipeline,
    "teacher": examine_teachers,
    "training step": examine_step,
    "memory": examine_memory,
    "validation": examine_validation,
    "not checked": examine_nothing_of,
}


def examine(
    setup: TrainingSetup,
    titles: Sequence[str] = tuple(EXAMINATIONS),
    begin: Callable[[str], object] = lambda _: None,
) -> list[Section]:
    """Check a config; if a check fails, the others still run.

    Args:
        setup: the training to check.
        titles: titles of the checks to run, in order.
        begin: called with each title before its check.

    Returns:
        The findings. Random numbers start from the config's seed, so the findings are reproducible. Output of
        the libraries is suppressed.
    """
    init_default_scope(setup.cfg.get("default_scope") or "mmdet")
    sections = []
    for title in titles:
        begin(title)
        set_random_seed((setup.cfg.get("randomness") or {}).get("seed") or 0)
        started = time.perf_counter()
        with silence():
            findings = list(collect(title, EXAMINATIONS[title], setup))
        sections.append(Section(title, findings, time.perf_counter() - started))
    return sections
