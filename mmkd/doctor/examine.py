"""All checks in order."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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


def examine_nothing_of(setup: TrainingSetup) -> Iterator[Finding]:
    """What no examination looks at."""
    rest = ["later epochs and changes made by hooks", "schedules after the first step", "several processes"]
    if setup.cfg.get("test_dataloader") and setup.cfg.test_dataloader != setup.cfg.get("val_dataloader"):
        rest.append("test_dataloader")
    yield Finding("note", "never checked", "; ".join(rest))


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
    """Examine a config; whatever happens in an examination, the others go on.

    Args:
        setup: the config and what to do with it.
        titles: of the examinations to make, in their order.
        begin: told each title before its examination.

    Returns:
        The findings. Random numbers begin with the config's seed, so that they are the same each time. What
        the libraries print meanwhile is left out.
    """
    init_default_scope(setup.cfg.get("default_scope") or "mmdet")
    sections = []
    for title in titles:
        begin(title)
        set_random_seed((setup.cfg.get("randomness") or {}).get("seed") or 0)
        started = time.perf_counter()
        with silence():
            findings = list(collect(title, partial(EXAMINATIONS[title], setup)))
        sections.append(Section(title, findings, time.perf_counter() - started))
    return sections


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Leave out what libraries print and log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
