"""Settings that fit data and machine: image size, anchors, batch and schedule, each with its reason."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from mmkd.project.dataset import DataSet

# Longest side of images, unless they are smaller, and the most it may grow for small objects.
_SIDE = {"cpu": (320, 640), "cuda": (1333, 1600)}
# A smaller object covers less than one position of a level with stride 8.
_SMALLEST_OBJECT = 8
_BATCH = {"cpu": 8, "cuda": 16}
# ATSS-R50 and its teacher need about this much memory in training, with some margin.
_GIB_PER_MEGAPIXEL = 4.0
_STEPS = {"scratch": 2000, "pretrained": 3000}
_EPOCHS = {"scratch": (12, 100), "pretrained": (12, 60)}


@dataclass(frozen=True)
class Machine:
    """Where to train: ``cpu`` or ``cuda``, a name, the number of processors, and GPU memory in GiB."""

    device: str
    name: str
    processors: int
    memory: float = 0.0


@dataclass(frozen=True)
class Setting:
    """A value and why it was chosen."""

    value: Any
    why: str


@dataclass(frozen=True)
class Fit:
    """The settings of a project."""

    side: Setting
    anchor_scale: Setting
    batch: Setting
    workers: int
    teacher_epochs: Setting
    student_epochs: Setting


def this_machine() -> Machine:
    """This machine."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Machine("cpu", f"no GPU, {processors} CPU cores", processors)
    about = torch.cuda.get_device_properties(0)
    memory = about.total_memory / 2**30
    return Machine("cuda", f"{about.name}, {memory:.0f} GiB", processors, memory)


def fit(data: DataSet, machine: Machine, pretrained: bool) -> Fit:
    """Settings for a data set and a machine.

    Args:
        data: the data set.
        machine: the machine to train on.
        pretrained: whether the teacher starts from COCO weights and the student's backbone from ImageNet.

    Example:
        >>> side(320, 0.05, "cpu").value
        320
    """
    long = side(data.longest_side, data.object_sizes[0], machine.device)
    size = batch(long.value, data.splits["train"].image_count, machine)
    steps = max(1, data.splits["train"].image_count // size.value)
    teacher = epochs(steps, pretrained)
    half = max(_EPOCHS["pretrained" if pretrained else "scratch"][0] // 2, math.ceil(teacher.value / 2))
    return Fit(
        long,
        anchor_scale(data.object_sizes[0] * long.value),
        size,
        min(4, max(1, machine.processors // 2)),
        teacher,
        Setting(half, "half of the teacher's, both alone and distilled"),
    )


def side(median: int, smallest_part: float, device: str) -> Setting:
    """The longest side of the detectors' input: a multiple of 32, the stride of a backbone's last level."""
    usual, most = _SIDE[device]
    wanted: float = min(median, usual)
    why = f"half of the images have a longest side of at least {median} px"
    if median > usual:
        why += f"; more than {usual} takes too long {'without a GPU' if device == 'cpu' else 'for most'}"
    needed = _SMALLEST_OBJECT / max(smallest_part, 1e-6)
    if wanted < needed and wanted < median:
        wanted = min(needed, most, median)
        why = (
            f"so that most objects are {_SMALLEST_OBJECT} px or larger"
            if wanted >= needed
            else "as large as practical, because objects are small"
        )
    return Setting(max(64, 32 * round(wanted / 32)), why)


def anchor_scale(small: float) -> Setting:
    """``octave_base_scale`` of ATSS and RetinaNet; the smallest anchor has 8 times this size, in pixels.

    Args:
        small: the 10 % quantile of object sizes in the detector's input, in pixels.
    """
    scale = next((scale for scale in (8, 4) if 8 * scale <= 2 * small), 2)
    if scale == 8:
        return Setting(8, f"default: they start at 64 px; a tenth of the objects are below {small:.0f} px")
    why = f"they start at {8 * scale} px, because a tenth of the objects are below {small:.0f} px (stock: 64)"
    return Setting(scale, why)


def batch(side: int, images: int, machine: Machine) -> Setting:
    """The batch size, a power of two; small enough for 20 steps per epoch, but at least 4."""
    size = _BATCH[machine.device]
    why = "small images on a CPU" if machine.device == "cpu" else f"the usual size on {machine.name}"
    if machine.device == "cpu" and side > 400:
        size, why = 4, "larger images on a CPU"
    if machine.device == "cuda":
        fitting = machine.memory / (_GIB_PER_MEGAPIXEL * side * side / 1e6)
        if fitting < size:
            size = max(2, 2 ** int(math.log2(max(fitting, 2))))
            why = f"fits into {machine.memory:.0f} GiB at this size"
    if images < 20 * size and size > 4:
        size = max(4, 2 ** int(math.log2(max(images / 20, 4))))
        why = f"with {images} images, so that an epoch has about 20 steps"
    return Setting(size, why)


def epochs(steps: int, pretrained: bool) -> Setting:
    """The teacher's epochs, from the number of steps per epoch."""
    key = "pretrained" if pretrained else "scratch"
    least, most = _EPOCHS[key]
    wanted = math.ceil(_STEPS[key] / steps)
    value = min(max(wanted, least), most)
    why = f"{value * steps} steps of {steps} an epoch; "
    why += "from COCO's weights" if pretrained else "from scratch"
    why += f" about {_STEPS[key]} are enough for a first result"
    return Setting(value, why)
