"""`KDSingleStageDetector`: where teacher, head and losses meet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from mmdet.models.detectors import BaseDetector, SingleStageDetector
from mmengine.logging import MessageHub
from torch import Tensor, nn

from mmkd.detectors.assigned import (
    assigned_labels,
    check_labels,
    check_loss,
    check_quality,
    scored_priors,
)
from mmkd.detectors.checkpointing import watch_checkpointed
from mmkd.detectors.finite import FiniteCheck, in_float16
from mmkd.detectors.observe import Observation, observe
from mmkd.errors import UserError, check_options, user_error
from mmkd.heads import adapter_for, check_head_type
from mmkd.heads.towers import Towers, check_towers, record_towers, with_towers
from mmkd.losses import DistillLoss, build_losses
from mmkd.registry import MODELS
from mmkd.sharding import check_whole
from mmkd.structures import DenseOutputs, DistillContext, Need
from mmkd.teachers import (
    asked_by,
    build_teachers,
    check_class_map,
    check_inherit,
    find_classes,
    inherit_weights,
    separate,
    single_teachers,
    teacher_entries,
)


@dataclass(frozen=True)
class _Step:
    """What is under way while the student computes its own losses."""

    asked: list[tuple[Any, list[str]]]
    answers: list[Callable[[], DenseOutputs]]
    needs: frozenset[Need]
    seen: Observation
    towers: Towers
    watching: ExitStack

    @torch.compiler.disable
    def close(self) -> None:
        """Watch no longer."""
        self.watching.close()


@MODELS.register_module()
class KDSingleStageDetector(SingleStageDetector):
    """A single-stage detector that learns from a frozen teacher as well.

    The student's path is mmdet's own. Its losses come first in the result,
    unchanged; each distillation loss is added as ``loss_kd_<name>``. The
    teacher is in none of the parameters, state or checkpoints. ``predict`` is
    that of the student alone.

    Args:
        teacher: ``dict(config=…, checkpoint=…)``, see `mmkd.teachers.teacher_model_and_checkpoint`; a list
            of such teachers, whose answers are averaged; ``dict(ema=dict(momentum=…))``, the average of the
            student's own weights over training; or a dict of these by name.
        distill: name → config of a distillation loss; at least one. With teachers by name its ``teacher``
            names the one that it learns from.
        inherit: names of parts of the student, like ``['neck', 'bbox_head']``, that begin with the teacher's
            weights where names and shapes agree; see `inherit_weights`. Of several teachers it is the first
            one's. A checkpoint that is loaded or resumed from replaces them.
        task_loss_weight: factor ≥ 0 of the student's own losses. Hinton's
            ``α·T²·KL + (1 − α)·CE`` is ``loss_weight=α, task_loss_weight=1 − α``.
        **student: the arguments of `SingleStageDetector`.

    Raises:
        UserError: a part of ``distill`` or ``teacher`` is wrong, or teacher and
            student do not fit each other.
    """

    def __init__(
        self,
        *,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        distill: Mapping[str, Any] | None = None,
        task_loss_weight: float = 1.0,
        inherit: Sequence[str] = (),
        **student: Any,
    ) -> None:
        kinds = (KDSingleStageDetector, SingleStageDetector)
        valid = {name for kind in kinds for name in inspect.signature(kind).parameters} - {"student"}
        _check_kind(set(student) - valid)
        check_options("KDSingleStageDetector", student, valid)
        check_head_type(student, "student")
        super().__init__(**student)
        if not isinstance(task_loss_weight, (int, float)) or not 0 <= task_loss_weight < float("inf"):
            raise UserError(f"task_loss_weight must be a number ≥ 0, found {task_loss_weight!r}")
        self.task_loss_weight = task_loss_weight
        losses, asks = separate(teacher, distill)
        self.distill = build_losses(losses, "distill")
        check_loss(self.bbox_head)
        needs = {name: term.asks - term.of_student for name, term in self.terms.items()}
        self.teacher = build_teachers(teacher, asks, needs, student=self)
        self._classes_checked = self._layers_checked = False
        self._finite = FiniteCheck()
        self._inherit = check_inherit(inherit, self)
        self._checkpoint = self.teacher.facts["checkpoint"]
        if self._inherit and self._checkpoint is None:
            raise UserError("inherit needs a teacher with a checkpoint, found checkpoint=None")
        self._class_maps = [check_class_map(entry.get("class_map")) for entry in teacher_entries(teacher)]
        own = adapter_for(self.bbox_head).spec(self.bbox_head)
        # The student begins with the random numbers that it would have had alone.
        with torch.random.fork_rng(devices=[]):
            for asked, names in asked_by(self.teacher, list(self.terms)):
                for term in (self.terms[name] for name in names):
                    term.check(asked.shared(own), asked.spec)
                    term.adapt(asked.shared(own), asked.spec)
                    if "towers" in term.needs:
                        check_towers(self.bbox_head, term.tower_layers, "student")
                        check_towers(asked.head, term.tower_layers, "teacher")
        read = frozenset[Need]().union(*(term.asks for term in self.terms.values() if term.loss_weight > 0))
        if read & {"labels", "label_weights"}:
            check_labels(self.bbox_head, read)
        if "quality_targets" in read:
            check_quality(self.bbox_head)
        self._register_state_dict_hook(_leave_out_losses)
        self._register_load_state_dict_pre_hook(self._put_in_losses)

    def init_weights(self) -> None:
        """As the student alone; what it inherits comes last."""
        super().init_weights()
        if self._inherit:
            inherit_weights(self, self._inherit, self._checkpoint)

    @property
    def terms(self) -> dict[str, DistillLoss]:
        """The distillation losses by name."""
        return cast(dict[str, DistillLoss], dict(self.distill.items()))

    @torch.compiler.disable(recursive=False)  # it compiles the student's part as the student alone
    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
        """The student's own losses and ``loss_kd_<name>`` for each term.

        Args:
            batch_inputs: B×C×H×W, normalised and padded.
            batch_data_samples: mmdet's data samples.
        """
        step = self._begin(batch_inputs, batch_data_samples)
        try:
            losses = super().loss(batch_inputs, batch_data_samples)
        finally:
            step.close()
        return self._add_terms(losses, step, batch_inputs, batch_data_samples)

    @torch.compiler.disable
    def _begin(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> _Step:
        """Ask the teachers, and watch the student."""
        if not self._classes_checked:  # the Runner has made the data set known by now
            check_whole(self)
            self.check_class_names(MessageHub.get_current_instance().get_info("dataset_meta", None))
            self._classes_checked = True
        if in_float16(
            batch_inputs.device
        ):  # for DistributedDataParallel, which calls no `train_step` of ours
            self._finite.scaled = True
        self._finite.remember(self)
        active = [name for name, term in self.terms.items() if term.loss_weight > 0]
        asked = asked_by(self.teacher, active)  # on a stream of its own a teacher runs beside the student
        answers = [teacher.ask(batch_inputs, batch_data_samples) for teacher, _ in asked]
        needs = frozenset[Need]().union(*(self.terms[name].asks for name in active))
        towers: Towers = {}
        with ExitStack() as watching:
            asks_labels = needs & {"labels", "label_weights"}
            labels = adapter_for(self.bbox_head).label_losses if asks_labels else ()
            quality = "loss_centerness" if "quality_targets" in needs else None
            seen = watching.enter_context(observe(self.bbox_head, labels=labels, quality=quality))
            if not self._layers_checked:
                watching.enter_context(watch_checkpointed(self))
            if "towers" in needs:
                towers = watching.enter_context(record_towers(self.bbox_head))
            return _Step(asked, answers, needs, seen, towers, watching.pop_all())

    @torch.compiler.disable
    def _add_terms(
        self, losses: dict[str, Any], step: _Step, batch_inputs: Tensor, batch_data_samples: list[Any]
    ) -> dict[str, Any]:
        """Weigh the student's own losses, and add the terms."""
        self._layers_checked = self._layers_checked or self.training
        if self.task_loss_weight != 1:
            losses = {key: self._weigh(key, value) for key, value in losses.items()}
        if step.asked:
            student, context = self._read(step.seen, batch_data_samples, step.needs)
            student = with_towers(student, step.towers)
        values: dict[str, Tensor] = {}
        for (teacher, names), answer in zip(step.asked, step.answers):
            taught, own = answer(), teacher.shared(student)
            _check_same_maps(own, taught)
            facing = replace(context, through=teacher.through, crossed=teacher.crossed)
            if taught.known_N is not None:
                facing = replace(facing, valid_N=facing.valid_N & taught.known_N, known_N=taught.known_N)
            for name in names:
                term = self.terms[name]
                values[name] = term(own, taught, facing.counting(term.valid))
        for name, term in self.terms.items():
            losses[f"loss_kd_{name}"] = values[name] if name in values else _nothing(term, batch_inputs)
        return losses

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """mmengine's own."""
        self._finite.look_at(optim_wrapper)
        log_vars: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        return log_vars

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, and stop before a non-finite one reaches the weights; see `FiniteCheck`.

        Raises:
            UserError: the sum is not finite, and no loss scaler leaves the step out.
        """
        total, log_vars = super().parse_losses(losses)
        self._finite(total, log_vars)
        return total, log_vars

    def _read(
        self, seen: Observation, data_samples: list[Any], needs: frozenset[Need]
    ) -> tuple[DenseOutputs, DistillContext]:
        assert len(seen.raw) == 1, "a dense head runs once per loss"
        head, adapter = self.bbox_head, adapter_for(self.bbox_head)
        everything: frozenset[Need] = frozenset({"feats", "cls_logits", "bbox_pred", "extra"})
        student = adapter.outputs(head, seen.feats[0], seen.raw[0], everything)
        if "boxes" in needs:
            student = replace(student, boxes=adapter.boxes(head, student))
        assert student.cls_logits is not None
        image_shapes = [sample.img_shape for sample in data_samples]
        padded = [getattr(sample, "pad_shape", sample.img_shape) for sample in data_samples]
        context = DistillContext(
            valid_N=adapter.valid_priors(head, student.cls_logits, image_shapes),
            padded_N=adapter.valid_priors(head, student.cls_logits, padded) if "padding" in needs else None,
            scored_N=scored_priors(head, seen, student) if "label_weights" in needs else None,
            quality_sum=seen.quality_sum(student.cls_logits[0]) if "quality_targets" in needs else None,
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=assigned_labels(head, seen, student) if "labels" in needs else None,
        )
        return student, context

    def _weigh(self, key: str, value: Any) -> Any:
        if "loss" not in key:  # mmengine sums the keys that contain it; others are only reported
            return value
        if isinstance(value, Tensor):
            return value * self.task_loss_weight
        return [part * self.task_loss_weight for part in value]

    def check_class_names(self, dataset_meta: Any) -> None:
        """Find a data set's classes among those in each teacher's checkpoint, by name.

        Raises:
            UserError: a teacher does not know one of them.
        """
        for teacher, class_map in zip(single_teachers(self.teacher), self._class_maps):
            find_classes(teacher, class_map, dataset_meta)

    def _put_in_losses(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """A checkpoint of the student says nothing of the losses' own layers: they stay as they are."""
        for name, value in self.distill.state_dict(prefix=f"{prefix}distill.").items():
            state_dict.setdefault(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        self.teacher.apply_(fn)
        return super()._apply(fn, *args, **kwargs)


def _check_kind(unknown: set[str]) -> None:
    """Raise `UserError` if options are those of detectors of another kind, like ``roi_head``."""
    others = {
        name: unknown & {option for cls in kind.__mro__ for option in inspect.signature(cls).parameters}
        for name, kind in MODELS.module_dict.items()
        if isinstance(kind, type)
        and issubclass(kind, BaseDetector)
        and not issubclass(kind, SingleStageDetector)
    }
    most = max(map(len, others.values()))
    if not most:
        return
    names = [name for name, options in others.items() if len(options) == most]
    raise user_error(
        "KDSingleStageDetector does not support this student: it is no single-stage detector.",
        expected="a student of backbone, neck and dense bbox_head (ATSS, RetinaNet, GFL, FCOS, …)",
        found=f"{', '.join(sorted(others[names[0]]))}, as in {', '.join(names[:4])}"
        + (", …" if len(names) > 4 else ""),
        remedy="choose a single-stage student; a detector of any kind can be its teacher, with losses on "
        "features alone (PKDLoss, CWDLoss, …)",
    )


def _leave_out_losses(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}distill.")]:
        del state_dict[name]


def _nothing(term: nn.Module, inputs: Tensor) -> Tensor:
    """Zero; with a gradient of zero for the term's own layers, which DistributedDataParallel waits for."""
    return sum((parameter.sum() * 0 for parameter in term.parameters()), inputs.new_zeros(()))


def _check_same_maps(student: DenseOutputs, teacher: DenseOutputs) -> None:
    sizes_s = [tuple(level.shape[-2:]) for level in student.feats]
    sizes_t = [tuple(level.shape[-2:]) for level in teacher.feats]
    if sizes_s != sizes_t:
        raise user_error(
            "Teacher and student give feature maps of different sizes for the same images.",
            expected=f"{sizes_s} (the student's)",
            found=f"{sizes_t} (the teacher's)",
            remedy="set data_preprocessor.pad_size_divisor to a multiple of both backbones' largest stride",
        )
