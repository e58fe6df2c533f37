"""`rois`: a two-stage detector's box head, on the regions that the student sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.heads.calls import Calls
from mmkd.outputs.place import Place, Reading, check_classes, register_place
from mmkd.outputs.roi_heads import (
    box_heads,
    fused_features,
    hooked,
    layout,
    no_roi_head,
    of_batch,
    per_stage,
    plain_maps,
    scores,
)
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs

Boxes = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Regions:
    """The student's regions in a batch, as passed to a teacher.

    Attributes:
        rois: per stage, (n, 5): the index of the image, then x1, y1, x2, y2 in pixels of the input.
        labels: per stage, (n,): the assigned class, ``num_classes`` for background.
        stages: the indices of the student's stages that these belong to.
        num_stages: the student's number of stages.
        image_shapes: (height, width) of each image without padding.
    """

    rois: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    stages: tuple[int, ...]
    num_stages: int
    image_shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Reading(Reading):
    """Also the student's boxes, which are known once the teacher has answered."""

    boxes_of: Boxes | None


class Watched:
    """A record of one RoI head stage during a loss."""

    def __init__(self) -> None:
        self.rois_N5: Tensor | None = None
        self.outputs: Calls[tuple[Tensor | None, Any]] = Calls()
        self.scorings: Calls[tuple[Any, ...]] = Calls()


@register_place("rois")
class Rois(Place):
    """Heads of the Faster R-CNN and Cascade R-CNN families.

    The student's own sampled regions and its box head's outputs for them are recorded during its loss. The
    teacher's box head runs once on these regions and its own features, through its `_bbox_forward`. A cascade
    learns stage by stage from a cascade with as many stages. Any other cascade teaches what it predicts in
    testing: regions are refined, scores averaged, and the last boxes used.
    """

    gives = frozenset({"cls_logits", "boxes", "labels", "label_weights", "padding"})
    sampled = True

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        return no_roi_head(detector)

    def offers(self, detector: Any) -> frozenset[Need]:
        """As `Place.offers`; heads without regression have no boxes."""
        regresses = all(getattr(head, "with_reg", True) for head in box_heads(detector))
        return self.gives if regresses else self.gives - {"boxes"}

    def parts(self, detector: Any) -> int:
        """The number of stages of a cascade."""
        return len(box_heads(detector))

    def spec(self, detector: Any) -> HeadSpec:
        """As `Place.spec`; scores are read as in testing."""
        return layout(box_heads(detector)[-1])

    @contextmanager
    def watch(self, detector: Any) -> Iterator[list[Watched]]:
        """As `Place.watch`: one `Watched` per stage."""
        extractors = per_stage(detector.roi_head.bbox_roi_extractor)
        with ExitStack() as stack:
            yield [
                stack.enter_context(_watch_stage(extractor, head))
                for extractor, head in zip(extractors, box_heads(detector), strict=True)
            ]

    def read(
        self,
        detector: Any,
        seen: Sequence[Watched],
        feats: Levels,
        data_samples: Sequence[Any],
        part: int | None,
    ) -> Reading:
        """As `Place.read`; the rows of several stages are concatenated."""
        chosen = [
            (stage, last_call(seen[stage], head, feats))
            for stage, head in enumerate(box_heads(detector))
            if part in (None, stage)
        ]
        calls = [call for _, call in chosen]
        rois_N5 = torch.cat([call.rois_N5 for call in calls])
        count_N = rois_N5.new_ones(len(rois_N5), dtype=torch.bool)
        labels = tuple(call.labels_N for call in calls)
        return _Reading(
            RowOutputs(
                spec=self.spec(detector),
                cls_logits_NK=torch.cat([call.cls_logits_NK for call in calls]),
                image_N=rois_N5[:, 0].long() % len(data_samples),
            ),
            DistillContext(
                valid_N=count_N,
                num_images=len(data_samples),
                data_samples=data_samples,
                labels_N=torch.cat(labels),
                padded_N=count_N,
                scored_N=torch.cat([call.weight_N for call in calls]) > 0,
            ),
            Regions(
                tuple(call.rois_N5 for call in calls),
                labels,
                tuple(stage for stage, _ in chosen),
                self.parts(detector),
                tuple(sample.img_shape for sample in data_samples),
            ),
            joined([call.boxes_of for call in calls], [len(call.rois_N5) for call in calls]),
        )

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """As `Place.check`."""
        check_classes(student, teacher, "by which boxes of one class are chosen")

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """As `Place.pair`: each row with the box of its `compared_class`."""
        assert isinstance(reading, _Reading)
        assert reading.context.labels_N is not None
        own, boxes_of = reading.outputs, reading.boxes_of
        if boxes_of is not None:
            class_N = compared_class(reading.context.labels_N, said)
            own = replace(own, boxes_N4=boxes_of(class_N))
        return own, said, reading.context

    def answer(
        self, detector: Any, inner: Any, question: Regions, classes: Sequence[int] | None
    ) -> RowOutputs:
        """As `Place.answer`."""
        roi_head = detector.roi_head
        heads = box_heads(detector)
        x = plain_maps(inner)
        more = fused_features(roi_head, x)
        asked = [of_batch(rois_N5, len(x[0])) for rois_N5 in question.rois]
        labels_N = torch.cat(question.labels)
        said: list[tuple[Tensor, Boxes | None]] = []
        if not isinstance(roi_head, CascadeRoIHead):
            said = [_said(heads[0], torch.cat(asked), roi_head._bbox_forward(x, torch.cat(asked)))]
        elif len(heads) == question.num_stages:
            said = [
                _said(heads[stage], rois_N5, roi_head._bbox_forward(stage, x, rois_N5, **more))
                for stage, rois_N5 in zip(question.stages, asked)
            ]
        else:
            said = [_refined(roi_head, x, rois_N5, question.image_shapes, more) for rois_N5 in asked]
        rows = RowOutputs(
            spec=self.spec(detector),
            cls_logits_NK=torch.cat([logits_NK for logits_NK, _ in said]),
        )
        index_K = torch.arange(rows.spec.num_classes, device=labels_N.device)
        if classes is not None:
            rows, index_K = rows.select_classes(classes), index_K[list(classes)]
        boxes_of = joined([boxes for _, boxes in said], [len(logits_NK) for logits_NK, _ in said])
        if boxes_of is None:
            return rows
        return replace(rows, boxes_N4=boxes_of(index_K[compared_class(labels_N, rows)]))


def compared_class(labels_N: Tensor, said: RowOutputs) -> Tensor:
    """The class whose box is compared, (N,): the assigned one, or the teacher's top class for background.

    Args:
        labels_N: assigned classes, ``num_classes`` for background.
        said: the teacher's outputs for these rows.
    """
    K = said.spec.num_classes
    return torch.where(labels_N < K, labels_N, said.cls_logits_NK[:, :K].argmax(dim=1))


@contextmanager
def _watch_stage(extractor: nn.Module, head: Any) -> Iterator[Watched]:
    seen = Watched()

    def on_rois(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.rois_N5 = args[1] if len(args) > 1 else kwargs["rois"]

    def on_outputs(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.outputs.add((seen.rois_N5, output))

    def on_loss(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.scorings.add((*args, kwargs.get("weight")))

    with hooked(
        extractor.register_forward_pre_hook(on_rois, with_kwargs=True),
        head.register_forward_hook(on_outputs),
        head.loss_cls.register_forward_pre_hook(on_loss, with_kwargs=True),
    ):
        yield seen


@dataclass(frozen=True)
class _Call:
    """The last call of a box head: earlier calls come from a sampler searching for hard regions."""

    rois_N5: Tensor
    cls_logits_NK: Tensor
    labels_N: Tensor
    weight_N: Tensor
    boxes_of: Boxes | None


def last_call(seen: Watched, head: Any, feats: Levels) -> _Call:
    """The inputs of a stage's loss; empty, with a zero gradient, if it was not run."""
    rois_N5, output = (list(seen.outputs) or [(None, None)])[-1]
    if rois_N5 is None:
        nothing = feats[0].flatten()[:0]
        return _Call(
            nothing.detach().reshape(0, 5),
            nothing.reshape(0, layout(head).cls_channels),
            nothing.new_zeros(0, dtype=torch.long),
            nothing.detach(),
            lambda _: nothing.reshape(0, 4),
        )
    cls_score_NK, bbox_pred = output[:2]
    given = [args for args in seen.scorings if len(args[0]) == len(rois_N5)]
    labels_N, weight_N = given[-1][1:3] if given else (rois_N5.new_zeros(0).long(), None)
    if labels_N.shape != rois_N5.shape[:1] or labels_N.is_floating_point():
        raise UserError(
            f"Cannot determine the class that {type(head).__name__} assigned to each region.",
            expected=f"{len(rois_N5)} class indices as the second argument of its loss_cls",
            found=f"{labels_N.dtype} of shape {tuple(labels_N.shape)}",
            remedy="use a box head of mmdet, or feature losses (PKDLoss, …)",
        )
    if weight_N is None:
        weight_N = torch.ones_like(labels_N)
    return _Call(rois_N5, scores(head, cls_score_NK), labels_N, weight_N, _boxes_of(head, rois_N5, bbox_pred))


def _boxes_of(head: Any, rois_N5: Tensor, bbox_pred: Any) -> Boxes | None:
    """A function from each region's class to its box as the head decodes it, not clipped to the image."""
    if bbox_pred is None:
        return None

    def boxes(class_N: Tensor) -> Tensor:
        pred = bbox_pred.float() if isinstance(bbox_pred, Tensor) else tuple(x.float() for x in bbox_pred)
        decoded = head.regress_by_class(rois_N5[:, 1:].float(), class_N, pred, {"img_shape": None})
        decoded_N4: Tensor = get_box_tensor(decoded)
        return decoded_N4

    return boxes


def joined(parts: Sequence[Boxes | None], sizes: Sequence[int]) -> Boxes | None:
    """Concatenate the boxes of rows."""
    given = [part for part in parts if part is not None]
    if len(given) < len(parts):
        return None
    return lambda class_N: torch.cat([part(of_part) for part, of_part in zip(given, class_N.split(sizes))])


def _said(head: Any, rois_N5: Tensor, results: dict[str, Any]) -> tuple[Tensor, Boxes | None]:
    return scores(head, results["cls_score"]), _boxes_of(head, rois_N5, results["bbox_pred"])


def _refined(
    roi_head: Any, x: Levels, rois_N5: Tensor, image_shapes: Sequence[tuple[int, ...]], more: dict[str, Any]
) -> tuple[Tensor, Boxes | None]:
    """A cascade's predictions for regions as in testing: the mean of scores, and the last boxes."""
    head = roi_head.bbox_head[-1]
    if not len(rois_N5):
        return _said(head, rois_N5, roi_head._bbox_forward(-1, x, rois_N5, **more))
    order_N = rois_N5[:, 0].argsort(stable=True)
    counts = rois_N5[:, 0].long().bincount(minlength=len(x[0])).tolist()
    metas = [{"img_shape": image_shapes[image % len(image_shapes)]} for image in range(len(x[0]))]
    rois, cls_scores, bbox_preds = roi_head._refine_roi(x, rois_N5[order_N], metas, counts, **more)
    back_N = order_N.argsort()
    parts = [_boxes_of(head, *of_image) for of_image in zip(rois, bbox_preds)]
    boxes_of = joined(parts, counts)
    return scores(head, torch.cat(list(cls_scores)))[back_N], (
        None if boxes_of is None else lambda class_N: boxes_of(class_N[order_N])[back_N]
    )
