"""What to compare: plan files, and plans from a list of configs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmkd.compat import config_of
from mmkd.errors import UserError, check_options
from mmkd.sweeps.overrides import KeepingDictAction
from mmkd.teachers import teacher_entries
from mmkd.yaml_files import read_mapping

TEACHER, STUDENT, DISTILLED = "teacher", "student", "distilled"
SPLITS = ("test", "val")
BUDGETS = ("same", "differs")
TEACHERS = ("same", "differ")
_KEYS = (
    "name",
    "dataset",
    "teacher",
    "student",
    "variants",
    "seeds",
    "cfg-options",
    "evaluate",
    "budget",
    "teachers",
)
_ENTRY = ("config", "cfg-options")


@dataclass(frozen=True)
class Member:
    """One detector of a comparison.

    Attributes:
        name: names its folder and its row in the report.
        role: ``teacher``, ``student`` or ``distilled``.
        config: a path or ``package::`` name.
        options: dotted key → value, overriding the config.
        checkpoint: weights of a teacher that is only evaluated, not trained.
        recommended: whether the report puts it first.
    """

    name: str
    role: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    recommended: bool = False


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        name: names the plan's folder.
        dataset: the data set's name in the report.
        members: the teacher (if there is one), the student, then the variants.
        seeds: every student and variant is trained with each; a teacher only with the first.
        options: dotted key → value, overriding each trained member's config.
        evaluate: ``test`` or ``val``, the loader and evaluator that produce the figures.
        same_budget: whether variants must have the student's budget.
        same_teacher: whether variants must learn from the plan's teacher.
    """

    name: str
    dataset: str
    members: tuple[Member, ...]
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: str = "test"
    same_budget: bool = True
    same_teacher: bool = True

    @property
    def teacher(self) -> Member | None:
        """The teacher, or ``None``."""
        return next((member for member in self.members if member.role == TEACHER), None)

    @property
    def student(self) -> Member:
        """The student alone."""
        return next(member for member in self.members if member.role == STUDENT)

    @property
    def variants(self) -> list[Member]:
        """The distilled students."""
        return [member for member in self.members if member.role == DISTILLED]


def read_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        UserError: the file is missing or broken, or its content is no valid plan.
    """
    path = Path(path)
    content = read_mapping(path, "plan", "a YAML file like configs/compare/bccd.yaml")
    try:
        return plan_from(content, path.stem)
    except UserError as error:
        raise error.at(str(path)) from error


def plan_from(content: Mapping[str, Any], name: str) -> Plan:
    """Check the content of a plan file.

    Args:
        content: the file's content.
        name: the plan's name, unless the content has one.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong form.
    """
    check_options("A plan", map(str, content), _KEYS)
    for key in ("student", "variants"):
        if not content.get(key):
            raise UserError(f"a plan needs `{key}`; see configs/compare/bccd.yaml")
    variants = content["variants"]
    if not isinstance(variants, Mapping):
        raise UserError(f"`variants` must be a mapping like {{boxes: my_config.py}}, found {variants!r:.80}")
    for key, values in (("evaluate", SPLITS), ("budget", BUDGETS), ("teachers", TEACHERS)):
        if content.get(key, values[0]) not in values:
            raise UserError(f"`{key}` must be one of {', '.join(values)}, found {content[key]!r}")
    student = _member(STUDENT, STUDENT, content["student"])
    distilled = [_member(str(each), DISTILLED, entry) for each, entry in variants.items()]
    teacher = _teacher(content["teacher"]) if content.get("teacher") else named_teacher(distilled)
    plan = Plan(
        name=str(content.get("name", name)),
        dataset=str(content.get("dataset", content.get("name", name))),
        members=tuple(member for member in (teacher, student, *distilled) if member is not None),
        seeds=_seeds(content.get("seeds", [0])),
        options=_options("cfg-options", content.get("cfg-options")),
        evaluate=content.get("evaluate", SPLITS[0]),
        same_budget=content.get("budget", BUDGETS[0]) == BUDGETS[0],
        same_teacher=content.get("teachers", TEACHERS[0]) == TEACHERS[0],
    )
    _check_names(plan)
    return plan


def plan_of_configs(configs: Sequence[str], **settings: Any) -> Plan:
    """Make a plan from the configs on a command line.

    Args:
        configs: the student, then its distilled variants.
        settings: further keys of a plan; ``None`` values are left out.

    Raises:
        UserError: as for a plan file.
    """
    names = [Path(config.rpartition("::")[2]).stem for config in configs]
    if len(configs) < 2:
        raise UserError(
            "Nothing to compare.",
            expected="PLAN.yaml, or the student's config and one or more distilled ones",
            found=", ".join(configs),
            remedy="give a plan or at least two configs",
        )
    if len(set(names[1:])) < len(names[1:]):
        raise UserError(f"two configs have the same name ({', '.join(names[1:])}); write a plan file")
    given = {key: value for key, value in settings.items() if value is not None}
    content = {"student": configs[0], "variants": dict(zip(names[1:], configs[1:])), **given}
    return plan_from(content, "-".join(names[1:]))


def named_teacher(variants: Sequence[Member]) -> Member | None:
    """The teacher of the first variant whose config names exactly one, with config and checkpoint."""
    for variant in variants:
        cfg = config_of(variant.name, variant.config)
        cfg.merge_from_dict({k: v for k, v in variant.options.items() if k.startswith("model.teacher")})
        found = teacher_entries(cfg.model.get("teacher"))
        config = found[0].get("config") if len(found) == 1 else None
        if isinstance(config, str) and isinstance(found[0].get("checkpoint"), str):
            return Member(TEACHER, TEACHER, config, checkpoint=found[0]["checkpoint"])
    return None


def _member(name: str, role: str, entry: Any) -> Member:
    if isinstance(entry, str):
        return Member(name, role, entry)
    if not isinstance(entry, Mapping):
        raise UserError(f"{name} must be a config, or {{config: …, cfg-options: …}}, found {entry!r:.80}")
    extra = {TEACHER: ("checkpoint",), DISTILLED: ("recommended",)}.get(role, ())
    check_options(name, map(str, entry), [*_ENTRY, *extra])
    if not isinstance(entry.get("config"), str):
        raise UserError(f"{name} needs a `config`, a path or a name like mmkd::bccd/kd.py")
    recommended, checkpoint = entry.get("recommended", False), entry.get("checkpoint")
    if not isinstance(recommended, bool):
        raise UserError(f"{name}: `recommended` must be true or false, found {recommended!r}")
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UserError(f"{name}: `checkpoint` must be a path or URL, found {checkpoint!r}")
    options = _options(f"{name}: cfg-options", entry.get("cfg-options"))
    return Member(name, role, entry["config"], options, checkpoint, recommended)


def _teacher(entry: Any) -> Member:
    return _member(TEACHER, TEACHER, entry)


def _options(where: str, options: Any) -> dict[str, Any]:
    """Parse text as ``--cfg-options`` does, because YAML reads 1e-3 as text."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise UserError(f"`{where}` must be a mapping of dotted keys, found {options!r:.80}")
    parse = KeepingDictAction._parse_iterable
    values = {str(key): parse(value) if isinstance(value, str) else value for key, value in options.items()}
    if "randomness.seed" in values or "seed" in values:
        raise UserError(f"`{where}` sets the seed; use `seeds: [0, 1, 2]` in the plan instead")
    return values


def _seeds(seeds: Any) -> tuple[int, ...]:
    fits = isinstance(seeds, Sequence) and not isinstance(seeds, str) and len(seeds) > 0
    if not fits or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UserError(f"`seeds` must be a list of whole numbers like [0, 1, 2], found {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"`seeds` contains duplicates: {seeds!r}")
    return tuple(seeds)


def _check_names(plan: Plan) -> None:
    for name in (plan.name, *(member.name for member in plan.members)):
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(
                f"{name!r} is not a valid folder name: use letters, digits and _ . + -, not starting "
                "with . + or -"
            )
    reserved = {TEACHER, STUDENT, "report"} & {variant.name for variant in plan.variants}
    if reserved:
        raise UserError(f"reserved variant name: {', '.join(reserved)}")
    if sum(variant.recommended for variant in plan.variants) > 1:
        raise UserError("only one variant can be `recommended`")
