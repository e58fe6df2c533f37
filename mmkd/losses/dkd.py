"""`DKDLoss`: decoupled knowledge distillation on the class logits of assigned priors."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.checks import check_factors
from mmkd.functional.kl import check_kl_options
from mmkd.functional.logits import check_two_classes, decoupled_kl
from mmkd.losses.base import DistillLoss, is_object
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Valid


@MODELS.register_module()
class DKDLoss(DistillLoss):
    r"""KL of softmaxes with a factor each for the assigned class and for the others.

    .. math:: \frac{\lambda}{n} \sum_i T^2
        \left( \alpha \, \mathrm{KL}(b^t_i \| b^s_i) + \beta \, \mathrm{KL}(\hat p^t_i \| \hat p^s_i) \right)

    over the n priors i to which the student's assigner gives an object, outside the padding; b is the softmax
    score of the assigned class against all others together, :math:`\hat p` the softmax over the others; see
    :func:`mmkd.functional.decoupled_kl`. n is averaged over processes. A background channel of
    a softmax head is one of the others. As a softmax compares the classes of a prior with each other, a head
    with sigmoids learns from it which class an object has and not that there is one.

    Source: Zhao et al., CVPR 2022 (https://arxiv.org/abs/2203.08679); α = 1, β = 0.25, T = 1 are its settings
    for detection. Reference implementation: https://github.com/megvii-research/mdistiller, for two-stage
    detectors, which takes all sampled proposals with background as a class. Dense heads with sigmoids have
    no such class, so their background is left out.

    Args:
        loss_weight: λ ≥ 0.
        alpha: factor ≥ 0 of the assigned class.
        beta: factor ≥ 0 of the others; with two classes its term is zero.
        temperature: T > 0.
        valid: which priors count, see `DistillLoss`.

    Raises:
        UserError: an option is out of its range, or there is one class only.
    """

    needs = frozenset({"cls_logits", "labels"})

    def __init__(
        self,
        loss_weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.25,
        temperature: float = 1.0,
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, valid)
        try:
            check_kl_options(temperature, "softmax", "sum")
            check_factors(alpha=alpha, beta=beta)
        except ValueError as error:
            raise UserError(f"DKDLoss: {error}") from None
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse one class channel, and two if only the term of the others is asked for."""
        try:
            check_two_classes(student.cls_channels)
            if self.alpha == 0 and student.cls_channels == 2:
                raise ValueError(
                    "alpha is 0 and with two classes the term of beta is 0 as well; set alpha > 0"
                )
        except ValueError as error:
            raise UserError(f"DKDLoss: {error}") from None

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits.
            teacher: outputs with class logits of the same layout.
            context: the batch, with labels.
        """
        labels_N = context.labels_N
        assert labels_N is not None
        rows = (context.valid_N & is_object(student, context)).nonzero().squeeze(1)
        # No object on any process: the sum above it is zero as well.
        divisor = context.mean_over_processes(rows.new_tensor(len(rows)))
        loss = decoupled_kl(
            student.flat_cls_logits()[rows],
            teacher.flat_cls_logits()[rows],
            labels_N[rows],
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            avg_factor=divisor.clamp(min=torch.finfo(torch.float32).eps),
        )
        return self.loss_weight * loss
