"""What one process and two compute alike: losses and gradients of every term, and steps of a training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.dist import all_reduce, get_rank, get_world_size, is_distributed
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce as all_reduce_with_gradient

from mmkd.detectors.finite import FiniteCheck
from mmkd.errors import UserError

from .conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher

SHAPES = [(64, 96), (96, 64), (96, 96), (64, 64)]  # either half of them is padded to 96×96
BOXES = (3, 1, 0, 4)  # on each: the halves count differently
REGIONS_AND_NORMALIZERS: dict[str, Any] = {
    f"{region}_{normalizer}": {"type": "DistillationLoss", "region": region, "normalizer": normalizer}
    for region in ("all", "foreground", "teacher")
    for normalizer in ("region", "priors", "batch")
}
CROSSED = {
    "cls": {"type": "BCKDLoss"},
    "box": {"type": "BoxIoULoss"},
    "centerness": {"type": "QualityLoss"},
}
FEATURES: dict[str, Any] = {
    "cosine": {"type": "CosineLoss"},
    "cwd": {"type": "CWDLoss"},
    "fgd": {"type": "FGDLoss", "loss_weight": 1.0},
    "fitnets": {"type": "FitNetsLoss"},
    "mgd": {"type": "MGDLoss", "loss_weight": 2e-5, "mask_ratio": 0},
    "pgd": {"type": "PGDLoss", "loss_weight": 1.0},
    "pkd": {"type": "PKDLoss", "statistics": "image"},
}
# Both heads are ATSS's.
TERMS: dict[str, Any] = {
    **REGIONS_AND_NORMALIZERS,
    "softmax_mean": {"type": "DistillationLoss", "activation": "softmax", "reduction": "mean"},
    "bckd": {"type": "BCKDLoss"},
    "dist": {"type": "DISTLoss"},
    "dist_all": {"type": "DISTLoss", "region": "all"},
    "dkd": {"type": "DKDLoss"},
    "box": {"type": "BoxIoULoss"},
    "box_l1": {"type": "BoxL1Loss"},
    "box_foreground": {"type": "BoxIoULoss", "region": "foreground"},
    "box_both": {"type": "BoxIoULoss", "region": "teacher_foreground", "min_score": 0.05},
    "quality": {"type": "QualityLoss"},
    "quality_teacher": {"type": "QualityLoss", "region": "teacher"},
    "quality_all": {"type": "QualityLoss", "region": "all"},
    "crossed": {"type": "CrossKDLoss", "layer": 1, "align": False, "losses": CROSSED},
    "teacher_boxes": {"type": "TeacherBoxesLoss", "min_score": 0.1},
    **FEATURES,
    "cosine_conv": {"type": "CosineLoss", "align": "conv", "vector": "mean"},
    "fitnets_conv": {"type": "FitNetsLoss", "align": "conv"},
}
# Both heads are GFL's.
LD: dict[str, Any] = {
    "ld": {"type": "LocalizationDistillationLoss"},
    "ld_main": {"type": "LocalizationDistillationLoss", "region": "main"},
    "ld_vlr": {"type": "LocalizationDistillationLoss", "region": "vlr"},
}
# Documented to be sums: half of the images, half of the value.
SUMS: dict[str, Any] = {
    "sum": {"type": "DistillationLoss", "reduction": "sum"},
    "ld_sum": {"type": "LocalizationDistillationLoss", "normalizer": "none"},
}
# Documented to depend on the images of one process.
LOCAL: dict[str, Any] = {
    "pkd_batch": {"type": "PKDLoss"},
    "crossed_aligned": {"type": "CrossKDLoss", "layer": 1, "losses": {"cls": TERMS["all_batch"]}},
}
# The mean over the images of what each gives: the same in two batches in a row.
BY_IMAGE = {"all_batch", "foreground_batch", "teacher_batch", *FEATURES, "cosine_conv", "fitnets_conv"}
# What a student trains with: layers of losses in abundance, one of them never in use.
TRAINED: dict[str, Any] = {
    **{name: {**cfg, "align": "conv"} for name, cfg in FEATURES.items()},
    **{name: TERMS[name] for name in ("teacher_region", "foreground_region", "box", "quality", "crossed")},
    "never": {"type": "FitNetsLoss", "align": "conv", "loss_weight": 0},
}
# Which images have no labels; the first two are of the first process.
# Those of `BY_IMAGE`, so that one process and two have the same gradients on the neck.
AUTOMATIC: dict[str, Any] = {
    "cls": {**REGIONS_AND_NORMALIZERS["all_batch"], "loss_weight": "auto"},
    "pkd": {"type": "PKDLoss", "statistics": "image", "share": 0.3},
    "foreground": {**REGIONS_AND_NORMALIZERS["foreground_region"], "share": 0.2},
}
MIXED = {"in_each": (1, 3), "all_in_one": (2, 3), "in_one": (0,), "everywhere": (0, 1, 2, 3)}
Results = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]


def gfl(cfg: ConfigDict) -> ConfigDict:
    """The same with distributions for boxes."""
    head = cfg.bbox_head
    for key in ("bbox_coder", "loss_centerness"):
        head.pop(key)
    head.update(type="GFLHead", reg_max=7)
    head.loss_cls = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
    head.loss_dfl = {"type": "DistributionFocalLoss", "loss_weight": 0.25}
    return cfg


def some_images(indices: Sequence[int], shapes: Sequence[tuple[int, int]] = SHAPES) -> dict[str, Any]:
    """These of the four images, as a data loader gives them."""
    data = batch(*shapes, boxes=max(BOXES))
    for sample, count in zip(data["data_samples"], BOXES):
        sample.gt_instances = sample.gt_instances[:count]
    return {key: [value[index] for index in indices] for key, value in data.items()}


def losses_and_gradients(checkpoint: str, indices: Sequence[int]) -> Results:
    """The distillation losses of some of the images, and of each the gradient by parameter.

    The parameters are those of the neck, and of the loss itself.
    """
    values, gradients = {}, {}
    for student, teacher, weights, terms in (
        (tiny_atss(), tiny_teacher(), checkpoint, {**TERMS, **LOCAL, "sum": SUMS["sum"]}),
        (gfl(tiny_atss()), gfl(tiny_teacher()), None, {**LD, "ld_sum": SUMS["ld_sum"]}),
    ):
        model = build(distilled(student, teacher, weights, distill=terms)).eval()
        losses = losses_of(model, some_images(indices))
        for name in terms:
            watched = dict(model.neck.named_parameters(prefix="neck"))
            watched |= dict(model.terms[name].named_parameters(prefix="own"))
            values[name] = losses[f"loss_kd_{name}"].detach()
            found = torch.autograd.grad(
                losses[f"loss_kd_{name}"], list(watched.values()), retain_graph=True, allow_unused=True
            )
            gradients[name] = {key: grad for key, grad in zip(watched, found) if grad is not None}
    return values, gradients


def mean_of(results: Sequence[Results]) -> Results:
    """The mean of each loss and gradient: of processes, or of batches in a row."""
    losses, gradients = zip(*results)
    return (
        {name: torch.stack([one[name] for one in losses]).mean(0) for name in losses[0]},
        {
            name: {key: torch.stack([one[name][key] for one in gradients]).mean(0) for key in parts}
            for name, parts in gradients[0].items()
        },
    )


class GlooSyncBatchNorm(nn.BatchNorm2d):
    """What `nn.SyncBatchNorm` computes on GPUs, composed for processors: statistics of all processes."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """As batch normalisation in training."""
        moments_2C = torch.stack([x_BCHW.mean((0, 2, 3)), x_BCHW.square().mean((0, 2, 3))])
        mean_C, square_C = all_reduce_with_gradient(moments_2C) / get_world_size()
        scale_C = self.weight * (square_C - mean_C.square() + self.eps).rsqrt()
        return x_BCHW * scale_C[:, None, None] + (self.bias - mean_C * scale_C)[:, None, None]


def found_by_teacher(_: Tensor, data_samples: Sequence[Any]) -> list[InstanceData]:
    """Objects that depend on the image alone; the last is not sure enough."""
    boxes_G4 = torch.tensor([[8.0, 8, 40, 40], [20, 20, 60, 60], [4, 30, 30, 62]])
    scores_G = torch.tensor([0.9, 0.6, 0.2])
    return [
        InstanceData(bboxes=boxes_G4 + 4 * sample.img_id, labels=torch.arange(3), scores=scores_G)
        for sample in data_samples
    ]


def trained(
    checkpoint: str,
    batches: Sequence[Sequence[int]],
    accumulate: int = 1,
    sync: bool = False,
    unlabelled: Sequence[int] = (),
    terms: Mapping[str, Any] = TRAINED,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Train a student by mmengine's own steps, in DistributedDataParallel if there are several processes.

    A schedule sets every loss to 0 in the second third, as `DistillScheduleHook` does.

    Args:
        checkpoint: the teacher's.
        batches: for each step the images, all of one size.
        accumulate: ``accumulative_counts``.
        sync: normalise by the statistics of the batch, of all processes; else by those kept.
        unlabelled: the images whose labels are left out.
        terms: the losses.

    Returns:
        The losses of each step, the mean over the processes, and the gradients at each update by name.
    """
    student = tiny_atss(backbone__norm_eval=not sync)
    model = build(distilled(student, tiny_teacher(), checkpoint, distill=dict(terms))).train()
    model.teacher.detect = found_by_teacher
    wrapped = model
    if is_distributed():
        for module in model.modules():
            if sync and isinstance(module, nn.BatchNorm2d):
                module.__class__ = GlooSyncBatchNorm
        wrapped = MMDistributedDataParallel(module=model, broadcast_buffers=False)
    # After a step, a difference in the last bit may take a ReLU or a maximum to its other side.
    cfg = {"optimizer": {"type": "SGD", "lr": 0.0}, "accumulative_counts": accumulate}
    optim_wrapper = build_optim_wrapper(wrapped, cfg)
    optim_wrapper.initialize_count_status(wrapped, 0, len(batches))
    gradients: list[dict[str, Tensor]] = []
    optim_wrapper.optimizer.register_step_pre_hook(lambda *_: gradients.append(_gradients(model)))
    weights = {name: term.loss_weight for name, term in model.terms.items()}
    logs = []
    for step, indices in enumerate(batches):
        for name, term in model.terms.items():
            term.loss_weight = 0 if step * 3 // len(batches) == 1 else weights[name]
        data = some_images(indices, [(96, 96)] * 4)
        for sample in data["data_samples"]:
            sample.set_metainfo({"labelled": sample.img_id not in unlabelled})
        losses = wrapped.train_step(data, optim_wrapper)
        for value in losses.values():
            all_reduce(value, op="mean")
        logs.append({name: value.detach().clone() for name, value in losses.items()})
    return logs, gradients


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: copy.deepcopy(weight.grad) for name, weight in model.named_parameters()}


def _error_of_sync_batch_norm(image: int) -> str:
    model = convert_sync_batchnorm(build(tiny_atss())).train()
    try:
        losses_of(model, some_images([image]))
    except ValueError as error:
        return str(error)
    return ""


def _errors_of_a_loss_that_is_not_finite() -> list[str]:
    """What each process says, though only the second has such a loss."""
    check, loss = FiniteCheck(), torch.tensor(float("nan") if get_rank() else 1.0)
    errors: list[str] = [""] * get_world_size()
    try:
        check(loss, {"loss": loss, "loss_cls": loss})
    except UserError as error:
        torch.distributed.all_gather_object(errors, str(error))
    return errors


def worker(checkpoint: str, out: str) -> None:
    """One of two processes."""
    from mmengine.registry import init_default_scope

    torch.distributed.init_process_group("gloo")
    init_default_scope("mmdet")
    first = 2 * get_rank()
    losses, gradients = losses_and_gradients(checkpoint, [first, first + 1])
    # What DistributedDataParallel does with gradients.
    for value in [*losses.values(), *(part for parts in gradients.values() for part in parts.values())]:
        all_reduce(value, op="mean")
    results: Mapping[str, Any] = {
        "terms": (losses, gradients),
        "steps": trained(checkpoint, [[first, first + 1]] * 3),
        "accumulated": trained(checkpoint, [[first], [first + 1]] * 3, accumulate=2),
        **{
            name: trained(checkpoint, [[first, first + 1]] * 3, unlabelled=unlabelled)
            for name, unlabelled in MIXED.items()
        },
        "mixed_accumulated": trained(
            checkpoint, [[first], [first + 1]] * 3, accumulate=2, unlabelled=MIXED["in_each"]
        ),
        "automatic": trained(checkpoint, [[first, first + 1]] * 3, terms=AUTOMATIC),
        "synced": trained(checkpoint, [[first, first + 1]], sync=True),
        "not_finite": _errors_of_a_loss_that_is_not_finite(),
        "refusal": _error_of_sync_batch_norm(first),
    }
    if get_rank() == 0:
        torch.save(results, out)
    torch.distributed.destroy_process_group()
