"""One process with the whole batch and two with half of it give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmkd.losses import registered_losses

from . import distributed
from .conftest import ROOT, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from .distributed import BY_IMAGE, LD, LOCAL, SUMS, TERMS, Results

TOLERANCE = 1e-5
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


@pytest.fixture(scope="module")
def two(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes compute, joined by gloo; one launch for all tests."""
    folder = tmp_path_factory.mktemp("two")
    script, out = folder / "worker.py", folder / "two.pth"
    script.write_text(f"from tests.distributed import worker; worker({checkpoint!r}, {str(out)!r})")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
            f"--master_port={20000 + os.getpid() % 20000}",
            str(script),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.fixture(scope="module")
def whole(checkpoint: str) -> Results:
    init_default_scope("mmdet")
    return distributed.losses_and_gradients(checkpoint, range(4))


@pytest.fixture(scope="module")
def halves(checkpoint: str) -> Results:
    """The mean of two batches in a row."""
    init_default_scope("mmdet")
    return distributed.mean_of(
        [distributed.losses_and_gradients(checkpoint, half) for half in ([0, 1], [2, 3])]
    )


def distance(name: str, found: Results, wanted: Results) -> float:
    """The larger of the relative difference in value and that in gradient, by the largest of a term's."""
    (losses, gradients), (wanted_losses, wanted_gradients) = found, wanted
    assert wanted_losses[name] > 0, name
    return max(
        float((losses[name] - wanted_losses[name]).abs() / wanted_losses[name]),
        gradient_distance(gradients[name], wanted_gradients[name]),
    )


def gradient_distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert scale > 0
    return max(float((found[key] - wanted[key]).abs().max()) for key in wanted) / scale


@pytest.mark.parametrize("name", [*TERMS, *LD])
def test_two_processes_equal_one(two: dict[str, Any], whole: Results, name: str) -> None:
    """Value of the loss, and its gradient on the neck and on layers of its own."""
    assert any(key.startswith("neck") for key in whole[1][name])
    assert distance(name, two["terms"], whole) < TOLERANCE


def test_every_loss_is_among_them() -> None:
    assert {term["type"] for term in (*TERMS.values(), *LD.values())} == set(registered_losses())


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_that_of_a_process(two: dict[str, Any], whole: Results, name: str) -> None:
    losses, gradients = whole
    half = {name: losses[name] / 2}, {name: {key: part / 2 for key, part in gradients[name].items()}}
    assert distance(name, two["terms"], half) < TOLERANCE


@pytest.mark.parametrize("name", LOCAL)
def test_statistics_of_a_process(two: dict[str, Any], halves: Results, name: str) -> None:
    """Documented to be over the images of one process: two of them give the mean of what each gives alone."""
    assert distance(name, two["terms"], halves) < TOLERANCE


@pytest.mark.parametrize("name", [*TERMS, *LD])
def test_two_batches_in_a_row(halves: Results, whole: Results, name: str) -> None:
    """Gradient accumulation: the same for means over images; others have a divisor in each batch."""
    found = distance(name, halves, whole)
    assert found < TOLERANCE if name in BY_IMAGE else found > 10 * TOLERANCE


@pytest.mark.parametrize("kind", ["steps", "accumulated"])
def test_training_in_distributed_data_parallel(two: dict[str, Any], checkpoint: str, kind: str) -> None:
    """Without ``find_unused_parameters``, while losses with layers of their own go to 0 and come back."""
    batches, count = ([range(4)] * 3, 1) if kind == "steps" else ([[0, 2], [1, 3]] * 3, 2)
    logs, gradients = distributed.trained(checkpoint, batches, accumulate=count)
    two_logs, two_gradients = two[kind]
    assert len(gradients) == len(two_gradients) == 3
    for found, wanted in zip(two_logs, logs, strict=True):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}, rel=TOLERANCE, abs=0
        )
    for step, (found, wanted) in enumerate(zip(two_gradients, gradients)):
        assert gradient_distance(found, wanted) < TOLERANCE
        for name in (*distributed.FEATURES, "never"):
            own = [part.abs().max() for key, part in wanted.items() if key.startswith(f"distill.{name}.")]
            assert own
            assert (max(own) > 0) == (step != 1 and name != "never"), name
    assert all(logs[len(logs) // 2][f"loss_kd_{name}"] == 0 for name in distributed.TRAINED)


def test_automatic_weights(two: dict[str, Any], checkpoint: str) -> None:
    """Two processes measure what one does, of the whole batch; the second step is without the terms."""
    logs, _ = distributed.trained(checkpoint, [range(4)] * 3, terms=distributed.AUTOMATIC)
    two_logs, _ = two["automatic"]
    for found, wanted in zip(two_logs, logs, strict=True):
        weights = {key: float(value) for key, value in wanted.items() if key.startswith("kd_weight_")}
        assert weights.keys() == {f"kd_weight_{name}" for name in distributed.AUTOMATIC}
        assert {key: float(found[key]) for key in weights} == pytest.approx(weights, rel=1e-4, abs=0)
    assert [float(log["kd_weight_pkd"]) > 0 for log in logs] == [True, False, True]


@pytest.mark.parametrize("kind", [*distributed.MIXED, "accumulated"])
def test_images_without_labels(two: dict[str, Any], checkpoint: str, kind: str) -> None:
    """In each process, in one, all of one or of all: none waits for another, and all learn as one does."""
    unlabelled = distributed.MIXED.get(kind, distributed.MIXED["in_each"])
    batches, count = ([range(4)] * 3, 1) if kind != "accumulated" else ([[0, 2], [1, 3]] * 3, 2)
    logs, gradients = distributed.trained(checkpoint, batches, accumulate=count, unlabelled=unlabelled)
    two_logs, two_gradients = two[kind if kind != "accumulated" else "mixed_accumulated"]
    # mmdet counts an image without objects, as a process without labels takes one, as if it had one.
    tolerance = 0.05 if kind == "all_in_one" else TOLERANCE
    for found, wanted in zip(two_logs, logs, strict=True):
        for name, value in wanted.items():
            rel = TOLERANCE if "kd" in name else tolerance
            assert float(found[name]) == pytest.approx(float(value), rel=rel, abs=0), name
    assert (logs[0]["loss_cls"] == 0) == (kind == "everywhere")
    assert all(logs[0][f"loss_kd_{name}"] > 0 for name in distributed.TRAINED if name != "never")
    for step, (found, wanted) in enumerate(zip(two_gradients, gradients, strict=True)):
        if step == 1 and kind == "everywhere":  # nothing is learnt
            assert all(part.abs().max() == 0 for part in (*found.values(), *wanted.values()))
        else:
            assert gradient_distance(found, wanted) < tolerance


def test_batch_statistics_of_all_processes(two: dict[str, Any], checkpoint: str) -> None:
    """With the student's batch normalisation in step, as `nn.SyncBatchNorm` keeps it on GPUs."""
    (logs,), (gradients,) = distributed.trained(checkpoint, [range(4)], sync=True)
    (two_logs,), (two_gradients,) = two["synced"]
    for name, value in logs.items():
        assert float(two_logs[name]) == pytest.approx(float(value), rel=TOLERANCE), name
    assert gradient_distance(two_gradients, gradients) < TOLERANCE


def test_sync_batch_norm_is_the_students_alone(checkpoint: str) -> None:
    """What mmengine's ``sync_bn='torch'`` does before it wraps the model."""
    terms = {"cls": {"type": "DistillationLoss"}, "neck": {"type": "FGDLoss", "loss_weight": 1.0}}
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=terms))
    teacher = model.teacher.model
    before = {name: (type(module), module) for name, module in teacher.named_modules()}
    names = list(model.state_dict())
    exact = losses_of(model.eval(), distributed.some_images(range(4)))
    model = convert_sync_batchnorm(model, "torch")
    kinds = {
        type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert kinds == {nn.SyncBatchNorm}
    assert {name: (type(module), module) for name, module in teacher.named_modules()} == before
    assert nn.SyncBatchNorm not in {kind for kind, _ in before.values()}
    assert list(model.state_dict()) == names
    converted = losses_of(model.eval(), distributed.some_images(range(4)))
    assert all(torch.equal(converted[key], exact[key]) for key in ("loss_kd_cls", "loss_kd_neck"))


def test_all_processes_stop_at_a_loss_that_is_not_finite(two: dict[str, Any]) -> None:
    other, own = two["not_finite"]
    assert "Training stopped: the loss of another process is not finite" in other
    assert "Training stopped: loss_cls is not finite" in own


def test_sync_batch_norm_is_for_gpus(two: dict[str, Any]) -> None:
    """With several processes on processors torch refuses it by itself, before the first step."""
    assert "SyncBatchNorm expected input tensor to be on" in two["refusal"]
