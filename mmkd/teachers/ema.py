"""`EMATeacher`: a teacher whose weights are the moving average of the student's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd.errors import UserError, check_options, naming
from mmkd.functional.checks import check_number
from mmkd.structures import Need
from mmkd.teachers.forward import Forward, computed
from mmkd.teachers.frozen import FrozenTeacher
from mmkd.teachers.pixels import Renormalizer

DEFAULT_MOMENTUM = 0.001


class EMATeacher(FrozenTeacher):
    r"""A copy of the student whose weights are a moving average of the student's.

    After each optimizer step, with θ the student's weights and m the momentum,

    .. math:: \bar\theta \leftarrow (1 - m)\,\bar\theta + m\,\theta

    Buffers, such as BatchNorm statistics, are copied from the student. It starts equal to the student. It
    computes in float32 and eval mode; BatchNorm is not folded, and no layer is left out. Like every teacher,
    it is not part of the student's parameters, modules or state; `EMATeacherHook` updates and saves it.

    Source: https://arxiv.org/abs/1703.01780 (mean teacher, α = 1 − m); m as in mmengine's
    `ExponentialMovingAverage`.

    Args:
        teacher: ``dict(ema=dict(momentum=…))``, with momentum in (0, 1).
        needs: as for `FrozenTeacher`.
        student: the student.

    Raises:
        UserError: an option is wrong, including ``cache``, because its answers change in each step; or it is
            asked without its hook.
    """

    def __init__(self, teacher: Mapping[str, Any], needs: frozenset[Need], student: Any) -> None:
        if teacher.get("cache") is not None:
            raise UserError(
                "Cannot cache an EMA teacher: its outputs change in every step.",
                expected="teacher=dict(ema=dict(momentum=…))",
                found="cache",
                remedy="remove teacher.cache",
            )
        check_options("teacher", teacher, ["ema", "every"])
        options = {} if teacher["ema"] is None else teacher["ema"]
        if not isinstance(options, Mapping):
            raise UserError(f"teacher.ema must be a dict, like ema=dict(momentum=0.001), found {options!r}")
        check_options("teacher.ema", options, ["momentum"])
        self.momentum = options.get("momentum", DEFAULT_MOMENTUM)
        with naming("teacher.ema."):
            check_number("(0, 1)", momentum=self.momentum)
        self.needs, self._gives_boxes, self._detects = (
            computed(needs),
            "boxes" in needs,
            "detections" in needs,
        )
        self.forward = Forward(_plain(student), needs)
        self.spec = self.forward.spec
        self.pixels = Renormalizer(student.data_preprocessor, student.data_preprocessor)
        self.own_stream = False
        self._begun = False
        parameters = sum(p.numel() for p in self.model.parameters())
        self.facts = {
            "detector": f"EMA of {type(student).__name__}",
            "config": "inline",
            "checkpoint": None,
            "parameters_computed": parameters,
            "classes": None,
            "left_out": [],
            "batch_norm_folded": False,
            "pixels_renormalized": False,
            "momentum": self.momentum,
        }
        print_log(
            f"teacher: moving average of the student's weights with momentum {self.momentum}, "
            f"{parameters / 1000000.0:.2f} M parameters",
            "current",
        )

    def begin(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights.

        Args:
            state: the student's ``state_dict``, or the result of `state_dict`.
        """
        self.model.load_state_dict({name: state[name] for name in self.model.state_dict()})
        self._begun = True

    @property
    def _whole(self) -> Any:
        return self.model

    @torch.no_grad()
    def step(self, student: Any) -> None:
        """Update the average with the student's weights."""
        parameters, buffers = dict(student.named_parameters()), dict(student.named_buffers())
        for name, average in self.model.named_parameters():
            average.lerp_(parameters[name].to(average), self.momentum)
        for name, kept in self.model.named_buffers():
            kept.copy_(buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights, under the student's names."""
        return self.model.state_dict()

    def _make_ready(self, device: torch.device) -> None:
        if not self._begun:
            raise UserError(
                "The EMA teacher is used, but nothing updates its weights.",
                expected="the hook that updates them",
                found="none",
                remedy="add custom_hooks=[dict(type='EMATeacherHook')], or train with mmkd's tools/train.py",
            )
        super()._make_ready(device)


def _plain(student: Any) -> Any:
    """A copy of a student without losses and teacher."""
    plain = copy.deepcopy(student)
    plain.distill, plain.teacher = nn.ModuleDict(), None
    return plain.requires_grad_(False).eval()
