"""A sweep on this machine, without an account: optuna suggests, W&B's rule stops."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from mmkd.errors import UserError
from mmkd.history import LogReader
from mmkd.sweeps.hyperband import Hyperband
from mmkd.sweeps.processes import end
from mmkd.sweeps.sweep_file import SweepFile

CRASHES_IN_A_ROW = 5
POLL_SECONDS = 0.5
KILL_AFTER_SECONDS = 30


class TrialError(RuntimeError):
    """A trial's process ended with an error; the message is its last line."""


@dataclass
class LocalSweep:
    """Runs the trials of a sweep file as processes on this machine.

    Args:
        sweep: the sweep file.
        work_dir: folder for the study, the trials and the results.
        jobs: number of parallel trials.
        seed: the sampler's seed.
    """

    sweep: SweepFile
    work_dir: Path
    jobs: int = 1
    seed: int | None = None
    _interrupted: threading.Event = field(default_factory=threading.Event)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def __post_init__(self) -> None:
        early, maximize = self.sweep.early_terminate, self.sweep.maximize
        self._rule = Hyperband.from_config(early, maximize) if early else None

    def run(self, count: int, resume: bool = False) -> optuna.Study:
        """Run trials until ``count`` have ended, then write the results.

        Args:
            count: number of trials, including those of an earlier call.
            resume: continue the study in ``work_dir``.

        Raises:
            UserError: there is a study but ``resume`` is off, or five trials in a row crashed.
        """
        study = self._open(resume)
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        before = [
            (number, signal.signal(number, self._interrupt)) for number in (signal.SIGINT, signal.SIGTERM)
        ]
        try:
            study.optimize(
                self._objective,
                n_trials=max(0, count - len(done)),
                n_jobs=self.jobs,
                catch=(TrialError,),
                callbacks=[self._after_trial],
            )
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            for process in list(self._running):  # an interrupted join forgets its thread (CPython)
                end(process, KILL_AFTER_SECONDS)
            self._write_table(study)
        crashed = _crashes_in_a_row(study)
        if crashed >= CRASHES_IN_A_ROW:
            raise UserError(
                f"Sweep stopped: {crashed} trials in a row crashed.",
                expected="trials that train",
                found=str(study.trials[-1].user_attrs.get("error")),
                remedy=f"see {self.work_dir}/trial_{study.trials[-1].number}.log, then use --resume",
            )
        return study

    def _open(self, resume: bool) -> optuna.Study:
        journal = self.work_dir / "study.log"
        if journal.exists() and not resume:
            raise UserError(
                "The folder already contains a sweep.",
                expected="an empty --work-dir, or --resume",
                found=str(journal),
                remedy="add --resume to continue it, or choose another folder",
            )
        self.work_dir.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            study_name=self.sweep.path.stem,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            direction="maximize" if self.sweep.maximize else "minimize",
            load_if_exists=True,
        )
        again = {trial.user_attrs.get("again") for trial in study.trials}
        for trial in study.trials:
            if trial.state == TrialState.RUNNING:  # left by a killed controller
                study.tell(trial.number, state=TrialState.FAIL)
            elif not trial.user_attrs.get("interrupted") or trial.number in again:
                continue
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    system_attrs={**trial.system_attrs, "fixed_params": trial.params},
                    user_attrs={"again": trial.number},
                )
            )
        study.sampler = self._sampler()  # only now: a grid sampler would stop at a trial that is told
        return study

    def _sampler(self) -> optuna.samplers.BaseSampler:
        if self.sweep.method == "grid":
            space = {}
            for key, description in self.sweep.parameters.items():
                values = _values(description)
                if values is None:
                    raise UserError(f"{self.sweep.path}: a grid needs `values` for {key}")
                space[key] = list(values)
            return optuna.samplers.GridSampler(space, seed=self.seed)
        if self.sweep.method == "random":
            return optuna.samplers.RandomSampler(seed=self.seed)
        return optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=5)

    def _objective(self, trial: Trial) -> float:
        values = {key: suggest(trial, key, d) for key, d in self.sweep.parameters.items()}
        trial.set_user_attr("parameters", values)
        folder = self.work_dir / f"trial_{trial.number}"
        command = [*self.sweep.command_for(values), "--work-dir", str(folder)]
        log = folder.with_suffix(".log")
        history: list[float] = []
        print(f"trial {trial.number}: {values}", flush=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its data loaders end with it
                env={**os.environ, "WANDB_MODE": "offline", "MMKD_SWEEP": self.sweep.path.stem},
            )
            self._running.add(process)
            try:
                pruned = self._follow(trial, process, LogReader(folder), history)
            except KeyboardInterrupt:
                trial.set_user_attr("interrupted", True)
                raise
            finally:
                end(process, KILL_AFTER_SECONDS)
                self._running.discard(process)
        if process.returncode != 0 and not pruned:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            error = next(
                (line for line in lines if line.startswith("mmkd: error")), (lines or ["no output"])[-1]
            )
            trial.set_user_attr("error", error)
            print(f"trial {trial.number}: crashed: {error}", flush=True)
            raise TrialError(error)
        if not history:
            trial.set_user_attr("error", f"no value of {self.sweep.metric}")
            raise TrialError(f"no value of {self.sweep.metric}")
        best = max(history) if self.sweep.maximize else min(history)
        print(
            f"trial {trial.number}: {'stopped early' if pruned else 'finished'}, best {best:.4f}", flush=True
        )
        if pruned:
            raise optuna.TrialPruned
        return best

    def _follow(
        self, trial: Trial, process: subprocess.Popen[bytes], log: LogReader, history: list[float]
    ) -> bool:
        """Collect and report values as they come; returns whether the rule stopped the trial."""
        while True:
            ended = process.poll() is not None
            for value in validations(log.new_rows(), self.sweep.metric):
                trial.report(value, len(history))
                history.append(value)
            if self._interrupted.is_set():
                raise KeyboardInterrupt  # leaves the trial unfinished, to be retried
            if ended:
                return False
            if self._rule is not None and self._rule.should_stop(history, _histories(trial)):
                return True
            time.sleep(POLL_SECONDS)

    def _interrupt(self, *_: Any) -> None:
        """End the running trials, which have their own process groups."""
        self._interrupted.set()
        raise KeyboardInterrupt

    def _after_trial(self, study: optuna.Study, _: FrozenTrial) -> None:
        self._write_table(study)
        if _crashes_in_a_row(study) >= CRASHES_IN_A_ROW:
            study.stop()

    def _write_table(self, study: optuna.Study) -> None:
        keys = list(self.sweep.parameters)
        with (self.work_dir / "trials.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["trial", "state", self.sweep.metric, "values", *keys, "error"])
            for trial in study.trials:
                history = list(trial.intermediate_values.values())
                best = (max if self.sweep.maximize else min)(history) if history else ""
                values = trial.user_attrs.get("parameters", {})
                error = trial.user_attrs.get("error", "")
                row = [trial.number, trial.state.name.lower(), best, len(history)]
                table.writerow([*row, *(values.get(key, "") for key in keys), error])


def suggest(trial: Trial, key: str, description: Mapping[str, Any]) -> Any:
    """Suggest one value of a parameter, from W&B's description of its values."""
    values = _values(description)
    if values is not None:
        return values[trial.suggest_categorical(key, list(values))]
    low, high, kind = description["min"], description["max"], description.get("distribution", "")
    if kind.startswith("int") or (not kind and isinstance(low, int) and isinstance(high, int)):
        return trial.suggest_int(key, low, high)
    step = description.get("q") if kind.startswith("q_") else None
    if kind not in ("", "uniform", "q_uniform", "log_uniform_values"):
        raise UserError(
            f"{key}: the local controller supports the distributions uniform, q_uniform, "
            f"int_uniform, log_uniform_values and lists of values, found {kind}"
        )
    return trial.suggest_float(key, low, high, log=kind == "log_uniform_values", step=step)


def validations(rows: Iterable[Mapping[str, Any]], metric: str) -> Iterator[float]:
    """The values of a metric over a trial's validations, 0 where mmdet returned none.

    Args:
        rows: rows of the trial's log.
        metric: a key of the evaluator, or ``val/<name>`` for any evaluator's ``<name>``.
    """
    name = metric.removeprefix("val/")
    for row in rows:
        if "lr" not in row:
            found = [v for k, v in row.items() if k == metric or k.rpartition("/")[2] == name]
            yield float(found[0]) if found else 0.0


def _values(description: Mapping[str, Any]) -> dict[Any, Any] | None:
    """Map the values shown to optuna (scalars unchanged, lists as text) to the trial's values."""
    values = [description["value"]] if "value" in description else description.get("values")
    if values is None:
        return None
    return {value if isinstance(value, (bool, int, float, str)) else str(value): value for value in values}


def _histories(trial: Trial) -> list[list[float]]:
    """The values reported by all other trials of the study."""
    trials = trial.study.get_trials(deepcopy=False)
    return [list(t.intermediate_values.values()) for t in trials if t.number != trial.number]


def _crashes_in_a_row(study: optuna.Study) -> int:
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    return next((n for n, t in enumerate(reversed(ended)) if t.state != TrialState.FAIL), len(ended))
