"""Converts ``teacher=dict(…)`` to a model config and a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.models.detectors.kd_one_stage import KnowledgeDistillationSingleStageDetector
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS

from mmkd.compat import config_of
from mmkd.errors import UserError, check_options, naming
from mmkd.functional.checks import check_whole
from mmkd.registry import MODELS, TEACHERS, class_of, is_kind
from mmkd.teachers.protocol import Teacher

DISTILLER, DISTILLER_OF_ANY = "KDSingleStageDetector", "KDDetector"
OF_EVERY_TEACHER = ("cache", "levels", "class_map", "every")
OPTIONS = ("precision", "compile", "own_stream", *OF_EVERY_TEACHER)
# If ``teacher`` has one of these keys, it is a single teacher.
_OF_ONE = {"config", "type", "ema", "checkpoint", "predictions", *OPTIONS}


def is_named(teacher: Any) -> bool:
    """Whether ``teacher`` is a dict of named teachers, from which each loss names one."""
    return (
        isinstance(teacher, Mapping)
        and bool(teacher)
        and not _OF_ONE & set(teacher)
        and any(isinstance(entry, (Mapping, list, tuple)) for entry in teacher.values())
    )


def teacher_entries(teacher: Any) -> list[Mapping[str, Any]]:
    """The entries of all single teachers in ``teacher``: one teacher, a list, or a dict by name.

    Args:
        teacher: the entry of the model config; ``None`` gives an empty list.
    """
    if isinstance(teacher, (list, tuple)):
        return [single for entry in teacher for single in teacher_entries(entry)]
    if is_named(teacher):
        return [single for entry in teacher.values() for single in teacher_entries(entry)]
    return [teacher] if isinstance(teacher, Mapping) else []


def asked_every(teacher: Any, asks: Mapping[str, str], losses: Sequence[str]) -> dict[str, int]:
    """For each loss that is not computed in all iterations, in every how many its teacher is asked.

    Args:
        teacher: the entry of the model config.
        asks: the name of the teacher per loss; empty for one teacher.
        losses: the names of the losses.

    Raises:
        UserError: ``every`` is not a whole number ≥ 1, or differs between teachers that are averaged.
    """
    found = {}
    for loss in losses:
        entries = teacher_entries(teacher[asks[loss]] if asks else teacher)
        counts = [entry.get("every", 1) for entry in entries]
        with naming("teacher."):
            for every in counts:
                check_whole(1, every=every)
        if len(set(counts)) > 1:
            raise UserError(
                "Teachers that are averaged must be asked in the same iterations.",
                expected="the same `every` in all entries of the list",
                found=", ".join(map(str, counts)),
                remedy="set one number in all of them",
            )
        if counts and counts[0] > 1:
            found[loss] = counts[0]
    return found


def registered_class(teacher: Any) -> type[Teacher] | None:
    """The class in `mmkd.registry.TEACHERS` for an entry's ``type``; ``None`` if not registered.

    Raises:
        UserError: it is not a subclass of `Teacher`.
    """
    found: Any = None
    if isinstance(teacher, Mapping):
        of_file = "predictions" in teacher and "type" not in teacher
        found = TEACHERS.get("PredictionsTeacher") if of_file else class_of(teacher, TEACHERS)
    if found not in TEACHERS.module_dict.values():
        return None
    if not issubclass(found, Teacher):
        raise UserError(
            f"{found.__name__} is registered as a teacher but is not one.",
            expected="a subclass of mmkd.teachers.Teacher",
            found=", ".join(kind.__name__ for kind in found.__mro__),
            remedy="make it a subclass with `spec` and `answer`",
        )
    kind: type[Teacher] = found
    return kind


def is_detector(teacher: Mapping[str, Any]) -> bool:
    """Whether a single teacher's entry is a trained detector, with its own config and weights."""
    return "ema" not in teacher and registered_class(teacher) is None


def teacher_model_and_checkpoint(teacher: Mapping[str, Any]) -> tuple[ConfigDict, str | None]:
    """Resolve the ``teacher`` entry of a `KDSingleStageDetector`.

    Args:
        teacher: ``dict(config=…, checkpoint=…)``, where ``config`` is a path, a
            ``package::`` name or a dict (a whole config or its ``model``), or a
            model dict with ``init_cfg=dict(type='Pretrained', checkpoint=…)``.

    Returns:
        The model config, without any initialisation, and the checkpoint's path or URL; ``None`` only for an
        explicit ``checkpoint=None``.

    Raises:
        UserError: the entry has another form, the config cannot be read, or there is no checkpoint.
    """
    if not isinstance(teacher, Mapping) or not ("config" in teacher or "type" in teacher):
        found = f"keys {', '.join(map(str, teacher))}" if isinstance(teacher, Mapping) else repr(teacher)
        if isinstance(teacher, (list, tuple)):
            found = f"a list of {len(teacher)}"
        raise UserError(
            "`teacher` has no config.",
            expected="teacher=dict(config=…, checkpoint=…)",
            found=found,
            remedy="give the teacher's config file and checkpoint",
        )
    kind = registered_class(teacher)
    if kind is not None:
        raise UserError(
            f"The teacher {kind.__name__} is not an MMDetection detector.",
            expected="teacher=dict(config=…, checkpoint=…)",
            found=f"teacher=dict(type='{kind.__name__}', …)",
            remedy="use it in training only: this function loads detector weights",
        )
    if "type" in teacher:
        teacher = {"config": {"model": dict(teacher)}}
    check_options("teacher", teacher, ["config", "checkpoint", *OPTIONS])
    model = _read_model(teacher["config"])
    from_init = _pop_pretrained(model)
    if "checkpoint" not in teacher and from_init is None:
        raise UserError(
            "The teacher has no checkpoint: its weights would be random.",
            expected="teacher=dict(config=…, checkpoint=<path or URL>)",
            found="no `checkpoint`",
            remedy="set the trained weights, or checkpoint=None if you want random weights",
        )
    # mmdet's LD and LAD bring their own teacher, which is ignored.
    model = _without_teacher(plain_detector(model), KnowledgeDistillationSingleStageDetector)
    return model, teacher.get("checkpoint", from_init)


def plain_detector(model: Mapping[str, Any]) -> ConfigDict:
    """The model config of a stock detector, without everything that belongs to mmkd.

    Args:
        model: any model config; for `KDSingleStageDetector` or `KDDetector`, its student is returned.
    """
    plain = _without_teacher(model, MODELS.get(DISTILLER))
    if is_kind(plain, MODELS.get(DISTILLER_OF_ANY)):
        student = plain.get("student")
        if isinstance(student, str) and "." not in student and "." in str(plain.type):
            student = f"mmdet.{student}"  # a bare name cannot be resolved without a default scope
        for key in set(plain) & set(inspect.signature(MODELS.get(DISTILLER)).parameters):
            del plain[key]
        plain.type = student
    return plain


def distills(model: Mapping[str, Any]) -> bool:
    """Whether a model config describes a student with its teacher."""
    return is_kind(model, MODELS.get(DISTILLER), MODELS.get(DISTILLER_OF_ANY))


def _without_teacher(model: Mapping[str, Any], *kinds: type) -> ConfigDict:
    """Convert a config of one of these kinds, which bring a teacher, to its single-stage detector."""
    plain = ConfigDict(model)
    if is_kind(plain, *kinds):
        for key in set(plain) - {"type", "_scope_", *inspect.signature(SingleStageDetector).parameters}:
            del plain[key]
        # A config with bare names uses mmdet's scope.
        bare = isinstance(plain.type, str) and "." not in plain.type
        plain.type = "SingleStageDetector" if bare else "mmdet.SingleStageDetector"
    return plain


def _read_model(config: Any) -> ConfigDict:
    if isinstance(config, (str, Path)):
        config = config_of("the teacher", config)
    if not isinstance(config, Mapping | Config):
        raise UserError(
            "teacher.config is not a config.",
            expected="a path, a name like 'mmdet::atss/atss_r101_fpn_1x_coco.py', or a dict",
            found=repr(config),
            remedy="use the config that the teacher was trained with",
        )
    model = config.get("model", config)
    if not isinstance(model, Mapping) or "type" not in model:
        raise UserError(
            "The teacher's config has no model.",
            expected="a config with `model=dict(type=…)`",
            found=f"keys {', '.join(map(str, config))}",
            remedy="use the config that the teacher was trained with",
        )
    model = copy.deepcopy(ConfigDict(model))  # detectors change it when they are built
    if config.get("data_preprocessor") is not None:  # the Runner puts it there
        model.setdefault("data_preprocessor", config["data_preprocessor"])
    return model


def _pop_pretrained(model: ConfigDict) -> str | None:
    """Remove the initialisation; returns the checkpoint that it named."""
    init_cfg = model.pop("init_cfg", None)
    if isinstance(init_cfg, Mapping) and class_of(init_cfg, WEIGHT_INITIALIZERS) is PretrainedInit:
        return str(init_cfg.get("checkpoint"))
    return None
