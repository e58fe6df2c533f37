"""Check that each teacher loads, fits the student, and reaches its expected AP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset

from mmkd.datasets import class_names
from mmkd.doctor.agreement import compared, judge, scatter
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.student_runs import behind_student
from mmkd.doctor.teacher_boxes import examine_boxes, gives_boxes
from mmkd.doctor.teacher_order import examine_order
from mmkd.doctor.teacher_pixels import examine_pixels
from mmkd.doctor.teacher_predictions import LoadedTeacher, detect, load_teacher
from mmkd.doctor.teacher_scale import examine_scale
from mmkd.doctor.trial import Trial
from mmkd.doctor.zoo import logged_ap, zoo_ap
from mmkd.registry import MODELS
from mmkd.teachers import is_detector, single_teachers, teacher_entries
from mmkd.teachers.checkpoint import read_checkpoint
from mmkd.teachers.pixels import Renormalizer


def examine_teachers(setup: TrainingSetup) -> Iterator[Finding]:
    """Check each trained teacher in the config, and each that provides boxes."""
    others = teacher_entries(setup.cfg.model.get("teacher"))
    boxes = [(number, entry) for number, entry in enumerate(others) if gives_boxes(entry)]
    for number, entry in boxes:
        yield from collect("teacher", examine_boxes, setup, entry, number)
    if not setup.teachers:
        if len(boxes) == len(others) > 0:
            return
        kind = "none in the config"
        if others:
            average = all("ema" in entry for entry in others)
            kind = "moving average of the student" if average else "not a trained detector: not checked"
        yield Finding.ok("teacher", kind)
        return
    loaded: list[LoadedTeacher] = []
    for number, entry in enumerate(setup.teachers):
        many = (
            f"teacher {number + 1} of {len(setup.teachers)}: {_name(entry)}"
            if len(setup.teachers) > 1
            else None
        )
        if many is not None:
            yield Finding.ok("teacher", many)
        yield from collect("teacher", _examine, setup, entry, loaded)
    yield from collect("teacher and student", _fit, setup, loaded)


def _examine(
    setup: TrainingSetup, entry: Mapping[str, Any], loaded: list[LoadedTeacher]
) -> Iterator[Finding]:
    teacher = load_teacher(entry, setup.device)
    loaded.append(teacher)
    millions = sum(p.numel() for p in teacher.detector.parameters()) / 1e6
    text = f"{type(teacher.detector).__name__}, {millions:.2f} M parameters, "
    if teacher.checkpoint is None:
        yield Finding.warning("teacher", text + "weights random", "set its checkpoint")
        return
    yield Finding.ok("teacher", f"{text}all keys of {teacher.checkpoint} loaded")
    yield from collect("teacher: pixels", _pixels, setup, teacher)
    yield from collect("teacher: AP", _quality, setup, teacher)
    trials: list[Trial] = []
    yield from collect("teacher: diagnosis", _begin, setup, teacher, trials)
    for trial in trials:
        pixels = list(collect("teacher: pixels", examine_pixels, trial))
        scale = list(collect("teacher: scale", examine_scale, trial))
        if trial.adopted and all(finding.level == "ok" for finding in pixels):
            # On a wrong scale, pixels cannot be judged.
            pixels = list(collect("teacher: pixels", examine_pixels, trial))
        yield from [*pixels, *scale]
        yield from collect("teacher: class order", examine_order, trial)


def _begin(setup: TrainingSetup, teacher: LoadedTeacher, trials: list[Trial]) -> Iterator[Finding]:
    trial = Trial(setup, teacher)
    if trial.few:
        trials.append(trial)
    else:
        yield Finding.warning(
            "teacher: diagnosis", f"no objects in {setup.images} images", "increase --images"
        )


def _pixels(setup: TrainingSetup, teacher: LoadedTeacher) -> Iterator[Finding]:
    theirs = MODELS.build({**teacher.preprocessor})
    if not Renormalizer(setup.data_preprocessor(), theirs).is_identity:
        inherits = setup.cfg.model.get("inherit")
        yield Finding.expect(
            not inherits,
            "teacher: pixels",
            "its data preprocessor differs from the student's; pixels are converted exactly",
            f"the student inherits {shortened(inherits or ())} from it, trained on its pixels: use the same "
            "preprocessor for both",
        )


def _quality(setup: TrainingSetup, teacher: LoadedTeacher) -> Iterator[Finding]:
    """Compare its AP on the first validation images with the expected AP."""
    dataset = setup.dataset("val")
    numbers = range(min(setup.images, len(dataset)))
    seen = judge(detect(setup, teacher, numbers), class_names(dataset.metainfo) or ())
    expected, source = _expected(setup, teacher)
    yield compared(seen, len(numbers), expected, source)
    if len(numbers) < len(dataset) and expected is not None:
        yield from behind_student(setup.cfg, expected, source, 0.0)
    else:
        chance = scatter(len(numbers)) if len(numbers) < len(dataset) else 0.0
        yield from behind_student(setup.cfg, seen.ap, f"on {len(numbers)} images", chance)


def _expected(setup: TrainingSetup, teacher: LoadedTeacher) -> tuple[float | None, str]:
    assert teacher.checkpoint is not None
    classes = class_names(setup.dataset("val").metainfo) or ()
    files = [str(cfg.get("ann_file")) for cfg in setup.parts("val")]
    coco = tuple(classes) == CocoDataset.METAINFO["classes"] and all("val2017" in file for file in files)
    known = zoo_ap(teacher.entry.get("config"), teacher.checkpoint) if coco else None
    if known is not None:
        return known[0], f"mmdet's zoo gives {known[1]}"
    logged = logged_ap(read_checkpoint(teacher.checkpoint))
    if logged is not None:
        return logged, "its training logged"
    return None, ""


def _fit(setup: TrainingSetup, loaded: list[LoadedTeacher]) -> Iterator[Finding]:
    if len(loaded) < len(setup.teachers):
        raise NotExamined("a teacher cannot be loaded")
    model = setup.model()
    yield Finding.ok("teacher and student", "levels, strides and priors match in everything the losses read")
    train = setup.dataset("train").metainfo
    model.check_class_names(train)
    own = class_names(train) or ()
    entries = teacher_entries(setup.cfg.model.teacher)
    for entry, teacher in zip(entries, single_teachers(model.teacher)):
        names = teacher.class_names
        if not is_detector(entry) or entry.get("checkpoint", "") is None:
            continue
        if names is None:
            yield Finding.warning(
                "class names",
                f"{_name(entry)} has no class names; assuming the order of the data set",
                "see 'class order' above, which checks its predictions",
            )
        elif not own:
            found = (
                f"the data set has no class names: the student uses the teacher's {len(names)}: "
                f"{shortened(names)}"
            )
            yield Finding.ok("class names", found)
        elif names == own:
            yield Finding.ok("class names", f"{len(own)}, in the same order: {shortened(own)}")
        else:
            yield Finding.ok(
                "class names", f"matched by name among the teacher's {len(names)}: {shortened(own)}"
            )


def _name(entry: Mapping[str, Any]) -> str:
    return Path(str(entry.get("checkpoint") or entry.get("config"))).name
