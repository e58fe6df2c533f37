"""W&B sweep support: report the metric and results, and stop when W&B asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd.datasets import class_names
from mmkd.deployment import write_deployable
from mmkd.errors import UserError
from mmkd.hooks.evaluation_table import EvaluationTable
from mmkd.hooks.stop import StopHook, is_training
from mmkd.registry import HOOKS
from mmkd.teachers import is_detector
from mmkd.teachers.checkpoint import read_checkpoint
from mmkd.visualization import WandbBackend

# Keys in mmengine's message hub, which every checkpoint contains.
BEST, LAST = "best_metrics", "last_validation"


@HOOKS.register_module()
class WandbSweepHook(Hook):
    """Report to W&B what `WandbBackend` does not, and end the run when W&B asks for it.

    - Each validation logs, in one row with the evaluator's own keys, ``val/<name>`` for each
      ``<prefix>/<name>`` (a sweep's ``metric`` is ``val/bbox_mAP_50``), the best value so far as
      ``best/<name>``, ``epoch`` and ``iter``. If mmdet returns no key because nothing was detected, the value
      is 0.
    - The config gets the teacher's facts.
    - A run that is stopped through W&B, or signalled by W&B's agent, ends through `StopHook`. A preempted run
      is marked as such.
    - After training it uploads the best checkpoint as a version of the artifact ``student-<run id>``, reduced
      to the student's weights, with its metrics as metadata; and a table of images with ground truth, teacher
      and student. A run that ends early uploads neither.

    Only the main process communicates with W&B.

    Args:
        checkpoint: upload the best checkpoint, as chosen by ``save_best`` of `CheckpointHook`; without it
            nothing is uploaded.
        num_images: number of images in the table; 0 for no table. With several processes, images that the
            main process evaluates.
        score_threshold: threshold for the table's detections, in [0, 1].
        interval: also upload after every ``interval``-th validation; 0 for only after training.

    Raises:
        UserError: there is no `WandbBackend` or no `StopHook`.
    """

    priority = "NORMAL"  # before LoggerHook, because its values join LoggerHook's row

    def __init__(
        self, checkpoint: bool = True, num_images: int = 8, score_threshold: float = 0.3, interval: int = 0
    ) -> None:
        self.checkpoint = checkpoint
        self.num_images = num_images
        self.score_threshold = score_threshold
        self.interval = interval
        self._table: EvaluationTable | None = None
        self._validations = 0
        self._due = False
        self._uploaded: str | None = None
        self._defined: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Find the hooks and backend it needs, and log the teacher's facts."""
        self._backend = _find(runner.visualizer._vis_backends.values(), WandbBackend, "vis_backends")
        self._stop = _find(runner.hooks, StopHook, "custom_hooks")
        if not is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        teacher = getattr(model, "teacher", None)
        facts = {"student_parameters": sum(p.numel() for p in model.parameters())}
        if teacher is not None:
            facts["teacher"] = teacher.facts
        self._backend.attempt(lambda run: run.config.update(facts, allow_val_change=True))
        if self.num_images > 0:
            config = runner.cfg.model.get("teacher") if teacher is not None else None
            one = (
                isinstance(config, dict) and not {"config", "type"}.isdisjoint(config) and is_detector(config)
            )
            self._table = EvaluationTable(
                self.num_images,
                self.score_threshold,
                class_names(runner.visualizer.dataset_meta) or (),
                config if one else None,  # with several teachers the table shows only the student
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Upload after a validation, once `CheckpointHook` has decided whether it was the best."""
        if self._due:
            self._due = False
            self._upload(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Pass a stop from W&B's thread to the training's."""
        if self._backend.stopped.is_set():
            self._stop.request(0, "stopped through W&B")

    def before_val_epoch(self, runner: Runner) -> None:
        """Start a new table."""
        if self._table is not None:
            self._table.begin()

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Collect images for the table."""
        if not is_training(runner):
            return
        if self._backend.stopped.is_set():
            self._stop.request(0, "stopped through W&B")
        if self._table is not None and outputs is not None:
            try:
                self._table.collect(data_batch, outputs)
            except Exception as error:
                self._table = None
                runner.logger.warning(f"cannot create the W&B table ({type(error).__name__}: {error})")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the validation under the names that sweeps use."""
        if not (is_training(runner) and is_main_process()):
            return
        values = values_by_name(metrics or {}, runner.val_evaluator.metrics)
        best = dict(runner.message_hub.get_info(BEST, None) or {})
        for name, value in values.items():
            better = min if "loss" in name else max
            best[name] = better(value, best.get(name, value))
        runner.message_hub.update_info(BEST, best)
        at = {"epoch": runner.epoch, "iter": runner.iter}
        runner.message_hub.update_info(LAST, {"metrics": values, **at})
        row = {
            f"{kind}/{n}": v for kind, named in (("val", values), ("best", best)) for n, v in named.items()
        }
        step = "epoch" if isinstance(runner.train_loop, EpochBasedTrainLoop) else "iter"
        new = {*row, *(metrics or {})} - self._defined
        self._defined |= new
        self._backend.attempt(lambda run: [run.define_metric(key, step_metric=step) for key in new])
        # LoggerHook's row completes it.
        self._backend.attempt(lambda run: run.log({**row, **at}, commit=False))
        self._validations += 1
        self._due = bool(self.interval) and self._validations % self.interval == 0

    def after_train(self, runner: Runner) -> None:
        """Upload the checkpoint and the table."""
        if is_main_process():
            self._upload(runner)

    def after_run(self, runner: Runner) -> None:
        """Tell W&B how the run ended; LoggerHook then closes it."""
        code = self._stop.exit_code if hasattr(self, "_stop") else None
        if code and is_main_process():
            self._backend.attempt(lambda run: run.mark_preempting())
            self._backend.exit_code = code

    def _upload(self, runner: Runner) -> None:
        """Upload; failure causes a warning and never stops training."""
        for wanted, upload in (
            (self._table is not None, self._upload_table),
            (self.checkpoint, self._upload_checkpoint),
        ):
            try:
                if wanted:
                    upload(runner)
            except Exception as error:
                runner.logger.warning(f"not uploaded to W&B ({type(error).__name__}: {error})")

    def _upload_table(self, _: Runner) -> None:
        assert self._table is not None
        if self._table.examples:
            self._backend.run.log({"evaluation": self._table.build()})

    def _upload_checkpoint(self, runner: Runner) -> None:
        import wandb

        saver = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        best = getattr(saver, "best_ckpt_path", None)
        if best is None or best == self._uploaded:
            return
        self._uploaded = best
        file = Path(runner.work_dir) / "student_best.pth"
        write_deployable(best, file, half=False)
        run = self._backend.run
        # None if the best checkpoint is older than this hook in the config.
        validation = read_checkpoint(best)["message_hub"]["runtime_info"].get(LAST)
        metadata = {**(validation or {}), "checkpoint": Path(best).name, "config": runner.cfg.filename}
        artifact = wandb.Artifact(f"student-{run.id}", type="model", metadata=metadata)
        artifact.add_file(str(file))
        run.log_artifact(artifact, aliases=["best"])


def values_by_name(metrics: Mapping[str, Any], evaluators: Iterable[Any]) -> dict[str, float]:
    """A validation's values without the evaluator's prefix.

    Args:
        metrics: ``<prefix>/<name>`` → value, from the evaluators.
        evaluators: the validation's mmengine metrics.

    Returns:
        ``<name>`` → value. If two evaluators share a name, the first one's value is used. 0 for values that a
        `CocoMetric` omitted because nothing was detected.
    """
    values: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0:
            values.setdefault(key.rpartition("/")[2], float(value))
    for evaluator in evaluators:
        found = any(key.startswith(f"{evaluator.prefix}/") for key in metrics)
        if isinstance(evaluator, CocoMetric) and not found:
            for kind in (kind for kind in evaluator.metrics if kind in ("bbox", "segm")):
                for item in evaluator.metric_items or ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"):
                    values.setdefault(f"{kind}_{item}", 0.0)
    return values


def _find(candidates: Iterable[Any], kind: type, where: str) -> Any:
    candidates = list(candidates)
    for candidate in candidates:
        if isinstance(candidate, kind):
            return candidate
    raise UserError(
        f"WandbSweepHook needs {kind.__name__}.",
        expected=f"dict(type='{kind.__name__}') in {where}",
        found=", ".join(type(candidate).__name__ for candidate in candidates),
        remedy="add it, or let `tools/train.py --wandb` add both",
    )
