"""`Distilled`: brings student, teacher and losses together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.logging import MessageHub
from torch import Tensor, nn

from mmkd.detectors.assigned import (
    assigned_labels,
    check_labels,
    check_loss,
    check_quality,
    scored_priors,
)
from mmkd.detectors.automatic import check_automatic, weigh
from mmkd.detectors.checkpointing import watch_checkpointed
from mmkd.detectors.finite import FiniteCheck, in_float16
from mmkd.detectors.mixed import any_unlabelled, mixed_loss
from mmkd.detectors.other_targets import check_other_targets, ready_for_boxes, retargeted
from mmkd.detectors.views import teachers_view
from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_number
from mmkd.heads import adapter_for, check_heads
from mmkd.heads.observe import Observation, observe
from mmkd.heads.towers import Towers, check_towers, record_towers, with_towers
from mmkd.losses import AutoWeight, DistillLoss, Turns, build_losses, end_iteration, split_shares
from mmkd.outputs import (
    DENSE,
    Place,
    Reading,
    Recorded,
    default_place,
    dense_head,
    dense_layout,
    find_place,
    has_dense_head,
    split_places,
    student_layout,
    tested_branch,
    with_features,
)
from mmkd.sharding import check_whole
from mmkd.structures import OF_CONTEXT, DenseOutputs, DistillContext, Need, RowOutputs
from mmkd.teachers import (
    asked_by,
    asked_every,
    build_teachers,
    check_inherit,
    inherit_weights,
    split_teachers,
)

# A loss that reads only these reads nothing from the student's heads.
_OF_DETECTIONS: frozenset[Need] = frozenset({"detections", "own_losses"})
_OF_FEATURES: frozenset[Need] = frozenset({"feats", "layers", *_OF_DETECTIONS})


@dataclass(frozen=True)
class _Step:
    """The state of one step while the student computes its own losses."""

    asked: list[tuple[Any, list[str]]]
    answers: list[Callable[[], DenseOutputs]]
    needs: frozenset[Need]
    watching: ExitStack
    student: Recorded = field(default_factory=Recorded)
    dense: Observation | None = None
    towers: Towers = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)

    @torch.compiler.disable
    def close(self) -> None:
        """Stop watching."""
        self.watching.close()


class Distilled(BaseDetector):
    """Mixin that adds distillation from a frozen teacher; put it before the student's own class.

    The student's computation does not change. Its losses come first in the result; each distillation loss is
    added as ``loss_kd_<name>``. The teacher is not in the parameters, state or checkpoints. ``predict`` is
    the student's own.

    A batch may contain images without labels (`mmkd.data.UnlabelledImages`): the student's own losses use the
    labelled images, the distillation losses use all. Losses that need annotated objects use the teacher's
    detections there; with several teachers, those of the first one that such a loss learns from; with
    averaged teachers, those of the first.

    Args:
        teacher: ``dict(config=…, checkpoint=…)``, see `mmkd.teachers.teacher_model_and_checkpoint`; a list of
            such teachers, whose outputs are averaged; ``dict(ema=dict(momentum=…))``, a moving average of the
            student's own weights; or a dict of these by name.
        distill: name → config of a distillation loss; at least one. ``place`` selects where the loss reads a
            detector that predicts at several places, see `mmkd.outputs`; with named teachers, ``teacher``
            selects its teacher. With ``loss_weight='auto'`` or a ``share`` the weight is set automatically,
            see `mmkd.losses.AutoWeight`.
        inherit: names of parts of the student, like ``['neck', 'bbox_head']``, initialised with the teacher's
            weights where names and shapes match, or a dict that says what the teacher calls them; see
            `inherit_weights`. With several teachers the first one's
            are used. A checkpoint that is loaded or resumed replaces them.
        task_loss_weight: factor ≥ 0 of the student's own losses. Hinton's
            ``α·T²·KL + (1 − α)·CE`` is ``loss_weight=α, task_loss_weight=1 − α``.
        pseudo_score: in [0, 1]: on images without labels, the teacher's boxes with at least this score
            replace the annotated objects for losses that need them (``region='foreground'``, FGD, …). They
            are not hard targets, so recall matters as much as precision.
        **student: the arguments of the student's own class.

    Raises:
        UserError: a part of ``distill`` or ``teacher`` is wrong, or teacher and student do not match.
    """

    teacher: Any = None
    recorded: Recorded | None = None  # the outputs of its own methods, during its loss

    def __init__(
        self,
        *,
        teacher: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        distill: Mapping[str, Any] | None = None,
        task_loss_weight: float = 1.0,
        inherit: Sequence[str] | Mapping[str, str] = (),
        pseudo_score: float = 0.3,
        **student: Any,
    ) -> None:
        super().__init__(**student)
        with naming(""):
            check_number("[0, 1]", pseudo_score=pseudo_score)
            check_number("[0, inf)", task_loss_weight=task_loss_weight)
        self.pseudo_score, self.task_loss_weight = pseudo_score, task_loss_weight
        losses, places = split_places(distill)
        losses, asks = split_teachers(teacher, losses)
        losses, shares = split_shares(losses)
        check_automatic(shares, task_loss_weight)
        self.distill = build_losses(losses, "distill")
        for name, share in shares.items():
            self.terms[name].auto = AutoWeight(share)
        self._has_dense_head = has_dense_head(self)
        self._places = self._find_places(places)
        of_dense = [term for name, term in self.terms.items() if name not in self._places]
        self._reads_dense = self._has_dense_head or any(term.asks - _OF_FEATURES for term in of_dense)
        if self._has_dense_head:
            check_loss(self.bbox_head)
        needs = {name: self._asked_of_teacher(name) for name in self.terms}
        self.teacher = build_teachers(teacher, asks, needs, student=self)
        for name, every in asked_every(teacher, asks, list(self.terms)).items():
            self.terms[name].turns = Turns(every)
        self._classes_checked = self._layers_checked = False
        self._finite = FiniteCheck()
        self._inherit = check_inherit(inherit, self)
        self._checkpoint = self.teacher.facts["checkpoint"]
        if self._inherit and self._checkpoint is None:
            raise UserError("inherit needs a teacher with a checkpoint, found checkpoint=None")
        self._layout = dense_layout(self) if self._reads_dense else student_layout(self)
        # The student starts with the same random numbers as without a teacher.
        with torch.random.fork_rng(devices=[]):
            for asked, names in asked_by(self.teacher, list(self.terms)):
                for name in names:
                    self._fit(name, self.terms[name], asked)
        active = [term for term in of_dense if term.loss_weight > 0]
        read = frozenset[Need]().union(*(term.asks for term in active))
        if read & {"labels", "label_weights"}:
            check_labels(dense_head(self), read)
        if "quality_targets" in read:
            check_quality(dense_head(self))
        self._register_state_dict_hook(_leave_out_losses)
        self._register_load_state_dict_pre_hook(self._put_in_losses)

    def _find_places(self, named: Mapping[str, str]) -> dict[str, tuple[Place, int | None]]:
        """For each loss that reads no dense maps, where it reads the student."""
        found = {}
        default = "dense" if self._has_dense_head else default_place(self)
        for name, term in self.terms.items():
            where = named.get(name, default) if term.asks - _OF_FEATURES or name in named else "dense"
            if where in DENSE:
                if term.asks - _OF_FEATURES and hasattr(self, "num_branch"):
                    raise UserError(
                        f"distill.{name}: the RPN of {type(self).__name__} sees each image once per branch, "
                        "but the teacher's only once.",
                        expected="a loss on regions or features",
                        found=f"place={where!r}",
                        remedy="remove `place`, or choose 'rois'",
                    )
                continue
            place, part = find_place(where, self, f"distill.{name}")
            lacking = sorted(term.asks - place.offers(self))
            if lacking:
                raise UserError(
                    f"distill.{name} does not support place={where!r} of the student.",
                    expected=f"a loss on {', '.join(sorted(place.offers(self) - OF_CONTEXT))}",
                    found=f"{type(term).__name__}, which needs {', '.join(lacking)}",
                    remedy="choose another loss, or another place",
                )
            found[name] = (place, part)
        return found

    def _asked_of_teacher(self, name: str) -> frozenset[Need]:
        term = self.terms[name]
        if name not in self._places:
            return term.asks - term.of_student
        return frozenset({"detections" if self._places[name][0].of_detections else "places"})

    def _fit(self, name: str, term: DistillLoss, asked: Any) -> None:
        """Let a loss check and adapt to the layouts of student and teacher where it reads them."""
        if name in self._places:
            place, _ = self._places[name]
            own = place.spec(self)
            taught = own if place.of_detections else asked.serve(place, own, term.asks)
            check_heads(own, taught, term.asks)
            place.check(own, taught)
            own, taught = place.of_rows(own), place.of_rows(taught)
        else:
            own, taught = asked.compared_levels(self._layout), asked.spec
            if term.pairs_priors and term.asks - _OF_FEATURES:
                check_heads(own, taught, term.asks - term.of_student)
        term.check(own, taught)
        term.adapt(own, taught)
        if "own_losses" in term.needs:
            check_other_targets(self, f"distill.{name}", ignores=term.ignores)
        if "towers" in term.needs:
            check_towers(dense_head(self), term.tower_layers, "student")
            check_towers(asked.head, term.tower_layers, "teacher")

    def init_weights(self) -> None:
        """As for the student alone; inherited weights come last."""
        super().init_weights()
        if self._inherit:
            inherit_weights(self, self._inherit, self._checkpoint)

    @property
    def terms(self) -> dict[str, DistillLoss]:
        """The distillation losses by name."""
        return cast(dict[str, DistillLoss], dict(self.distill.items()))

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """As the student's own; recorded during a loss."""
        feats = super().extract_feat(batch_inputs)
        if self.recorded is not None:
            self.recorded.feats.add(feats)
        return feats

    @torch.compiler.disable(recursive=False)  # torch.compile handles the student as without a teacher
    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
        """The student's own losses and ``loss_kd_<name>`` for each term.

        Args:
            batch_inputs: B×C×H×W, normalised and padded.
            batch_data_samples: mmdet's data samples.
        """
        if any_unlabelled(batch_inputs, batch_data_samples):
            return mixed_loss(self, super().loss, batch_inputs, batch_data_samples)
        step = self._begin(batch_inputs, batch_data_samples)
        try:
            losses = super().loss(batch_inputs, batch_data_samples)
        finally:
            self.recorded = None
            step.close()
        return self._add_terms(losses, step, batch_inputs, batch_data_samples)

    def active_terms(self) -> list[str]:
        """The names of the losses that are computed in this iteration."""
        return [
            name
            for name, term in self.terms.items()
            if term.loss_weight > 0 and (term.turns is None or term.turns.due)
        ]

    def _reads_heads(self, names: Sequence[str]) -> bool:
        """Whether a loss reads outputs of the student's heads."""
        return any(name in self._places or self.terms[name].asks - _OF_FEATURES for name in names)

    def _depends_on_objects(self, name: str) -> bool:
        """Whether a loss depends on where objects are, or on rows that were selected by them."""
        sampled = name in self._places and self._places[name][0].sampled
        return sampled or self.terms[name].depends_on_objects

    @torch.compiler.disable
    def _begin(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> _Step:
        """Start the teachers, and watch the student."""
        if not self._classes_checked:  # by now the Runner has set the data set's metainfo
            check_whole(self)
            self.check_class_names(MessageHub.get_current_instance().get_info("dataset_meta", None))
            self._classes_checked = True
        if in_float16(
            batch_inputs.device
        ):  # for DistributedDataParallel, which does not call our `train_step`
            self._finite.scaled = True
        self._finite.remember(self)
        active = self.active_terms()
        asked = asked_by(self.teacher, active)  # with its own stream, a teacher runs in parallel
        if asked:
            batch_inputs = teachers_view(self, batch_inputs, batch_data_samples)
        answers = [teacher.ask(batch_inputs, batch_data_samples) for teacher, _ in asked]
        dense = frozenset(active) - set(self._places)
        needs = frozenset[Need]().union(*(self.terms[name].asks for name in dense))
        with ExitStack() as watching:
            step = _Step(asked, answers, needs, watching)
            if self._reads_dense:
                head = dense_head(self)
                asks_labels = needs & {"labels", "label_weights"}
                labels = adapter_for(head).label_losses if asks_labels else ()
                quality = "loss_centerness" if "quality_targets" in needs else None
                seen = watching.enter_context(observe(head, labels=labels, quality=quality))
                towers = watching.enter_context(record_towers(head)) if "towers" in needs else {}
                step = replace(step, dense=seen, towers=towers)
            self.recorded = step.student
            for place in [self._places[name][0] for name in active if name in self._places]:
                if place.source not in step.places:
                    step.places[place.source] = watching.enter_context(place.watch(self))
            if not self._layers_checked:
                watching.enter_context(watch_checkpointed(self))
            return replace(step, watching=watching.pop_all())

    @torch.compiler.disable
    def _add_terms(
        self, losses: dict[str, Any], step: _Step, batch_inputs: Tensor, batch_data_samples: list[Any]
    ) -> dict[str, Any]:
        """Weigh the student's own losses and add the terms."""
        self._layers_checked = self._layers_checked or self.training
        if self.task_loss_weight != 1:
            losses = {key: self._weigh(key, value) for key, value in losses.items()}
        values: dict[str, Tensor] = {}
        if step.asked:
            student, context = self._read(step, batch_data_samples)
            readings: dict[tuple[str, int | None], Reading] = {}
        for (teacher, names), answer in zip(step.asked, step.answers):
            taught = answer()
            answers: dict[tuple[str, int | None], RowOutputs] = {}
            pairs: dict[tuple[str, int | None], tuple[RowOutputs, RowOutputs, DistillContext]] = {}
            for name in (name for name in names if name in self._places):
                place, part = self._places[name]
                source, key = (place.source, part), (type(place).__name__, part)
                if source not in readings:
                    seen = step.places[place.source]
                    readings[source] = place.read(self, seen, student.feats, batch_data_samples, part)
                if source not in answers:
                    question = readings[source].question
                    if place.of_detections:
                        answers[source] = place.answer(None, taught.detections, question, None)
                    else:
                        answers[source] = teacher.at(place, taught, question)
                if key not in pairs:
                    pairs[key] = place.pair(self, readings[source], answers[source])
                own, said, of_batch = pairs[key]
                values[name] = self.terms[name](own, said, of_batch.counting(self.terms[name].valid))
            maps = [name for name in names if name not in self._places]
            if maps:
                own_losses = partial(self._losses_on, step, batch_inputs, batch_data_samples)
                values.update(
                    self._on_maps(maps, teacher, taught, student, replace(context, own_losses=own_losses))
                )
        for name, term in self.terms.items():
            losses[f"loss_kd_{name}"] = values[name] if name in values else _nothing(term, batch_inputs)
        return end_iteration(weigh(losses, self.terms, list(values), step.student), self.terms)

    def _on_maps(
        self,
        names: Sequence[str],
        teacher: Any,
        taught: DenseOutputs,
        student: DenseOutputs,
        context: DistillContext,
    ) -> dict[str, Tensor]:
        """The values of losses on features and dense maps."""
        own = teacher.compared_levels(student)
        if any(self.terms[name].asks - _OF_DETECTIONS for name in names):
            _check_same_maps(own, taught)
        context = replace(context, through=teacher.through, crossed=teacher.crossed)
        if taught.known_N is not None:
            context = replace(context, valid_N=context.valid_N & taught.known_N, known_N=taught.known_N)
        return {
            name: term(own, taught, context.counting(term.valid))
            for name, term in ((name, self.terms[name]) for name in names)
        }

    def _losses_on(
        self,
        step: _Step,
        inputs: Tensor,
        data_samples: list[Any],
        targets: Sequence[Any],
        ignored: Sequence[Any],
    ) -> Tensor:
        """The sum of the student's own losses with other targets; see `DistillContext.own_losses`."""
        samples = [retargeted(*one) for one in zip(data_samples, targets, ignored)]
        with with_features(self, next(iter(step.student.feats))), ready_for_boxes(self, ignored):
            losses = super().loss(inputs, samples)
        return super().parse_losses(losses)[0]

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """As mmengine's own."""
        self._finite.look_at(optim_wrapper)
        log_vars: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        return log_vars

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, and stop before a non-finite one reaches the weights; see `FiniteCheck`.

        Raises:
            UserError: the sum is not finite, and no loss scaler skips the step.
        """
        total, log_vars = super().parse_losses(losses)
        self._finite(total, log_vars)
        return total, log_vars

    def _read(self, step: _Step, data_samples: list[Any]) -> tuple[DenseOutputs, DistillContext]:
        """The student's features and, if it has a dense head that is read, the head's outputs."""
        feats = tested_branch(self, step.student.levels(), len(data_samples))
        if step.dense is None:
            nothing_N = feats[0].new_zeros(0, dtype=torch.bool)
            context = DistillContext(nothing_N, len(data_samples), data_samples)
            return DenseOutputs(spec=self._layout, feats=feats), context
        assert len(step.dense.raw) == 1, "a dense head runs once per loss"
        head, needs = dense_head(self), step.needs
        adapter = adapter_for(head)
        everything: frozenset[Need] = frozenset({"feats", "cls_logits", "bbox_pred", "extra"})
        student = adapter.outputs(head, feats, step.dense.raw[0], everything)
        if "boxes" in needs:
            student = replace(student, boxes=adapter.boxes(head, student))
        assert student.cls_logits is not None
        image_shapes = [sample.img_shape for sample in data_samples]
        padded = [getattr(sample, "pad_shape", sample.img_shape) for sample in data_samples]
        context = DistillContext(
            valid_N=adapter.valid_priors(head, student.cls_logits, image_shapes),
            padded_N=adapter.valid_priors(head, student.cls_logits, padded) if "padding" in needs else None,
            scored_N=scored_priors(head, step.dense, student) if "label_weights" in needs else None,
            quality_sum=step.dense.quality_sum(student.cls_logits[0]) if "quality_targets" in needs else None,
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=assigned_labels(head, step.dense, student) if "labels" in needs else None,
        )
        return with_towers(student, step.towers), context

    def _weigh(self, key: str, value: Any) -> Any:
        if "loss" not in key:  # mmengine sums the keys that contain "loss"; others are only logged
            return value
        if isinstance(value, Tensor):
            return value * self.task_loss_weight
        return [part * self.task_loss_weight for part in value]

    def check_class_names(self, dataset_meta: Any) -> None:
        """Find a data set's classes among those in each teacher's checkpoint, by name.

        Raises:
            UserError: a teacher lacks one of them.
        """
        self.teacher.find_classes(dataset_meta)

    def _put_in_losses(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """A student's checkpoint does not contain the losses' own layers: they stay as they are."""
        for name, value in self.distill.state_dict(prefix=f"{prefix}distill.").items():
            state_dict.setdefault(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        if self.teacher is not None:  # the teacher is built after the student
            self.teacher.apply_(fn)
        return super()._apply(fn, *args, **kwargs)


def _leave_out_losses(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}distill.")]:
        del state_dict[name]


def _nothing(term: nn.Module, inputs: Tensor) -> Tensor:
    """Zero, with a zero gradient for the term's own layers, which DistributedDataParallel waits for."""
    return sum((parameter.sum() * 0 for parameter in term.parameters()), inputs.new_zeros(()))


def _check_same_maps(student: DenseOutputs, teacher: DenseOutputs) -> None:
    sizes_s = [tuple(level.shape[-2:]) for level in student.feats]
    sizes_t = [tuple(level.shape[-2:]) for level in teacher.feats]
    if sizes_s != sizes_t:
        raise UserError(
            "Teacher and student feature maps differ in size for the same images.",
            expected=f"{sizes_s} (the student's)",
            found=f"{sizes_t} (the teacher's)",
            remedy="set data_preprocessor.pad_size_divisor to a multiple of both backbones' largest stride",
        )
