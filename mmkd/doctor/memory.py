"""Estimate the memory of a training step, scaled to the config's batch size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmkd.doctor.findings import Finding, NotExamined

if TYPE_CHECKING:
    from mmkd.doctor.setup import TrainingSetup

# Convolution workspaces, fragmentation, and tensors that live for one operation only.
_MARGIN = 1.25


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Attributes:
        images: number of images in the batch.
        pixels: number of pixels of one padded image.
        inputs: the batch itself.
        parameters: the student's parameters, including its losses' own.
        gradients: the gradients of these parameters.
        optimizer: the optimizer's state after a step.
        activations: tensors that the forward pass keeps for the backward pass.
        teacher: the teachers' parameters.
        teacher_layers: the largest input and output of a teacher's layer.
    """

    images: int
    pixels: int
    inputs: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int
    teacher_layers: int

    def peak(self, batch_size: int) -> float:
        """The estimated peak for a batch of this many such images."""
        fixed = self.parameters + self.gradients + self.optimizer + self.teacher
        return _MARGIN * (
            fixed + (self.inputs + self.activations + self.teacher_layers) * batch_size / self.images
        )


@dataclass
class Tally:
    """A byte counter."""

    bytes: int = 0


def examine_memory(setup: TrainingSetup) -> Iterator[Finding]:
    """The parts of the step, and its peak compared with free memory."""
    step = setup.step_memory
    if step is None:
        raise NotExamined("no training step was run")
    batch_size = int(setup.cfg.train_dataloader["batch_size"])
    yield Finding.ok(
        "one step",
        f"of {step.images} images: parameters {_size(step.parameters)}, gradients {_size(step.gradients)}, "
        f"optimizer {_size(step.optimizer)}, activations {_size(step.activations)}",
    )
    if step.teacher:
        share = (step.teacher + step.teacher_layers) / (step.peak(step.images) / _MARGIN)
        yield Finding.ok(
            "the teacher",
            f"parameters {_size(step.teacher)}, its largest layer {_size(step.teacher_layers)}: "
            f"{share:.0%} of the whole",
        )
    peak, free = step.peak(batch_size), free_bytes(setup.device)
    text = f"about {_size(peak)} with train_dataloader.batch_size={batch_size} on images of this size"
    yield Finding.expect(
        free is None or peak <= free,
        "peak",
        f"{text}; free memory unknown" if free is None else f"{text}; {_size(free)} free",
        "lower train_dataloader.batch_size, use --amp, or free memory",
    )


@contextmanager
def count_saved(model: nn.Module) -> Iterator[Tally]:
    """While open, count what autograd keeps for the backward pass, each storage once, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    tally = Tally()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            tally.bytes += storage.nbytes()
        return tensor  # held until the backward pass, so its memory is not reused meanwhile

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield tally


@contextmanager
def largest_layer(model: nn.Module) -> Iterator[Tally]:
    """While open, record the most bytes that a single leaf layer takes and returns."""
    tally = Tally()

    def look(_: nn.Module, args: Any, result: Any) -> None:
        tensors = [x for x in [*args, result] if isinstance(x, Tensor)]
        tally.bytes = max(tally.bytes, sum(x.nbytes for x in tensors))

    handles = [m.register_forward_hook(look) for m in model.modules() if not any(True for _ in m.children())]
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def of_parameters(parameters: Iterable[Tensor]) -> int:
    """The parameters' size in bytes."""
    return sum(p.nbytes for p in parameters)


def free_bytes(device: str) -> int | None:
    """The free memory of a device, or of the host for ``cpu``; ``None`` if unknown."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
