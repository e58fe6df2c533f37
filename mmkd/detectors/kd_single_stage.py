"""`KDSingleStageDetector`: where teacher, head and losses meet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.logging import MessageHub
from torch import Tensor, nn

from mmkd.detectors.observe import Observation, observe
from mmkd.errors import UserError, check_options, user_error
from mmkd.heads import adapter_for, check_head_type
from mmkd.losses import DistillLoss, registered_losses
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need
from mmkd.teachers import build_teacher


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
        **student: Any,
    ) -> None:
        check_options("KDSingleStageDetector", student, _options(SingleStageDetector))
        check_head_type(student, "student")
        super().__init__(**student)
        if not isinstance(task_loss_weight, (int, float)) or not 0 <= task_loss_weight < float("inf"):
            raise UserError(f"task_loss_weight must be a number ≥ 0, found {task_loss_weight!r}")
        self.task_loss_weight = task_loss_weight
        self.distill = build_losses(distill)
        needs = frozenset[Need]().union(*(term.needs for term in self.terms.values()))
        self.teacher = build_teacher(teacher, needs, student=self)
        self._classes_checked = False
        own = adapter_for(self.bbox_head).spec(self.bbox_head)
        # The student begins with the random numbers that it would have had alone.
        with torch.random.fork_rng(devices=[]):
            for term in self.terms.values():
                term.check(own, self.teacher.spec)
                term.adapt(own, self.teacher.spec)
        self._register_state_dict_hook(_leave_out_losses)
        self._register_load_state_dict_pre_hook(self._put_in_losses)

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
        with observe(self.bbox_head, labels="labels" in needs, towers="towers" in needs) as seen:
            losses = super().loss(batch_inputs, batch_data_samples)
        if self.task_loss_weight != 1:
            losses = {key: self._weigh(key, value) for key, value in losses.items()}
        if active:
            teacher = answer()
            student, context = self._read(seen, batch_data_samples, needs)
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
            labels_N = adapter.assigned_labels(head, student.flat_cls_logits(), seen.loss_cls_args)
        image_shapes = [sample.img_shape for sample in data_samples]
        context = DistillContext(
            valid_N=adapter.valid_priors(head, student.cls_logits, image_shapes),
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=labels_N,
            towers={name: [tuple(levels) for levels in layers] for name, layers in seen.towers.items()},
            through=self.teacher.through,
        )
        return student, context

    def _weigh(self, key: str, value: Any) -> Any:
        if "loss" not in key:  # mmengine sums the keys that contain it; others are only reported
            return value
        if isinstance(value, Tensor):
            return value * self.task_loss_weight
        return [part * self.task_loss_weight for part in value]

    def check_class_names(self, dataset_meta: Mapping[str, Any]) -> None:
        """Compare a data set's class names with those in the teacher's checkpoint.

        Raises:
            UserError: both are known and differ.
        """
        own, taught = dataset_meta.get("classes"), self.teacher.class_names
        if own is not None and taught is not None and tuple(own) != taught:
            raise user_error(
                "Teacher and student name their classes differently.",
                expected=_shortened(own) + " (the training data set's)",
                found=_shortened(taught) + " (the teacher's checkpoint)",
                remedy="give the data set the teacher's classes in the teacher's order (metainfo), "
                "or use a teacher that was trained on these",
            )

    def _put_in_losses(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """A checkpoint of the student says nothing of the losses' own layers: they stay as they are."""
        for name, value in self.distill.state_dict(prefix=f"{prefix}distill.").items():
            state_dict.setdefault(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        self.teacher.apply_(fn)
        return super()._apply(fn, *args, **kwargs)


def build_losses(distill: Mapping[str, Any]) -> nn.ModuleDict:
    """Build the terms of ``distill``.

    Raises:
        UserError: it is empty, or a type is unknown; lists the valid ones.
    """
    example = "distill=dict(cls=dict(type='DistillationLoss'))"
    if not isinstance(distill, Mapping) or not distill:
        raise user_error(
            "`distill` names no loss.",
            expected=f"at least one, like {example}",
            found=repr(distill),
            remedy="add a loss, or train the student alone with its stock config",
        )
    valid = registered_losses()
    for name, cfg in distill.items():
        found = cfg.get("type") if isinstance(cfg, Mapping) else cfg
        loss = MODELS.get(found) if isinstance(found, str) else found
        if not (isinstance(cfg, Mapping) and isinstance(loss, type) and issubclass(loss, DistillLoss)):
            raise user_error(
                f"distill.{name} is no distillation loss.",
                expected=f"type, one of: {', '.join(valid)}",
                found=repr(found),
                remedy=f"correct the type, as in {example}",
            )
        check_options(f"distill.{name}", set(cfg) - {"type", "_scope_"}, _options(loss))
    return nn.ModuleDict({name: MODELS.build(cfg) for name, cfg in distill.items()})


def _leave_out_losses(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}distill.")]:
        del state_dict[name]


def _nothing(term: nn.Module, inputs: Tensor) -> Tensor:
    """Zero; with a gradient of zero for the term's own layers, which DistributedDataParallel waits for."""
    return sum((parameter.sum() * 0 for parameter in term.parameters()), inputs.new_zeros(()))


def _options(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)


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
