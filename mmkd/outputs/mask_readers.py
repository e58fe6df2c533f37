"""Masks that one-stage detectors predict from single points, anchors or grid cells; one reader per family.

Shape suffixes: R priors with an object, h and w size of a mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import (
    CondInstMaskHead,
    DecoupledSOLOHead,
    RTMDetInsHead,
    SOLOHead,
    SOLOV2Head,
    YOLACTProtonet,
)
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd.heads import adapter_for
from mmkd.heads.anchors import stable_logit
from mmkd.heads.calls import Calls
from mmkd.outputs.grid import watch_cells
from mmkd.outputs.methods import recorded
from mmkd.outputs.roi_heads import hooked, plain_maps
from mmkd.structures import HeadSpec


@dataclass(frozen=True)
class Group:
    """Masks of one size: those of an image, or of a level.

    Attributes:
        image_R: the image of each mask.
        logits_Rhw: whether a pixel belongs to the object.
        inside_Rhw: bool, False where the head learns no mask; ``None`` if it learns everywhere.
    """

    image_R: Tensor
    logits_Rhw: Tensor
    inside_Rhw: Tensor | None = None


@dataclass(frozen=True)
class PriorSpec(HeadSpec):
    """Also what else must match for masks of equal priors.

    Attributes:
        kind: the name of the detector family.
        grids: the cells along a side, per level, if there are grids.
    """

    kind: str = ""
    grids: tuple[int, ...] = ()


class MaskReader(ABC):
    """Reads the masks of a family of heads. It has no state.

    Attributes:
        kind: the name of the family.
    """

    kind: str

    def spec(self, detector: Any) -> PriorSpec:
        """The layout of the priors."""
        head = detector.bbox_head
        dense = adapter_for(head).spec(head)
        return PriorSpec(1, 1, True, dense.strides, dense.num_base_priors, (), self.kind)

    @abstractmethod
    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """Record the masks during a loss."""

    @abstractmethod
    def student(self, detector: Any, seen: Any) -> tuple[Any, list[Group]]:
        """The priors with an object, for `teacher`, and their masks, from which the loss was computed."""

    @abstractmethod
    def teacher(self, detector: Any, inner: Any, priors: Any) -> list[Tensor]:
        """The masks of the same priors, by group."""


class OfPositives(MaskReader):
    """CondInst and YOLACT, whose mask heads receive the priors with objects and their parameters.

    Args:
        kind: the name of the family.
        parameters: the mask head's name for the parameters of a prior.
    """

    def __init__(self, kind: str, parameters: str) -> None:
        self.kind, self.parameters = kind, parameters

    @contextmanager
    def watch(self, detector: Any) -> Iterator[tuple[Calls[Any], Any]]:  # noqa: D102
        seen: Calls[Any] = Calls()
        head = detector.mask_head

        def on_masks(_: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            seen.add((args, output[0]))

        with ExitStack() as stack:
            stack.enter_context(hooked(head.register_forward_hook(on_masks)))
            crops = hasattr(head, "crop_mask_preds")
            yield seen, stack.enter_context(recorded(head, "crop_mask_preds")) if crops else None

    def student(self, detector: Any, seen: tuple[Calls[Any], Any]) -> tuple[Any, list[Group]]:  # noqa: D102
        masks, crops = seen
        (_, infos), given = list(masks)[-1]
        inside = [None] * len(infos) if crops is None else [cut > 0 for cut in list(crops)[-1]]
        groups = [
            Group(torch.full_like(info.pos_inds, image), self._logits(one, info), inside_Rhw)
            for image, (info, one, inside_Rhw) in enumerate(zip(infos, given, inside))
        ]
        return infos, groups

    def teacher(self, detector: Any, inner: Any, priors: Sequence[Any]) -> list[Tensor]:  # noqa: D102
        x = plain_maps(inner)
        width = priors[0][self.parameters].shape[1]
        # They are the last outputs; those of a base prior are adjacent.
        params_BNP = torch.cat(
            [
                level.float().permute(0, 2, 3, 1).reshape(len(level), -1, width)
                for level in _dense(detector, inner)[-1]
            ],
            dim=1,
        )
        infos = []
        for info, params_NP in zip(priors, params_BNP):
            place = {name: info[name] for name in ("points", "strides") if name in info}
            infos.append(InstanceData(**place, **{self.parameters: params_NP[info.pos_inds]}))
        masks = detector.mask_head(x, infos)[0]
        return [self._logits(one, info) for one, info in zip(masks, priors)]

    def _logits(self, given: Tensor, info: Any) -> Tensor:
        """The mask head's output for an image as logits (R, h, w)."""
        if self.kind == "YOLACT":
            return stable_logit(given.permute(2, 0, 1))
        return given.reshape(-1, *given.shape[-2:])[: len(info.pos_inds)]  # CondInst returns 0×1×h×w for none


def _dense(detector: Any, inner: Any) -> Any:
    """A teacher's dense head output, in the head's precision, as when losses read its maps."""
    dtype = next(detector.bbox_head.parameters()).dtype
    return detector.bbox_head(tuple(level.to(dtype) for level in plain_maps(inner)))


class OfRTMDet(MaskReader):
    """RTMDet-Ins, whose head has its own method for the masks of an image."""

    kind = "RTMDet-Ins"

    @contextmanager
    def watch(self, detector: Any) -> Iterator[tuple[Calls[Any], Calls[Tensor]]]:  # noqa: D102
        head = detector.bbox_head
        with (
            recorded(head, "get_targets") as targets,
            recorded(head, "_mask_predict_by_feat_single") as masks,
        ):
            yield targets, masks

    def student(self, detector: Any, seen: tuple[Calls[Any], Calls[Tensor]]) -> tuple[Any, list[Group]]:  # noqa: D102
        targets, masks = seen
        sampled = list(targets)[-1][-1]
        groups = [
            Group(torch.full_like(one.pos_inds, image), logits_Rhw)
            for image, (one, logits_Rhw) in enumerate(zip(sampled, masks))
        ]
        return [(one.pos_inds, one.pos_priors) for one in sampled], groups

    def teacher(  # noqa: D102
        self, detector: Any, inner: Any, priors: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        head = detector.bbox_head
        _, _, kernels, mask_feat = _dense(detector, inner)
        kernels_BNP = torch.cat([level.float().flatten(2).transpose(1, 2) for level in kernels], dim=1)
        return [
            head._mask_predict_by_feat_single(feat, kernels_NP[of_R], priors_R4)
            for feat, kernels_NP, (of_R, priors_R4) in zip(mask_feat.float(), kernels_BNP, priors)
        ]


class OfCells(MaskReader):
    """SOLO, Decoupled SOLO and SOLOv2; a group is a level."""

    kind = "SOLO"

    def spec(self, detector: Any) -> PriorSpec:  # noqa: D102
        return PriorSpec(1, 1, True, (), (), (), self.kind, tuple(detector.mask_head.num_grids))

    @contextmanager
    def watch(self, detector: Any) -> Iterator[tuple[Any, Any]]:  # noqa: D102
        with watch_cells(detector.mask_head) as cells, _watch_maps(detector.mask_head) as maps:
            yield cells, maps

    def student(self, detector: Any, seen: tuple[Any, Any]) -> tuple[Any, list[Group]]:  # noqa: D102
        cells, maps = seen
        head = detector.mask_head
        priors = []
        for labels_N, grid in zip(cells.labels(head), head.num_grids):
            of_R = (labels_N < head.num_classes).nonzero().squeeze(1)
            priors.append((of_R // grid**2, of_R % grid**2))
        masks = _masks_of_cells(head, maps, priors)
        return priors, [Group(image_R, masks_Rhw) for (image_R, _), masks_Rhw in zip(priors, masks)]

    def teacher(  # noqa: D102
        self, detector: Any, inner: Any, priors: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        with _watch_maps(detector.mask_head) as maps:
            detector.mask_head(plain_maps(inner))
        return _masks_of_cells(detector.mask_head, maps, priors)


@contextmanager
def _watch_maps(head: Any) -> Iterator[list[Calls[Any]]]:
    """The inputs of a SOLO head's masks, before its sigmoids, per layer."""
    if isinstance(head, SOLOV2Head):
        layers = [[head.conv_kernel], [head.mask_feature_head]]
    elif isinstance(head, DecoupledSOLOHead):
        layers = [head.conv_mask_list_x, head.conv_mask_list_y]
    else:
        layers = [head.conv_mask_list]
    seen: list[Calls[Any]] = [Calls() for _ in layers]
    handles = [
        layer.register_forward_hook(lambda _, __, output, calls=calls: calls.add(output))
        for calls, of_levels in zip(seen, layers)
        for layer in of_levels
    ]
    with hooked(*handles):
        yield seen


def _masks_of_cells(
    head: Any, maps: Sequence[Calls[Any]], priors: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Per level, the mask logits of cells, given by image and index."""
    if isinstance(head, SOLOV2Head):
        feat_BChw = list(maps[1])[-1]
        return [
            _dynamic(feat_BChw, kernels.flatten(2)[image_R, :, cell_R], image_R, head.dynamic_conv_size)
            for kernels, (image_R, cell_R) in zip(maps[0], priors)
        ]
    if isinstance(head, DecoupledSOLOHead):
        return [
            _logit_of_product(x[image_R, cell_R % grid], y[image_R, cell_R // grid])
            for x, y, (image_R, cell_R), grid in zip(*maps, priors, head.num_grids)
        ]
    return [level[image_R, cell_R] for level, (image_R, cell_R) in zip(maps[0], priors)]


def _dynamic(feat_BChw: Tensor, kernels_RP: Tensor, image_R: Tensor, size: int) -> Tensor:
    """Convolve each image's features with its kernels; images are concatenated, (R, h, w)."""
    masks = [feat_BChw.flatten()[:0].reshape(0, *feat_BChw.shape[2:])]
    for image in image_R.unique():
        kernels = kernels_RP[image_R == image].unflatten(1, (-1, size, size))
        masks.append(F.conv2d(feat_BChw[image][None], kernels)[0])
    return torch.cat(masks)


def _logit_of_product(x: Tensor, y: Tensor) -> Tensor:
    """The logit of σ(x)·σ(y)."""
    log_p = F.logsigmoid(x.float()) + F.logsigmoid(y.float())
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))


_CONDINST, _YOLACT = OfPositives("CondInst", "param_preds"), OfPositives("YOLACT", "coeffs")
_RTMDET, _SOLO = OfRTMDet(), OfCells()


def mask_reader(detector: Any) -> MaskReader | None:
    """The reader of a detector's masks, chosen by its mask head's class."""
    mask_head = getattr(detector, "mask_head", None)
    if isinstance(mask_head, CondInstMaskHead):
        return _CONDINST
    if isinstance(mask_head, YOLACTProtonet):
        return _YOLACT
    if isinstance(mask_head, SOLOHead):
        return _SOLO
    return _RTMDET if isinstance(getattr(detector, "bbox_head", None), RTMDetInsHead) else None
