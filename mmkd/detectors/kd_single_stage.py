"""`KDSingleStageDetector`: where teacher, head and losses meet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from mmkd.detectors.observe import Observation, observe
from mmkd.errors import UserError, check_options, user_error
from mmkd.heads import adapter_for, check_head_type
from mmkd.heads.towers import Towers, check_towers, record_towers, with_towers
from mmkd.losses import DistillLoss, build_losses
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need
from mmkd.teachers import build_teacher, check_class_map, check_inherit, inherit_weights


@MODELS.register_module()
class KDSingleStageDetector(SingleStageDetector):
    """A single-stage detector that learns from a frozen teacher as well.

    The student's path is mmdet's own. Its losses come first in the result,
    unchanged; each distillation loss is added as ``loss_kd_<name>``. The
    teacher is in none of the parameters, state or checkpoints. ``predict`` is
    that of the student alone.

    Args:
        teacher: ``dict(config=…, checkpoint=…)``; see
            `mmkd.teachers.teacher_model_and_checkpoint`.
        distill: name → config of a distillation loss; at least one.
        inherit: names of parts of the student, like ``['neck', 'bbox_head']``, that begin with the teacher's
            weights where names and shapes agree; see `inherit_weights`. A checkpoint that is loaded or
            resumed from replaces them.
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
        teacher: Mapping[str, Any],
        distill: Mapping[str, Any],
        task_loss_weight: float = 1.0,
        inherit: Sequence[str] = (),
        **student: Any,
    ) -> None:
        check_options(
            "KDSingleStageDetector", student, set(inspect.signature(SingleStageDetector).parameters)
        )
        check_head_type(student, "student")
        super().__init__(**student)
        if not isinstance(task_loss_weight, (int, float)) or not 0 <= task_loss_weight < float("inf"):
            raise UserError(f"task_loss_weight must be a number ≥ 0, found {task_loss_weight!r}")
        self.task_loss_weight = task_loss_weight
        self.distill = build_losses(distill, "distill")
        needs = frozenset[Need]().union(*(term.needs for term in self.terms.values()))
        self.teacher = build_teacher(teacher, needs, student=self)
        self._classes_checked = False
        self._inherit = check_inherit(inherit, self)
        self._checkpoint = self.teacher.facts["checkpoint"]
        if self._inherit and self._checkpoint is None:
            raise UserError("inherit needs a teacher with a checkpoint, found checkpoint=None")
        self._class_map = check_class_map(teacher.get("class_map"))
        own = self.teacher.shared(adapter_for(self.bbox_head).spec(self.bbox_head))
        # The student begins with the random numbers that it would have had alone.
        with torch.random.fork_rng(devices=[]):
            for term in self.terms.values():
                term.check(own, self.teacher.spec)
                term.adapt(own, self.teacher.spec)
                if "towers" in term.needs:
                    check_towers(self.bbox_head, term.tower_layers, "student")
                    check_towers(self.teacher.head, term.tower_layers, "teacher")
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

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
        """The student's own losses and ``loss_kd_<name>`` for each term.

        Args:
            batch_inputs: B×3×H×W, normalised and padded.
            batch_data_samples: mmdet's data samples.
        """
        if not self._classes_checked:  # the Runner has made the data set known by now
            self.check_class_names(MessageHub.get_current_instance().get_info("dataset_meta", None) or {})
            self._classes_checked = True
        terms = self.terms
        active = [name for name, term in terms.items() if term.loss_weight > 0]
        if active:  # on a stream of its own it runs beside the student
            answer = self.teacher.ask(batch_inputs, batch_data_samples)
        needs = frozenset[Need]().union(*(terms[name].needs for name in active))
        towers: Towers = {}
        with ExitStack() as watching:
            labels = adapter_for(self.bbox_head).label_losses if "labels" in needs else ()
            seen = watching.enter_context(observe(self.bbox_head, labels=labels))
            if "towers" in needs:
                towers = watching.enter_context(record_towers(self.bbox_head))
            losses = super().loss(batch_inputs, batch_data_samples)
        if self.task_loss_weight != 1:
            losses = {key: self._weigh(key, value) for key, value in losses.items()}
        if active:
            teacher = answer()
            student, context = self._read(seen, batch_data_samples, needs)
            student = self.teacher.shared(with_towers(student, towers))
            _check_same_maps(student, teacher)
            if teacher.known_N is not None:
                context = replace(context, valid_N=context.valid_N & teacher.known_N)
        for name, term in terms.items():
            losses[f"loss_kd_{name}"] = (
                term(student, teacher, context) if name in active else _nothing(term, batch_inputs)
            )
        return losses

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, and stop before a non-finite one reaches the weights.

        Raises:
            UserError: the sum is not finite; names the first term and the iteration.
        """
        total, log_vars = super().parse_losses(losses)
        if not torch.isfinite(total):
            terms = {key: float(value) for key, value in log_vars.items() if key != "loss"}
            first = next((key for key, value in terms.items() if not abs(value) < float("inf")), "their sum")
            iteration = MessageHub.get_current_instance().get_info("iter", 0) + 1
            raise user_error(
                f"Training stopped: {first} is not finite at iteration {iteration}.",
                expected="finite losses",
                found=", ".join(f"{key} {value:.4g}" for key, value in terms.items()),
                remedy="lower the learning rate or the term's loss_weight, clip gradients "
                "(optim_wrapper.clip_grad), or check the annotations; the last checkpoint is intact",
            )
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
        labels_N = None
        if seen.loss_cls_args is not None:
            labels_N = adapter.assigned_labels(
                head, student.flat_cls_logits(), seen.loss_cls_args, student.cls_logits
            )
        image_shapes = [sample.img_shape for sample in data_samples]
        context = DistillContext(
            valid_N=adapter.valid_priors(head, student.cls_logits, image_shapes),
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=labels_N,
            through=self.teacher.through,
            crossed=self.teacher.crossed,
        )
        return student, context

    def _weigh(self, key: str, value: Any) -> Any:
        if "loss" not in key:  # mmengine sums the keys that contain it; others are only reported
            return value
        if isinstance(value, Tensor):
            return value * self.task_loss_weight
        return [part * self.task_loss_weight for part in value]

    def check_class_names(self, dataset_meta: Mapping[str, Any]) -> None:
        """Find a data set's classes among those in the teacher's checkpoint, by name.

        Raises:
            UserError: the teacher does not know one of them.
        """
        own, taught = dataset_meta.get("classes"), self.teacher.class_names
        if own is None or taught is None:
            if self.teacher.awaits_classes:
                raise user_error(
                    "Teacher and student have different numbers of classes, and the data set names none.",
                    expected="class names in the data set's metainfo, to find them among the teacher's",
                    found="none",
                    remedy="give metainfo=dict(classes=…)",
                )
            return
        renamed = [self._class_map.get(name, name) for name in own]
        if renamed == list(taught):
            return
        strange = [name for name, theirs in zip(own, renamed) if theirs not in taught]
        if strange:
            raise user_error(
                "The teacher does not know all of the student's classes.",
                expected=_shortened(own) + " (the training data set's)",
                found=f"{_shortened(taught)} (the teacher's checkpoint); without {_shortened(strange)}",
                remedy="say what the teacher calls them, as in teacher=dict(class_map={'mine': 'theirs'}), "
                "or use a teacher that was trained on these",
            )
        self.teacher.map_classes(own, self._class_map)
        mapping = ", ".join(f"{name} ← {taught.index(theirs)} {theirs}" for name, theirs in zip(own, renamed))
        print_log(f"the teacher's classes by name: {mapping}", "current")

    def _put_in_losses(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """A checkpoint of the student says nothing of the losses' own layers: they stay as they are."""
        for name, value in self.distill.state_dict(prefix=f"{prefix}distill.").items():
            state_dict.setdefault(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        self.teacher.apply_(fn)
        return super()._apply(fn, *args, **kwargs)


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


def _shortened(names: Any) -> str:
    names = list(names)
    return f"{len(names)}: " + ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
