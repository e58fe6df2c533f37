"""Adapters from dense heads to `DenseOutputs`, by head class.

It covers heads whose forward returns ``(cls_scores, bbox_preds, …)`` as lists over levels, with class scores
as logits. Other heads have their own adapter, found along the MRO of the head's class.

Shape suffixes: as in `mmkd.structures`; M priors of one level, all images; D channels of the box output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from mmkd.errors import UserError, type_of
from mmkd.heads.labels import classes_of, image_by_image
from mmkd.heads.refusals import NOT_SERVED, no_foreground, unsupported
from mmkd.registry import MODELS, class_of
from mmkd.structures import DenseOutputs, HeadSpec, Levels, Need


class DenseHeadAdapter:
    """The default adapter. It has no state: the head is always an argument.

    Attributes:
        extra_names: names of the head's outputs after classes and boxes, one map of A channels per level.
        label_losses: the head's loss modules whose calls reveal the assigned classes.
        soft_targets: whether those calls may have (N, K) targets, above 0 only at a foreground prior's class.
        tolerance: relative and absolute tolerance between these logits and those passed to the loss.
    """

    extra_names: tuple[str, ...] = ()
    label_losses: tuple[str, ...] = ("loss_cls",)
    soft_targets = False
    tolerance = 0.0

    def spec(self, head: Any) -> HeadSpec:
        """The layout of the head's outputs.

        Raises:
            UserError: the head has no prior generator to define its layout.
        """
        generator = getattr(head, "prior_generator", None)
        if generator is None:
            raise unsupported(head, "it has no prior generator")
        num_classes = int(head.num_classes)
        use_sigmoid = bool(getattr(head, "use_sigmoid_cls", True))
        return HeadSpec(
            num_classes=num_classes,
            cls_channels=int(getattr(head, "cls_out_channels", num_classes + (not use_sigmoid))),
            use_sigmoid=use_sigmoid,
            strides=tuple((int(x), int(y)) for x, y in generator.strides),
            num_base_priors=tuple(int(a) for a in generator.num_base_priors),
            in_channels=_per_level(getattr(head, "in_channels", ()), len(generator.strides)),
        )

    def outputs(
        self, head: Any, feats: Sequence[Tensor], raw: Sequence[Any], needs: frozenset[Need]
    ) -> DenseOutputs:
        """Normalise the raw outputs of a head's forward.

        Some heads return different outputs in training and in testing. Both are converted to one form, so
        that the outputs of a student and of a teacher in eval mode mean the same.

        Args:
            head: the head, in the mode (training or eval) that produced the output.
            feats: the head's input, per level B×C×H×W.
            raw: what its forward returned.
            needs: the parts to keep.

        Raises:
            UserError: the class scores are not B×(A·K)×H×W per level.
        """
        spec = self.spec(head)
        cls_logits = self.cls_logits(head, raw) if "cls_logits" in needs else None
        if cls_logits is not None:
            expected = [A * spec.cls_channels for A in spec.num_base_priors]
            found = [level.shape[1] for level in cls_logits]
            if found != expected:
                raise unsupported(head, f"class channels per level are {found}, not {expected}")
        return DenseOutputs(
            spec=spec,
            feats=tuple(feats),
            cls_logits=cls_logits,
            bbox_pred=self.bbox_pred(head, raw) if "bbox_pred" in needs else None,
            extra=self.extra(head, raw) if "extra" in needs else {},
        )

    def cls_logits(self, head: Any, raw: Sequence[Any]) -> Levels:
        """Class logits from the head's raw outputs, per level B×(A·K)×H×W."""
        return tuple(raw[0])

    def bbox_pred(self, head: Any, raw: Sequence[Any]) -> Levels:
        """The box output in its eval-mode form, per level B×(A·D)×H×W."""
        return tuple(raw[1])

    def extra(self, head: Any, raw: Sequence[Any]) -> dict[str, Levels]:
        """Other outputs by name, before their sigmoid, per level B×A×H×W."""
        return {name: tuple(levels) for name, levels in zip(self.extra_names, raw[2:])}

    def boxes(self, head: Any, outputs: DenseOutputs) -> Levels:
        """Decode the head's box output.

        Args:
            head: the head.
            outputs: outputs with ``bbox_pred``, as returned by `outputs`.

        Returns:
            Per level B×(A·4)×H×W, float32 or float64: x1, y1, x2, y2 in pixels of the input, not clipped.
        """
        assert outputs.bbox_pred is not None
        sizes = [tuple(level.shape[-2:]) for level in outputs.bbox_pred]
        device = outputs.bbox_pred[0].device
        decoded = []
        for level, (pred, priors) in enumerate(
            zip(outputs.bbox_pred, head.prior_generator.grid_priors(sizes, device=device))
        ):
            B, AD, H, W = pred.shape
            A = outputs.spec.num_base_priors[level]
            pred_MD = pred.permute(0, 2, 3, 1).reshape(-1, AD // A)
            pred_MD = pred_MD.to(torch.promote_types(pred.dtype, torch.float32))
            with torch.autocast(device.type, enabled=False):  # GFL's integral is a matrix product
                boxes_M4 = self.decode(head, level, priors.to(pred_MD).repeat(B, 1), pred_MD)
            decoded.append(boxes_M4.reshape(B, H, W, A * 4).permute(0, 3, 1, 2))
        return tuple(decoded)

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Boxes (M, 4) of one level from its priors and raw predictions."""
        boxes_M4: Tensor = head.bbox_coder.decode(priors_M, pred_MD)
        return boxes_M4

    def assigned_labels(
        self,
        head: Any,
        flat_cls_logits_NK: Tensor,
        loss_cls_args: Sequence[Sequence[Any]],
        cls_logits: Levels | None = None,
    ) -> Tensor:
        """The class assigned to each prior, (N,), background and ignored = ``num_classes``.

        Taken from what the head passes to its own classification loss, level by level, image by image or all
        at once, so assignment does not run again.

        Args:
            head: the head.
            flat_cls_logits_NK: the head's logits, to verify the order.
            loss_cls_args: the positional arguments of each call of the head's `label_losses`.
            cls_logits: the same logits per level; needed for heads that pass priors image by image.

        Raises:
            UserError: the head does not pass one class per prior to its loss, or the order is unknown.
        """
        labels_N, _ = self._in_order(head, flat_cls_logits_NK, loss_cls_args, cls_logits)
        return torch.where(labels_N < 0, head.num_classes, labels_N)

    def scored_priors(
        self,
        head: Any,
        flat_cls_logits_NK: Tensor,
        loss_cls_args: Sequence[Sequence[Any]],
        cls_logits: Levels | None = None,
    ) -> Tensor:
        """Which priors have a weight above 0 in the head's classification loss, (N,) bool.

        Arguments and errors as in `assigned_labels`. If the head passes no weights, all priors count.
        """
        if type(self).assigned_labels is not DenseHeadAdapter.assigned_labels:
            raise no_foreground(head, "it does not pass one weight per prior to its loss")
        labels_N, weight_N = self._in_order(head, flat_cls_logits_NK, loss_cls_args, cls_logits)
        return labels_N >= 0 if weight_N is None else weight_N > 0

    def _in_order(
        self,
        head: Any,
        flat_cls_logits_NK: Tensor,
        loss_cls_args: Sequence[Sequence[Any]],
        cls_logits: Levels | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Assigned classes and weights of all priors, in the order of the head's outputs."""
        N, K = flat_cls_logits_NK.shape
        if loss_cls_args and loss_cls_args[-1][0].numel() == N * K:
            loss_cls_args = loss_cls_args[-1:]  # before that, PAA uses the same loss to score candidates
        targets = [args[1][0] if isinstance(args[1], tuple) else args[1] for args in loss_cls_args]
        if self.soft_targets:
            targets = [classes_of(part, head.num_classes) for part in targets]
        if not targets or any(part.dim() != 1 or part.is_floating_point() for part in targets):
            raise no_foreground(head, "it does not pass a class index per prior to its loss")
        labels_N = torch.cat(targets)
        weights = [args[2] for args in loss_cls_args if len(args) > 2 and isinstance(args[2], Tensor)]
        weight_N = (
            torch.cat([part.reshape(len(labels), -1)[:, 0] for part, labels in zip(weights, targets)])
            if (len(weights) == len(targets))
            else None
        )
        scored_NK = self.scored(torch.cat([args[0].reshape(-1, K) for args in loss_cls_args]))
        if len(labels_N) != N or len(scored_NK) != N:
            raise no_foreground(head, "it does not pass every prior to its loss")
        if not self._same(scored_NK, flat_cls_logits_NK):
            place_N = None if cls_logits is None else image_by_image(cls_logits, K)
            if place_N is None or not self._same(scored_NK[place_N], flat_cls_logits_NK):
                raise no_foreground(head, "it passes its priors to its loss in its own order")
            labels_N = labels_N[place_N]
            return labels_N, None if weight_N is None else weight_N[place_N]
        return labels_N, weight_N

    def scored(self, scores_NK: Tensor) -> Tensor:
        """Logits from the scores that the head passes to its loss."""
        return scores_NK

    def _same(self, a: Tensor, b: Tensor) -> bool:
        # NaN passes here: the check of the losses reports it and names the term.
        return torch.allclose(a, b.to(a), rtol=self.tolerance, atol=self.tolerance, equal_nan=True)

    def valid_priors(self, head: Any, cls_logits: Levels, image_shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Which priors lie inside their image, not in its padding, (N,) bool.

        Args:
            head: the head.
            cls_logits: per level B×(A·K)×H×W, for sizes and device.
            image_shapes: (height, width) of each image before padding.
        """
        sizes = [tuple(level.shape[-2:]) for level in cls_logits]
        device = cls_logits[0].device
        per_image = [head.prior_generator.valid_flags(sizes, shape, device) for shape in image_shapes]
        return torch.cat([torch.cat(level) for level in zip(*per_image)])


ADAPTERS: dict[type, DenseHeadAdapter] = {BaseDenseHead: DenseHeadAdapter()}

_Adapter = TypeVar("_Adapter", bound=type[DenseHeadAdapter])


def register_adapter(*head_classes: type) -> Callable[[_Adapter], _Adapter]:
    """Class decorator: use this adapter for these head classes and their subclasses."""

    def register(adapter: _Adapter) -> _Adapter:
        for head_class in head_classes:
            ADAPTERS[head_class] = adapter()
        return adapter

    return register


def adapter_for(head: Any) -> DenseHeadAdapter:
    """The adapter of a head.

    Raises:
        UserError: no adapter supports this head class.
    """
    for cls in type(head).__mro__:
        if cls in ADAPTERS:
            return ADAPTERS[cls]
        if cls.__name__ in NOT_SERVED:
            raise unsupported(head, NOT_SERVED[cls.__name__])
    raise unsupported(head, "it is not an mmdet dense head")


def check_head_type(model: Mapping[str, Any], whose: str) -> None:
    """Raise `UserError` if a model config names a head that is not registered.

    Args:
        model: the model config.
        whose: ``student`` or ``teacher``, for the message.
    """
    head = model.get("bbox_head") or {}
    if "type" in head and class_of(head) is None:
        valid = sorted(
            name
            for name, entry in MODELS.module_dict.items()
            if isinstance(entry, type)
            and issubclass(entry, BaseDenseHead)
            and not any(cls.__name__ in NOT_SERVED for cls in entry.__mro__)
        )
        raise UserError(
            f"The {whose}'s head is not registered.",
            expected=f"bbox_head.type, one of: {', '.join(valid)}",
            found=type_of(head),
            remedy="correct the name, or add the module that registers it to custom_imports",
        )


def _per_level(channels: Any, levels: int) -> tuple[int, ...]:
    return tuple(channels) if isinstance(channels, (list, tuple)) else (int(channels),) * levels
