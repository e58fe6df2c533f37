"""One process with the whole batch and two with half of it give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mmkd.losses import registered_losses

from .conftest import ROOT, batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher

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
# Both heads are ATSS's.
TERMS: dict[str, Any] = {
    **REGIONS_AND_NORMALIZERS,
    "bckd": {"type": "BCKDLoss"},
    "dist": {"type": "DISTLoss"},
    "dist_all": {"type": "DISTLoss", "region": "all"},
    "dkd": {"type": "DKDLoss"},
    "box": {"type": "BoxIoULoss"},
    "box_foreground": {"type": "BoxIoULoss", "region": "foreground"},
    "box_both": {"type": "BoxIoULoss", "region": "teacher_foreground", "min_score": 0.05},
    "quality": {"type": "QualityLoss"},
    "quality_teacher": {"type": "QualityLoss", "region": "teacher"},
    "quality_all": {"type": "QualityLoss", "region": "all"},
    "crossed": {"type": "CrossKDLoss", "layer": 1, "align": False, "losses": CROSSED},
    "cosine": {"type": "CosineLoss"},
    "cosine_conv": {"type": "CosineLoss", "align": "conv", "vector": "mean"},
    "cwd": {"type": "CWDLoss"},
    "fgd": {"type": "FGDLoss"},
    "fitnets": {"type": "FitNetsLoss"},
    "mgd": {"type": "MGDLoss", "mask_ratio": 0},
    "pgd": {"type": "PGDLoss"},
    "pkd": {"type": "PKDLoss", "statistics": "image"},
}
# Both heads are GFL's.
LD: dict[str, Any] = {
    "ld": {"type": "LocalizationDistillationLoss"},
    "ld_vlr": {"type": "LocalizationDistillationLoss", "region": "vlr"},
}


def gfl(cfg: ConfigDict) -> ConfigDict:
    """The same with distributions for boxes."""
    head = cfg.bbox_head
    for key in ("bbox_coder", "loss_centerness"):
        head.pop(key)
    head.update(type="GFLHead", reg_max=7)
    head.loss_cls = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
    head.loss_dfl = {"type": "DistributionFocalLoss", "loss_weight": 0.25}
    return cfg


def losses_and_gradients(
    checkpoint: str, images: slice
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The distillation losses of some of the images, and of each the gradient by parameter.

    The parameters are those of the neck, and of the loss itself.
    """
    data = batch(*SHAPES, boxes=max(BOXES))
    for sample, count in zip(data["data_samples"], BOXES):
        sample.gt_instances = sample.gt_instances[:count]
    data = {key: value[images] for key, value in data.items()}
    values, gradients = {}, {}
    for student, teacher, weights, terms in (
        (tiny_atss(), tiny_teacher(), checkpoint, TERMS),
        (gfl(tiny_atss()), gfl(tiny_teacher()), None, LD),
    ):
        model = build(distilled(student, teacher, weights, distill=terms)).eval()
        losses = losses_of(model, data)
        for name in terms:
            watched = dict(model.neck.named_parameters(prefix="neck"))
            watched |= dict(model.terms[name].named_parameters(prefix="own"))
            values[name] = losses[f"loss_kd_{name}"].detach()
            found = torch.autograd.grad(
                losses[f"loss_kd_{name}"], list(watched.values()), retain_graph=True, allow_unused=True
            )
            gradients[name] = {key: grad for key, grad in zip(watched, found) if grad is not None}
    return values, gradients


def worker(checkpoint: str, out: str) -> None:
    from mmengine.dist import all_reduce, get_rank
    from mmengine.registry import init_default_scope

    torch.distributed.init_process_group("gloo")
    init_default_scope("mmdet")
    half = slice(0, 2) if get_rank() == 0 else slice(2, 4)
    losses, gradients = losses_and_gradients(checkpoint, half)
    # What DistributedDataParallel does with gradients.
    for value in [*losses.values(), *(part for parts in gradients.values() for part in parts.values())]:
        all_reduce(value, op="mean")
    if get_rank() == 0:
        torch.save({"losses": losses, "gradients": gradients}, out)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The value of every registered loss, and its gradient on the neck and on layers of its own.

    Left out is what is documented to depend on the images of one process: `PKDLoss` with its default
    ``statistics='batch'`` and `CrossKDLoss` with its default ``align=True``, which take statistics over
    them; and the random masks of `MGDLoss`, which are others in every process.
    """
    assert {term["type"] for term in (*TERMS.values(), *LD.values())} == set(registered_losses())
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    out = tmp_path / "two.pth"
    code = f"from tests.test_distributed import worker; worker({checkpoint!r}, {str(out)!r})"
    script = tmp_path / "worker.py"
    script.write_text(code)
    port = 20000 + os.getpid() % 20000
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={port}",
        str(script),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(out)
    losses, gradients = losses_and_gradients(checkpoint, slice(0, 4))
    assert losses.keys() == two["losses"].keys()
    for name, value in losses.items():
        assert value > 0, name
        assert float(two["losses"][name]) == pytest.approx(float(value), rel=1e-5), name
        assert gradients[name].keys() == two["gradients"][name].keys(), name
        assert any(key.startswith("neck") for key in gradients[name]), name
        scale = max(float(gradient.abs().max()) for gradient in gradients[name].values())
        assert scale > 0, name
        for key, gradient in gradients[name].items():
            torch.testing.assert_close(
                two["gradients"][name][key],
                gradient,
                rtol=1e-4,
                atol=1e-5 * scale,
                msg=lambda text, of=f"{name}, {key}": f"{of}: {text}",
            )
