"""`probe`: run a plan with a fraction of its budget and predict the full result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmengine.config import Config

from mmkd.balance import scalar_name
from mmkd.compare.extrapolation import extrapolate
from mmkd.compare.history import class_metrics, metric, read_history, seconds_per_iteration
from mmkd.compare.plan import STUDENT, TEACHER, Member
from mmkd.compare.records import Record, provenance, read_record
from mmkd.compare.results import class_values, values_of
from mmkd.compare.run_configs import takes_trained_teacher, training_config
from mmkd.compare.runs import Runs
from mmkd.compare.shorten import short_budget, shortened
from mmkd.compare.statistics import SMALLEST_GAP, paired_difference
from mmkd.compare.verdict import predict_gain, reasons
from mmkd.durable import write_json
from mmkd.errors import UserError

FOLDER, VERDICT = "probe", "verdict.json"
# Parts of the requested share; the student alone trains with each, for its learning curve.
PARTS = (0.25, 0.5, 1.0)


@dataclass
class Probe:
    """Short trainings of a plan's members, with one folder per share of the budget.

    Args:
        runs: the plan's runs; their folder holds the teacher, and the probe writes to its ``probe`` folder.
        share: share of the budget, in (0, 1).
        budget: config → iterations of the full training, and its epochs.

    Raises:
        UserError: the share is out of range.
    """

    runs: Runs
    share: float
    budget: Callable[[Config], tuple[int, int]]

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(
                "--share is out of range.",
                expected="a fraction of the budget, above 0 and below 1",
                found=str(self.share),
                remedy="0.1 is a tenth",
            )
        self.plan = self.runs.plan
        self.whole = {STUDENT: self.budget(self.runs.student)}
        for member in self.plan.variants:
            same = self.plan.same_budget
            cfg = self.runs.configs[member.name]
            self.whole[member.name] = self.whole[STUDENT] if same else self.budget(cfg)
        self.folder = self.runs.folder / FOLDER / f"{self.share:g}"

    def make(self, rerun: Sequence[str] = ()) -> dict[str, Any]:
        """Run the missing trainings, then predict the verdicts.

        The teacher is the plan's, in the plan's folder; if the plan trains it, it gets its full budget.

        Args:
            rerun: names of members whose short trainings to repeat.

        Returns:
            The content of ``verdict.json``.

        Raises:
            UserError: as for `Runs.make`; or the teacher failed, or every training of the student.
        """
        teacher = None
        if self.plan.teacher is not None:
            self.runs.make(only=TEACHER)
            teacher = read_record(self.runs.folder / TEACHER)
            if teacher is None or not teacher.finished:
                raise UserError(f"the teacher has no results: {teacher and teacher.error}")
        made: dict[int, Runs] = {}
        for budget, part in self._parts().items():
            members = [self.plan.student, *(self.plan.variants if part == 1 else ())]
            short = self._short(self.share * part, members, teacher)
            print(f"{self.share * part:.3g} of the budget", flush=True)
            short.make([name for name in rerun if name in [member.name for member in members]])
            made[budget] = short
        verdict = self._judge(made, teacher)
        write_json(self.folder / VERDICT, verdict)
        return verdict

    def _parts(self) -> dict[int, float]:
        """By iterations, the parts of the share; of parts with equal iterations the largest."""
        return {short_budget(self.share * part, *self.whole[STUDENT]): part for part in PARTS}

    def _short(self, share: float, members: Sequence[Member], teacher: Record | None) -> Runs:
        """Runs of members with a share of their budget, from generated configs."""
        folder = self.runs.folder / FOLDER / f"{share:g}"
        changed = []
        for member in members:
            cfg = training_config(member, {**self.plan.options, **member.options})
            if (
                teacher is not None
                and takes_trained_teacher(self.plan, member, cfg)
                and member.name != STUDENT
            ):
                cfg.merge_from_dict({"model.teacher.checkpoint": teacher.checkpoint})
            whole = self.whole[member.name]
            path = folder / "configs" / f"{member.name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            shortened(cfg, short_budget(share, *whole), *whole).dump(path)
            changed.append(replace(member, config=str(path), options={}))
        return Runs(replace(self.plan, members=tuple(changed), options={}), folder)

    def _judge(self, made: Mapping[int, Runs], teacher: Record | None) -> dict[str, Any]:
        iterations, _ = self.whole[STUDENT]
        points: list[tuple[float, float]] = []
        curve = []
        for budget, short in made.items():
            share = budget / iterations
            values = list(values_of(short.records(), "mAP").get(STUDENT, {}).values())
            points += [(share, value) for value in values]
            if values:
                curve.append({"share": share, "map_mean": statistics.fmean(values), "seeds": len(values)})
        whole = made[max(made)]
        records = whole.records()
        failed = [record for short in made.values() for record in short.records() if record.error is not None]
        maps = values_of(records, "mAP")
        if STUDENT not in maps:
            why = f": {failed[0].error}" if failed else ""
            raise UserError(f"no run of the student alone has results{why}")
        forecast, why = extrapolate(points)
        known = None if teacher is None else metric(teacher.metrics, "mAP")
        worse = [] if teacher is None else _known_no_better(teacher, records)
        variants = []
        for member in self.plan.variants:
            difference = paired_difference(maps.get(member.name, {}), maps[STUDENT])
            if difference is None:
                continue
            pairs = [maps[STUDENT][seed] for seed in maps[STUDENT].keys() & maps[member.name].keys()]
            gain = predict_gain(difference, statistics.fmean(pairs), forecast, known)
            cosines = self._cosines(whole, member)
            variants.append(
                {
                    "name": member.name,
                    "verdict": gain.verdict,
                    "difference": asdict(difference),
                    "predicted": asdict(gain),
                    "cosines": cosines,
                    "reasons": reasons(gain, difference, forecast, why, known, cosines, worse),
                }
            )
        return {
            "name": self.plan.name,
            "dataset": self.plan.dataset,
            "evaluated_on": self.plan.evaluate,
            "seeds": list(self.plan.seeds),
            "share": curve[-1]["share"],
            "iterations": max(made),
            "whole_iterations": iterations,
            "student": {"curve": curve, "forecast": forecast and asdict(forecast), "why_no_forecast": why},
            "teacher": known,
            "classes_known_no_better": worse,
            "variants": variants,
            "hours": self._hours(made),
            "failed": [f"{record.member}, seed {record.seed}: {record.error}" for record in failed],
            **provenance(),
        }

    def _cosines(self, short: Runs, member: Member) -> dict[str, list[float]]:
        """Term → for each seed, the mean cosine that `DistillMonitorHook` logged."""
        terms = [scalar_name(str(term)) for term in short.configs[member.name].model.get("distill") or {}]
        found: dict[str, list[float]] = {term: [] for term in terms}
        for run in short.all:
            if run.member.name == member.name:
                rows = read_history(run.folder)
                for term in terms:
                    values = [row[key] for row in rows if (key := f"kd_cosine_{term}") in row]
                    if values:
                        found[term].append(statistics.fmean(values))
        return found

    def _hours(self, made: Mapping[int, Runs]) -> dict[str, Any]:
        """Estimated hours to train and evaluate the whole plan, without the teacher, which is ready."""
        hours, longest = {}, made[max(made)]
        for member in longest.plan.members:
            runs = [run for run in longest.all if run.member.name == member.name]
            steps = [seconds_per_iteration(read_history(run.folder)) for run in runs]
            tests = [record.seconds.get("test") for run in runs if (record := read_record(run.folder))]
            known = [step for step in steps if step is not None]
            if known:
                each = statistics.median([test for test in tests if test is not None] or [0.0])
                whole = statistics.median(known) * self.whole[member.name][0]
                times = 1 + _validations(self.runs.configs[member.name], *self.whole[member.name])
                hours[member.name] = len(self.plan.seeds) * (whole + times * each) / 3600
        spent = sum(sum(record.seconds.values()) for short in made.values() for record in short.records())
        return {"whole_plan": sum(hours.values()), "of_members": hours, "probe": spent / 3600}


def _validations(cfg: Config, iterations: int, epochs: int) -> int:
    """The number of validations in a training."""
    if not cfg.get("val_dataloader"):
        return 0
    return -(-(epochs or iterations) // int(cfg.train_cfg.get("val_interval", 1)))


def _known_no_better(teacher: Record, records: Sequence[Record]) -> list[str]:
    """The classes on which the teacher's AP is not above that of the short-trained student alone."""
    theirs = class_metrics(teacher.metrics)
    found = []
    for name, values in class_values(records).items():
        own = values.get(STUDENT)
        if own and name in theirs and theirs[name] - statistics.fmean(own) < SMALLEST_GAP:
            found.append(name)
    return found
