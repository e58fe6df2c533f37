"""The runs of a comparison: list them, find unfinished ones, and run them one process at a time."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from tqdm import tqdm

from mmkd.compare.history import metric
from mmkd.compare.plan import TEACHER, Member, Plan
from mmkd.compare.processes import Position, ToolError, call
from mmkd.compare.records import (
    EVALUATION,
    PREDICTIONS,
    Record,
    provenance,
    read_record,
    write_record,
)
from mmkd.compare.run_configs import (
    check_budget,
    check_teachers,
    evaluation_config,
    fingerprint,
    option_text,
    options_of,
    takes_trained_teacher,
    training_config,
)
from mmkd.errors import UserError
from mmkd.hooks.interrupted import CHECKPOINT as INTERRUPTED

TRAIN_LOG, TEST_LOG = "train.log", "test.log"
EVALUATION_CONFIG = "evaluation_config.py"
EVALUATED_ONLY = "evaluated only"


@dataclass(frozen=True)
class Run:
    """One member with one seed; the training's work dir is the run's folder."""

    member: Member
    seed: int | None
    folder: Path

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return self.member.name if self.seed is None else f"{self.member.name}, seed {self.seed}"


@dataclass
class Runs:
    """Trains and evaluates what a plan asks for.

    Args:
        plan: the comparison.
        folder: the folder for the runs.

    Raises:
        UserError: a config cannot be read, the budgets or teachers differ, or the split cannot be evaluated.
    """

    plan: Plan
    folder: Path

    def __post_init__(self) -> None:
        seed = self.plan.seeds[0]
        configs = {m.name: training_config(m, options_of(self.plan, m, seed)) for m in self.plan.members}
        self.differences = check_budget(self.plan, configs)
        self.other_teachers = check_teachers(self.plan, configs)
        self.student = configs[self.plan.student.name]
        self.configs = configs
        evaluation_config(self.student, self.student, self.plan.evaluate)

    @property
    def all(self) -> list[Run]:
        """All runs in execution order: the teacher, then seed by seed."""
        first = self.plan.seeds[0]
        teacher = self.plan.teacher
        runs = []
        if teacher is not None:
            seed = None if teacher.checkpoint is not None else first
            runs.append(Run(teacher, seed, self.folder / TEACHER))
        others = [member for member in self.plan.members if member.role != TEACHER]
        for seed in self.plan.seeds:
            runs += [Run(m, seed, self.folder / m.name / f"seed_{seed}") for m in others]
        return runs

    def make(self, rerun: Sequence[str] = (), only: str | None = None) -> list[Record]:
        """Execute the unfinished runs.

        Args:
            rerun: names of members whose runs to repeat.
            only: name of the only member to run; ``None`` for all.

        Returns:
            The record of each run.

        Raises:
            UserError: another comparison is using the folder, or a run in it has another config.
            KeyboardInterrupt: on SIGINT and SIGTERM, after the current run has ended.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(str(self.folder / ".lock"), timeout=0), _ended_by_signals():
                wanted = [run for run in self.all if only in (None, run.member.name)]
                for run in wanted:
                    if run.member.name in rerun and read_record(run.folder) is not None:
                        shutil.rmtree(run.folder)
                self._refuse_changed(wanted)
                return self._make(wanted)
        except Timeout as error:
            raise UserError(f"another comparison is running in {self.folder}") from error

    def records(self) -> list[Record]:
        """The existing records."""
        return [record for run in self.all if (record := read_record(run.folder)) is not None]

    def evaluation(self, member: Member) -> Config:
        """The config to evaluate a member with."""
        return evaluation_config(self.configs[member.name], self.student, self.plan.evaluate)

    def _make(self, wanted: list[Run]) -> list[Record]:
        left = [run for run in wanted if not self._is_finished(run)]
        done = len(wanted) - len(left)
        if done:
            print(f"{done} of {len(wanted)} runs are finished already", flush=True)
        with tqdm(
            total=len(left), disable=None, smoothing=0, dynamic_ncols=True, bar_format=_bar(len(left))
        ) as bar:
            for number, run in enumerate(left):
                bar.write(f"[{number + 1}/{len(left)}] {run.name}")
                record = self._make_one(run, bar, number)
                bar.update(number + 1 - bar.n)
                if record.error is None:
                    bar.write(f"    {_told(record)}")
                else:
                    bar.write(f"    failed: {record.error}\n    its log: {run.folder / TRAIN_LOG}")
        return self.records()

    def _make_one(self, run: Run, bar: Any, number: int) -> Record:
        def progress(note: str, share: float) -> None:
            bar.set_description_str(f"{run.name} {note}", refresh=False)
            bar.n = number + 0.97 * share
            bar.refresh()

        record = None
        try:
            options = self._options(run)
            cfg = training_config(run.member, options)
            mark = _mark(run, cfg)
            record = read_record(run.folder)
            if record is not None and record.fingerprint not in ("", mark):
                raise UserError(f"its config has changed since; use --rerun {run.member.name} to rerun it")
            if record is None or not record.trained:
                record = Record(run.member.name, run.seed, run.member.config, mark, **provenance())
            record.error = None
            if run.member.checkpoint is not None:  # the plan may name another one than last time
                record.trained, record.checkpoint = True, run.member.checkpoint
            if not record.trained:
                self._train(run, record, cfg, options, progress)
            self._evaluate(run, record, self.evaluation(run.member), progress)
        except (ToolError, UserError) as error:
            if record is None:
                record = Record(run.member.name, run.seed, run.member.config, "")
            record.error = str(error)
        write_record(run.folder, record)
        return record

    def _train(self, run: Run, record: Record, cfg: Config, options: dict[str, Any], progress: Any) -> None:
        arguments = [run.member.config, "--work-dir", str(run.folder)]
        words = ["--cfg-options", *(option_text(key, value) for key, value in options.items())]
        record.command = shlex.join(["python", "tools/train.py", *arguments, *words])
        write_record(run.folder, record)
        began = time.perf_counter()
        position = Position(run.folder, cfg.train_cfg)
        call(
            "train",
            [*arguments, "--resume", *words],
            run.folder / TRAIN_LOG,
            lambda: progress(*position()),
        )
        record.seconds["train"] = time.perf_counter() - began
        last = run.folder / "last_checkpoint"
        if not last.is_file():
            raise UserError("no checkpoint was written; the config needs a CheckpointHook")
        record.checkpoint = str(run.folder / Path(last.read_text(encoding="utf-8").strip()).name)
        if Path(record.checkpoint).name == INTERRUPTED:  # a stop that does not count as an error
            raise UserError("it was interrupted; rerun the same command to continue")
        record.trained = True
        write_record(run.folder, record)

    def _evaluate(self, run: Run, record: Record, cfg: Config, progress: Any) -> None:
        mark = fingerprint(cfg, record.checkpoint)
        folder = run.folder / EVALUATION
        if record.evaluated == mark and (folder / PREDICTIONS).is_file():
            return
        record.evaluated = None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        progress("evaluation", 1.0)
        config = run.folder / EVALUATION_CONFIG
        cfg.dump(config)
        out = folder / PREDICTIONS
        arguments = [str(config), str(record.checkpoint), "--work-dir", str(folder), "--out", str(out)]
        began = time.perf_counter()
        call("test", arguments, run.folder / TEST_LOG)
        record.seconds["test"] = time.perf_counter() - began
        written = json.loads(max(folder.glob("*/*.json")).read_text(encoding="utf-8"))
        record.metrics = {k: float(v) for k, v in written.items() if k not in ("time", "data_time")}
        record.evaluated = mark

    def _options(self, run: Run) -> dict[str, Any]:
        """The run's options; a variant learns from the teacher trained here, if there is one.

        Raises:
            UserError: that teacher is not trained yet.
        """
        checkpoint = None
        if takes_trained_teacher(self.plan, run.member, self.configs[run.member.name]):
            record = read_record(self.folder / TEACHER)
            if record is None or not record.trained:
                raise UserError("its teacher was not trained")
            checkpoint = record.checkpoint
        seed = self.plan.seeds[0] if run.seed is None else run.seed
        return options_of(self.plan, run.member, seed, checkpoint)

    def _is_finished(self, run: Run) -> bool:
        record = read_record(run.folder)
        if record is None or not record.finished:
            return False
        predictions = run.folder / EVALUATION / PREDICTIONS
        mark = fingerprint(self.evaluation(run.member), run.member.checkpoint or record.checkpoint)
        return predictions.is_file() and record.evaluated == mark

    def _refuse_changed(self, wanted: Sequence[Run]) -> None:
        changed = []
        for run in wanted:
            record = read_record(run.folder)
            if record is None or not record.fingerprint:
                continue
            try:
                cfg = training_config(run.member, self._options(run))
            except UserError:
                continue  # its teacher is trained first
            if record.fingerprint != _mark(run, cfg):
                changed.append(run)
        if changed:
            names = " ".join(dict.fromkeys(run.member.name for run in changed))
            raise UserError(
                "The config of some runs has changed since they were trained.",
                expected=f"in {self.folder}, runs of the current plan",
                found="; ".join(run.name for run in changed),
                remedy=f"rerun them with --rerun {names}, or rename the plan",
            )


def _mark(run: Run, cfg: Config) -> str:
    """The fingerprint of a training; an untrained teacher needs none: it is cheap to evaluate again."""
    return fingerprint(cfg) if run.member.checkpoint is None else EVALUATED_ONLY


def _told(record: Record) -> str:
    values = {name: metric(record.metrics, name) for name in ("mAP", "AP50", "AP75")}
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bar(total: int) -> str:
    return f"{{desc}} |{{bar}}| {{n:.1f}}/{total} runs, {{elapsed}} so far, {{remaining}} left"
