"""Make a project: inspect the data, choose settings, write the files, and check that they build."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmkd.compat import config_of, load_config
from mmkd.detectors.recipe import recommended
from mmkd.durable import write_file
from mmkd.errors import UserError, type_of
from mmkd.project import configs, plans
from mmkd.project.code import code
from mmkd.project.configs import Part
from mmkd.project.dataset import DataSet, read_dataset
from mmkd.project.fit import Fit, Machine, fit, this_machine
from mmkd.registry import is_kind, name_of
from mmkd.teachers import plain_detector
from mmkd.terminal import silence

STOCK = "mmdet::atss/atss_r50_fpn_1x_coco.py"


@dataclass(frozen=True)
class Project:
    """A project that was made.

    Attributes:
        folder: the project's folder.
        data: facts about the data set.
        machine: the machine that the settings fit.
        fit: the settings and their reasons.
        teacher, student: descriptions of the two, in words.
        losses: the distillation losses, by name and type.
    """

    folder: Path
    data: DataSet
    machine: Machine
    fit: Fit
    teacher: str
    student: str
    losses: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Summary for a terminal: the data, the chosen settings with reasons, and the next commands."""
        data, fit = self.data, self.fit
        kind = {"coco": "COCO", "yolo": "YOLO labels", "voc": "VOC"}[data.kind]
        yield f"{data.root}: {kind}" + ("" if data.kind == "coco" else ", converted to COCO JSON")
        for name, split in data.splits.items():
            yield f"  {name:<9} {split.image_count} images, {split.box_count} boxes   {split.annotations}"
        if data.made_val:
            yield "            no val split found: every fifth image, chosen by the hash of its name"
        yield f"  classes   {', '.join(f'{name} {count}' for name, count in data.boxes.items())}"
        low, middle, high = (round(part * fit.side.value) for part in data.object_sizes)
        yield f"  images    longest side {data.longest_side} px (median)"
        yield f"  objects   {low} to {high} px, half of them up to {middle} px, at the chosen size"
        yield from (f"  note      {remark}" for remark in data.remarks)
        yield f"machine     {self.machine.name}"
        yield f"teacher     {self.teacher}"
        yield f"student     {self.student}"
        yield f"distilled   with {', '.join(self.losses)}"
        for name, setting in (
            ("size", fit.side),
            ("anchors", fit.anchor_scale),
            ("batch", fit.batch),
            ("epochs", fit.teacher_epochs),
        ):
            also = f" (student {fit.student_epochs.value})" if name == "epochs" else ""
            yield f"{name:<11} {setting.value}{also}: {setting.why}"
        yield ""
        yield f"{self.folder}/: teacher.py, student.py, kd.py, compare.yaml, sweep.yaml, README.md. Next:"
        yield from (f"  {command}" for command in plans.commands_of(self.folder, fit))


def make_project(
    project: str | Path,
    data: str | Path,
    student: str | None = None,
    teacher: str | None = None,
    kind: str | None = None,
    machine: Machine | None = None,
) -> Project:
    """Write configs, a comparison and a sweep for a data set.

    Without a GPU, the default pair is two narrow ATSS detectors that train from scratch within minutes.
    With a GPU, or if one of the two is given, the defaults are stock ATSS detectors: ResNet-50 with COCO
    weights as the teacher, ResNet-18 as the student. The project is written completely, or not at all if
    something does not build.

    Args:
        project: folder to write; it must be new or empty. The project's files refer to it and to the data as
            given here, so run the commands from the same working directory.
        data: folder of a COCO, YOLO or VOC data set, or the ``data.yaml`` of YOLO labels.
        student, teacher: a stock config like ``mmdet::gfl/gfl_r50_fpn_1x_coco.py``, or a config file.
        kind: ``coco``, ``yolo`` or ``voc``, if the folder contains several formats.
        machine: the machine to train on; by default this one.

    Raises:
        UserError: the folder is not empty, training on the data would fail, or the detectors do not fit.
    """
    folder = Path(project)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not empty.",
            expected="a new folder for the project",
            found="a file" if not folder.is_dir() else ", ".join(sorted(os.listdir(folder))[:8]),
            remedy="choose another one; nothing was changed",
        )
    machine = machine or this_machine()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}.",
            expected="a writable parent folder",
            found=error.strerror or str(error),
            remedy="choose another place",
        ) from error
    try:
        made = _write(folder, own, read_dataset(data, folder, own, kind), student, teacher, machine)
        own.chmod(0o755)  # only its owner can read a temporary folder
        if folder.exists():
            folder.rmdir()
        own.rename(folder)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    return made


def use_teacher(project: Path, checkpoint: str) -> None:
    """Name another checkpoint of the teacher in ``kd.py`` and ``compare.yaml``.

    Args:
        project: a project's folder.
        checkpoint: path or URL of the weights.
    """
    before = load_config(project / "kd.py").model.teacher.checkpoint
    # First the file that does not say what to replace, in case of an interruption.
    for name, written in (("compare.yaml", plans.checkpoint_line), ("kd.py", code)):
        text = (project / name).read_text(encoding="utf-8")
        write_file(project / name, text.replace(written(before), written(checkpoint)).encode())


def _write(
    folder: Path, own: Path, data: DataSet, student: str | None, teacher: str | None, machine: Machine
) -> Project:
    init_default_scope("mmdet")
    stock = machine.device == "cuda" or student is not None or teacher is not None
    taught, learner = _parts(folder, stock, student, teacher)
    settings = fit(data, machine, pretrained=bool(taught.weights))
    files = {
        "teacher.py": configs.teacher_text(taught, data, settings, folder),
        "student.py": configs.student_text(learner, data, settings, folder),
    }
    for name, text in files.items():
        (own / name).write_text(text, encoding="utf-8")
    models = {name: load_config(own / name).model for name in files}
    entry = {"config": {"model": models["teacher.py"]}, "checkpoint": None}
    with silence():  # this teacher has no weights yet
        recipe = recommended(models["student.py"], entry, data.classes)
    if "teacher" in recipe:
        recipe["teacher"] = {"levels": recipe["teacher"]["levels"]}
    rate = configs.learning_rate(learner.stock, settings.batch.value).value
    rest = {
        "kd.py": configs.kd_text(name_of(models["student.py"].type), recipe, settings, folder),
        "compare.yaml": plans.compare_text(folder, settings, data),
        "sweep.yaml": plans.sweep_text(folder, recipe, rate),
        "README.md": plans.readme_text(folder, settings),
    }
    for name, text in rest.items():
        (own / name).write_text(text, encoding="utf-8")
    load_config(own / "kd.py")
    losses = tuple(f"{name} ({loss['type']})" for name, loss in recipe["distill"].items())
    return Project(folder, data, machine, settings, taught.about, learner.about, losses)


def _parts(folder: Path, stock: bool, student: str | None, teacher: str | None) -> tuple[Part, Part]:
    if not stock:
        return configs.compact_teacher(), configs.compact_student()
    taught = _named(teacher or STOCK, folder, "teacher")
    if student is not None:
        return taught, _named(student, folder, "student")
    if teacher is None:
        return taught, configs.smaller_backbone(None, taught.stock)
    own = _named(STOCK, folder, "student")
    return taught, configs.smaller_backbone(own.base, own.stock)


def _named(name: str, folder: Path, role: str) -> Part:
    """A teacher or student from a stock config or the user's file."""
    cfg = config_of(f"the {role}", name)
    if "model" not in cfg or not is_kind(cfg.model, BaseDetector):
        raise UserError(
            f"The config of the {role} has no detector.",
            expected="a detector of MMDetection",
            found=f"model.type={type_of(cfg.model)}" if "model" in cfg else "no model",
            remedy=f"choose another --{role}",
        )
    cfg.model = plain_detector(cfg.model)
    base = name if "::" in name else Path(os.path.relpath(name, folder)).as_posix()
    weights = _weights(name) if role == "teacher" else ""
    about = (
        f"{name.rpartition('::')[2]}, {'from COCO weights' if weights else 'initialised as in its config'}"
    )
    return Part(about, (base,), {}, cfg, weights)


def _weights(name: str) -> str:
    """The zoo's weights for a stock config; ``load_from`` of a config file."""
    if "::" not in name:
        return str(Config.fromfile(name).get("load_from") or "")
    try:
        return str(get_config(name, pretrained=True).model_path)
    except Exception:  # the zoo has no weights for it
        return ""
