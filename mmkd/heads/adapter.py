"""How a dense head says what it says: class of head → `DenseOutputs`.

The default serves every head whose forward gives ``(cls_scores, bbox_preds, …)``
as lists over levels, with logits as class scores. A head that deviates has an
adapter of its own, found along the MRO of the head's class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead, RTMDetHead, VFNetHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from mmkd.errors import user_error
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, HeadSpec, Levels, Need

# Heads that follow the forms of the default adapter but not its meaning.
NOT_YET_SERVED = {
    "TOODHead": "its class scores are probabilities, not logits",
    "YOLOV3Head": "classes, boxes and objectness share one map",
    "YOLOXHead": "its score is class times objectness",
    "CornerHead": "it predicts corners, not priors",
    "CenterNetHead": "it predicts a heat map, not priors",
}


class DenseHeadAdapter:
    """The default adapter. It has no state: the head is always an argument."""

    extra_names: tuple[str, ...] = ()

    def spec(self, head: Any) -> HeadSpec:
        """The layout of the head's outputs.

        Raises:
            UserError: the head has no prior generator to tell its layout.
        """
        generator = getattr(head, "prior_generator", None)
        if generator is None:
            raise _unsupported(head, "it has no prior generator")
        return HeadSpec(
            num_classes=int(head.num_classes),
            cls_channels=int(head.cls_out_channels),
            use_sigmoid=bool(getattr(head, "use_sigmoid_cls", True)),
            strides=tuple((int(x), int(y)) for x, y in generator.strides),
            num_base_priors=tuple(int(a) for a in generator.num_base_priors),
            in_channels=_per_level(head.in_channels, len(generator.strides)),
        )

    def outputs(
        self, head: Any, feats: Sequence[Tensor], raw: Sequence[Any], needs: frozenset[Need]
    ) -> DenseOutputs:
        """Sort the raw outputs of a head's forward.

        Args:
            head: the head.
            feats: its input, per level B×C×H×W.
            raw: what its forward returned.
            needs: the parts to keep.

        Raises:
            UserError: the class scores are not B×(A·K)×H×W per level.
        """
        spec = self.spec(head)
        cls_logits = tuple(raw[0])
        expected = [A * spec.cls_channels for A in spec.num_base_priors]
        found = [level.shape[1] for level in cls_logits]
        if "cls_logits" in needs and found != expected:
            raise _unsupported(head, f"class channels per level are {found}, not {expected}")
        extra: dict[str, Levels] = {}
        if "extra" in needs:
            extra = {name: tuple(levels) for name, levels in zip(self.extra_names, raw[2:])}
        return DenseOutputs(
            spec=spec,
            feats=tuple(feats),
            cls_logits=cls_logits if "cls_logits" in needs else None,
            bbox_pred=tuple(raw[1]) if "bbox_pred" in needs else None,
            extra=extra,
        )

    def boxes(self, head: Any, outputs: DenseOutputs) -> Levels:
        """Decode the head's box output.

        Args:
            head: the head, in the mode (training or not) in which it gave the output.
            outputs: with ``bbox_pred``.

        Returns:
            Per level B×(A·4)×H×W, float32 or float64: x1, y1, x2, y2 in pixels of the input.
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
            boxes_M4 = self.decode(head, level, priors.to(pred_MD).repeat(B, 1), pred_MD)
            decoded.append(boxes_M4.reshape(B, H, W, A * 4).permute(0, 3, 1, 2))
        return tuple(decoded)

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Boxes (M, 4) of one level from its priors and raw predictions."""
        boxes_M4: Tensor = head.bbox_coder.decode(priors_M, pred_MD)
        return boxes_M4

    def assigned_labels(
        self, head: Any, flat_cls_logits_NK: Tensor, loss_cls_args: Sequence[Sequence[Any]]
    ) -> Tensor:
        """The class assigned to each prior, (N,), background = ``num_classes``.

        Read from what the head passes to its own classification loss, level by
        level or at once, so that the assignment is not computed again.

        Args:
            head: the head.
            flat_cls_logits_NK: the head's logits, to make sure of the order.
            loss_cls_args: the positional arguments of each call of ``head.loss_cls``.

        Raises:
            UserError: the head passes no class indices to its loss, or not in
                the order of its outputs.
        """
        labels = [args[1][0] if isinstance(args[1], tuple) else args[1] for args in loss_cls_args]
        if not labels or any(part.dim() != 1 or part.is_floating_point() for part in labels):
            raise _no_foreground(head, "it gives its loss no class index per prior")
        first_class_N = torch.cat(
            [args[0].reshape(-1, flat_cls_logits_NK.shape[1])[:, 0] for args in loss_cls_args]
        )
        # NaN is for the check of the losses to report, which names the term.
        if not torch.equal(first_class_N.nan_to_num(), flat_cls_logits_NK[:, 0].nan_to_num()):
            raise _no_foreground(head, "it passes its priors to its loss in an order of its own")
        return torch.cat(labels)

    def valid_priors(self, head: Any, cls_logits: Levels, image_shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Which priors lie on their image and not in its padding, (N,) bool.

        Args:
            head: the head.
            cls_logits: per level B×(A·K)×H×W, for sizes and device.
            image_shapes: (height, width) of each image before padding.
        """
        sizes = [tuple(level.shape[-2:]) for level in cls_logits]
        device = cls_logits[0].device
        per_image = [head.prior_generator.valid_flags(sizes, shape, device) for shape in image_shapes]
        return torch.cat([torch.cat(level) for level in zip(*per_image)])


class CenternessAdapter(DenseHeadAdapter):
    """Heads with a centerness map per level as their third output."""

    extra_names = ("centerness",)


class FCOSAdapter(CenternessAdapter):
    """FCOS, whose training output may be in strides where its testing output is in pixels."""

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """Distances from points."""
        if head.norm_on_bbox and head.training:
            pred_MD = pred_MD * head.strides[level]
        return super().decode(head, level, priors_M, pred_MD)


class GFLAdapter(DenseHeadAdapter):
    """GFL, whose boxes are distributions over distances in strides."""

    def decode(self, head: Any, level: int, priors_M: Tensor, pred_MD: Tensor) -> Tensor:
        """The mean of each distribution, from the centers of the anchors."""
        stride = head.prior_generator.strides[level][0]
        centers_M2 = (priors_M[:, :2] + priors_M[:, 2:]) / 2
        return super().decode(head, level, centers_M2, head.integral(pred_MD) * stride)


ADAPTERS: dict[type, DenseHeadAdapter] = {
    BaseDenseHead: DenseHeadAdapter(),
    ATSSHead: CenternessAdapter(),
    FCOSHead: FCOSAdapter(),
    GFLHead: GFLAdapter(),
    # Subclasses of the above without centerness.
    RTMDetHead: DenseHeadAdapter(),
    VFNetHead: DenseHeadAdapter(),
}

_Adapter = TypeVar("_Adapter", bound=type[DenseHeadAdapter])


def register_adapter(head_class: type) -> Callable[[_Adapter], _Adapter]:
    """Class decorator: use this adapter for a class of heads and its subclasses."""

    def register(adapter: _Adapter) -> _Adapter:
        ADAPTERS[head_class] = adapter()
        return adapter

    return register


def adapter_for(head: Any) -> DenseHeadAdapter:
    """The adapter of a head.

    Raises:
        UserError: no adapter serves this class of heads.
    """
    for cls in type(head).__mro__:
        if cls in ADAPTERS:
            return ADAPTERS[cls]
        if cls.__name__ in NOT_YET_SERVED:
            raise _unsupported(head, NOT_YET_SERVED[cls.__name__])
    raise _unsupported(head, "it is not a dense head of mmdet")


def check_head_type(model: Mapping[str, Any], whose: str) -> None:
    """Raise `UserError` if a model config names a head that is not registered.

    Args:
        model: the model config.
        whose: ``student`` or ``teacher``, for the message.
    """
    found = (model.get("bbox_head") or {}).get("type")
    if isinstance(found, str) and MODELS.get(found) is None:
        valid = sorted(
            name
            for name, entry in MODELS.module_dict.items()
            if isinstance(entry, type) and issubclass(entry, BaseDenseHead) and name not in NOT_YET_SERVED
        )
        raise user_error(
            f"The {whose}'s head is not registered.",
            expected=f"bbox_head.type, one of: {', '.join(valid)}",
            found=found,
            remedy="correct the name, or list the module that registers it under custom_imports",
        )


def _per_level(channels: Any, levels: int) -> tuple[int, ...]:
    return tuple(channels) if isinstance(channels, (list, tuple)) else (int(channels),) * levels


def _no_foreground(head: Any, why: str) -> Exception:
    return user_error(
        f"{type(head).__name__} does not tell which priors are foreground: {why}.",
        expected="a head that passes one class index per prior to its loss_cls, in the order of its outputs",
        found=type(head).__name__,
        remedy="set region='all' or region='teacher' on the DistillationLoss",
    )


def _unsupported(head: Any, why: str) -> Exception:
    return user_error(
        f"{type(head).__name__} cannot be distilled: {why}.",
        expected="a dense head whose forward gives (cls_scores, bbox_preds, …) per level, as logits",
        found=type(head).__name__,
        remedy="write an adapter for it: a DenseHeadAdapter under "
        f"@mmkd.heads.register_adapter({type(head).__name__})",
    )
