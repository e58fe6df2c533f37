"""The commands as functions that return results: `init`, `distill`, `evaluate`, `compare`.

``import mmkd`` offers them as ``mmkd.distill`` and so on, and imports this module on the first call.
Keyword options override the config, like ``--cfg-options``; names may have dots.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from mmkd.project import Project

# Entries of a log row that are neither losses nor metrics.
_NO_CURVE = ("step", "epoch", "iter", "time", "data_time", "eta", "memory", "base_lr")


@dataclass(frozen=True)
class Training:
    """Results of a training.

    Attributes:
        config: the trained config.
        work_dir: folder with all output.
        checkpoint: checkpoint of the last epoch.
        best_checkpoint: checkpoint of the best validation, if the config keeps it (``save_best``).
        metrics: name → value at the last validation; empty if there was none or nothing was detected.
        curves: name → (step, value) in the order of training. Steps are iterations for losses and ``lr``; for
            metrics they follow the config's validation, usually epochs.
        teacher: results of the teacher's training, if it was trained too.
    """

    config: str
    work_dir: Path
    checkpoint: Path
    best_checkpoint: Path | None
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    teacher: Training | None = None


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

    Attributes:
        page: the report, to open in a browser.
        runs: one entry per run, with its metrics.
        summary: one entry per member, with means, deviations and the share of the gap.
        failed: number of failed runs.
    """

    page: Path
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    failed: int


def init(
    project: str | Path,
    data: str | Path,
    *,
    student: str | None = None,
    teacher: str | None = None,
    kind: str | None = None,
) -> Project:
    """Make a project for a data set, as ``mmkd-init`` does.

    Args:
        project: folder to write; it must be new or empty.
        data: folder of a COCO, YOLO or VOC data set, or the ``data.yaml`` of YOLO labels.
        student, teacher: a config like ``mmdet::gfl/gfl_r50_fpn_1x_coco.py``, or a file; by default a pair
            that fits the machine.
        kind: ``coco``, ``yolo`` or ``voc``, if the folder contains several formats.

    Returns:
        The data's facts and the chosen settings; ``lines()`` is the summary that the command prints.

    Raises:
        UserError: the folder is not empty, or training on the data would fail.

    Example:
        >>> project = mmkd.init("my_project", "my_data")  # doctest: +SKIP
        >>> project.data.boxes  # doctest: +SKIP
        {'WBC': 1055, 'RBC': 16965, 'Platelets': 596}
    """
    from mmkd.project import make_project

    with _as_command():
        return make_project(project, data, student, teacher, kind)


def distill(
    *,
    work_dir: str | Path,
    student: str | None = None,
    teacher: str | None = None,
    checkpoint: str | Path | None = None,
    data: str | Path | None = None,
    amp: bool = False,
    resume: bool = False,
    **options: Any,
) -> Training:
    """Train a student with a teacher, in this process.

    With ``data``, ``work_dir`` becomes a project as `init` makes it. Its teacher is trained unless
    ``checkpoint`` gives its weights, then its student is distilled. The project's files name that teacher, so
    ``mmkd-compare work_dir/compare.yaml`` uses it too. Without ``data``, ``student`` is a config with its own
    data: either already distilled, or to be distilled from ``teacher`` and ``checkpoint`` with losses that
    fit the pair, like ``mmkd-train --teacher``.

    Args:
        work_dir: folder for all output; with ``data``, the folder of the project.
        student: the student's config; optional with ``data``.
        teacher: the teacher's config; optional with ``data``, or if the student's config names one.
        checkpoint: the teacher's weights.
        data: folder of a COCO, YOLO or VOC data set.
        amp: whether to train the student in mixed precision.
        resume: whether to continue an interrupted call from ``work_dir``.
        **options: config overrides for all trainings, like ``--cfg-options``.

    Returns:
        Metrics, checkpoints and curves.

    Raises:
        UserError: a problem that the user can fix, with its remedy.
        KeyboardInterrupt: training was stopped; ``resume=True`` continues it.

    Example:
        >>> found = mmkd.distill(  # doctest: +SKIP
        ...     data="my_data", work_dir="work_dirs/cells", **{"train_dataloader.batch_size": 4}
        ... )
        >>> found.checkpoint  # doctest: +SKIP
        PosixPath('work_dirs/cells/work_dirs/kd/epoch_8.pth')
    """
    folder = Path(work_dir)
    if data is None:
        from mmkd.errors import UserError

        if student is None:
            raise UserError(
                "Nothing to train.",
                expected="data='my_data', or student='my_student.py', which sets its own data",
                found="neither",
                remedy="give one of the two",
            )
        words = ["--teacher", str(teacher)] if teacher is not None else []
        words += ["--teacher-checkpoint", str(checkpoint)] if checkpoint is not None else []
        return _trained(student, folder, words, options, amp, resume)
    from mmkd.project import use_teacher

    if not (resume and (folder / "kd.py").is_file()):
        init(folder, data, student=student, teacher=teacher)
    outputs, taught = folder / "work_dirs", None
    if checkpoint is None:
        taught = _trained(str(folder / "teacher.py"), outputs / "teacher", [], options, False, resume)
        checkpoint = taught.checkpoint
    use_teacher(folder, str(checkpoint))
    return _trained(str(folder / "kd.py"), outputs / "kd", [], options, amp, resume, taught)


def evaluate(
    config: str | Path,
    checkpoint: str | Path | None = None,
    *,
    work_dir: str | Path | None = None,
    teacher: bool = False,
    show_dir: str | Path | None = None,
    images: str | Path | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config, as ``mmkd-test`` does.

    Args:
        config: a detector's config; for a distilled config, the student is evaluated.
        checkpoint: the weights; omit it with ``teacher``.
        work_dir: folder for the log; by default ``work_dirs/<config>``.
        teacher: whether to evaluate the teacher that the config names.
        show_dir: folder for pictures of the detections and a GIF of all of them, ``all.gif``.
        images: with ``show_dir``, a folder of unlabelled images to use instead of the test data.
        **options: config overrides, like ``--cfg-options``.

    Returns:
        Metrics by name; empty with ``images``.

    Raises:
        UserError: a problem that the user can fix, with its remedy.

    Example:
        >>> mmkd.evaluate("configs/bccd/kd_auto.py", teacher=True)["coco/bbox_mAP"]  # doctest: +SKIP
        0.55
    """
    from mmkd.cli import parsers
    from mmkd.cli import test as tool

    words = [str(config), *([str(checkpoint)] if checkpoint is not None else [])]
    words += ["--teacher"] if teacher else []
    words += ["--work-dir", str(work_dir)] if work_dir is not None else []
    words += ["--show-dir", str(show_dir)] if show_dir is not None else []
    words += ["--images", str(images)] if images is not None else []
    args = _parsed(parsers.test, words, {**_own_visualizer(str(config)), **options})
    with _as_command():
        return dict(tool.test(args))


def compare(
    plan: str | Path | Sequence[str | Path],
    *,
    work_dir: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    teacher: str | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Train student and variants over several seeds and write the report, as ``mmkd-compare`` does.

    Finished runs are kept: call it again to continue.

    Args:
        plan: a plan file; or configs, first the student, then the distilled ones.
        work_dir: by default ``work_dirs/<name of the plan>``.
        seeds, teacher, checkpoint: only for a list of configs; a plan file has its own.
        **options: config overrides for all runs, like ``--cfg-options``; only for a list of configs.

    Returns:
        The page and its figures.

    Raises:
        UserError: the plan is invalid, an argument is not for a plan file, or no run has results.

    Example:
        >>> found = mmkd.compare("configs/compare/bccd.yaml")  # doctest: +SKIP
        >>> [(one["recipe"], round(one["map_mean"], 3)) for one in found.summary[:2]]  # doctest: +SKIP
        [('teacher', 0.55), ('student', 0.492)]
    """
    from mmkd.cli import compare as tool
    from mmkd.cli import parsers
    from mmkd.errors import UserError

    words = [str(plan)] if isinstance(plan, (str, Path)) else [str(one) for one in plan]
    words += ["--work-dir", str(work_dir)] if work_dir is not None else []
    words += ["--seeds", *map(str, seeds)] if seeds is not None else []
    words += ["--teacher", teacher] if teacher is not None else []
    words += ["--teacher-checkpoint", str(checkpoint)] if checkpoint is not None else []
    args = _parsed(parsers.compare, words, options)
    wrong = tool.misplaced(args)
    if wrong is not None:
        raise UserError(wrong)
    with _as_command():
        failed = tool.compare(args)
        folder = args.work_dir or Path("work_dirs") / tool.plan_of(args).name
    content = json.loads((folder / "report/results.json").read_text(encoding="utf-8"))
    return Comparison(folder / "report/index.html", content["runs"], content["summary"], failed)


def _trained(
    config: str,
    work_dir: Path,
    words: Sequence[str],
    options: Mapping[str, Any],
    amp: bool,
    resume: bool,
    teacher: Training | None = None,
) -> Training:
    from mmengine.runner import find_latest_checkpoint

    from mmkd.cli import parsers
    from mmkd.cli import train as tool
    from mmkd.hooks import TrainingStopped

    words = [config, *words, "--work-dir", str(work_dir), *(["--amp"] if amp else [])]
    words += ["--resume"] if resume else []
    args = _parsed(parsers.train, words, {**_own_visualizer(config), **options})
    with _as_command():
        try:
            tool.train(args)
        except TrainingStopped:
            raise KeyboardInterrupt(f"stopped; use resume=True to continue from {work_dir}") from None
    metrics, curves = _logged(work_dir)
    best = sorted(work_dir.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    return Training(
        config,
        work_dir,
        work_dir / Path(find_latest_checkpoint(str(work_dir))).name,
        best[-1] if best else None,
        metrics,
        curves,
        teacher,
    )


def _own_visualizer(config: str) -> dict[str, str]:
    """A unique visualizer name: mmengine reuses one of the same name, with the first training's work dir."""
    from mmkd.compat import load_config

    try:
        named = "name" in (load_config(config).get("visualizer") or {})
    except Exception:  # the tool reports the problem
        named = False
    return {"visualizer.name": f"visualizer-{uuid4().hex}"} if named else {}


def _logged(work_dir: Path) -> tuple[dict[str, float], dict[str, list[tuple[int, float]]]]:
    """Metrics of the last validation, and all curves."""
    from mmkd.history import logged_rows

    metrics: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in logged_rows(work_dir):
        values = {
            name: float(value)
            for name, value in row.items()
            if name not in _NO_CURVE and isinstance(value, (int, float))
        }
        for name, value in values.items():
            curves.setdefault(name, []).append((int(row.get("step", 0)), value))
        if "loss" not in row:
            metrics = values
    return metrics, curves


def _parsed(
    parser: Callable[[], argparse.ArgumentParser], words: Sequence[str], options: Mapping[str, Any]
) -> argparse.Namespace:
    args = parser().parse_args(list(words))
    args.cfg_options = dict(options) or None
    return args


@contextmanager
def _as_command() -> Iterator[None]:
    """Print little, and raise errors that the commands explain to users as `UserError`."""
    from mmkd.build_errors import explained
    from mmkd.cli.failures import of_the_place
    from mmkd.durable import use_durable_files
    from mmkd.errors import UserError
    from mmkd.terminal import short_output

    use_durable_files()
    try:
        with short_output():
            yield
    except UserError:
        raise
    except Exception as error:
        told = of_the_place(error) or explained(error)
        if told is None:
            raise
        raise (told if isinstance(told, UserError) else UserError(str(told))) from error
