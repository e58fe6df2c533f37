"""`DKDLoss`: decoupled knowledge distillation on the class logits of assigned priors."""

from __future__ import annotations

from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_factors
from mmkd.functional.kl import check_kl_options
from mmkd.functional.logits import check_two_classes, decoupled_kl
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


@MODELS.register_module()
class DKDLoss(RowLoss):
    r"""KL of softmaxes, with one factor for the assigned class and one for the others.

    .. math:: \frac{\lambda}{n} \sum_i T^2
        \left( \alpha \, \mathrm{KL}(b^t_i \| b^s_i) + \beta \, \mathrm{KL}(\hat p^t_i \| \hat p^s_i) \right)

    over the n priors i that the student's assigner matches to an object, outside the padding; b is the
    softmax score of the assigned class against all others together, :math:`\hat p` the softmax over the
    others; see :func:`mmkd.functional.decoupled_kl`. n is averaged over processes. The background channel of
    a softmax head is one of the others. A softmax compares the classes of a prior with each other, so a
    sigmoid head learns which class an object has but not whether there is an object.

    Source: Zhao et al., CVPR 2022 (https://arxiv.org/abs/2203.08679); α = 1, β = 0.25, T = 1 are its settings
    for detection. Reference implementation: https://github.com/megvii-research/mdistiller, for two-stage
    detectors; it uses all sampled proposals, with background as a class. Dense sigmoid heads have no
    background class, so background priors are left out.

    Args:
        loss_weight: λ ≥ 0.
        alpha: factor ≥ 0 of the assigned class.
        beta: factor ≥ 0 of the others; with two classes its term is zero.
        temperature: T > 0.
        valid: which priors count, see `RowLoss`.
        region: a factor for each prior, see `RowLoss`. Regions beyond the foreground need a background class,
            which two-stage detectors have.
        normalizer: n, see `RowLoss`.

    Raises:
        UserError: an option is out of its range, there is only one class, or the region includes background
            but the head has no background class.
    """

    reads: frozenset[Need] = frozenset({"cls_logits", "labels"})
    selects = True

    def __init__(
        self,
        loss_weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.25,
        temperature: float = 1.0,
        valid: Valid = "image",
        region: Region = "foreground",
        normalizer: Normalizer = "region",
    ) -> None:
        super().__init__(loss_weight, region, normalizer, valid)
        with naming(self):
            check_kl_options(temperature, "softmax", "sum")
            check_factors(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse one class channel, two with only the non-target term, and a missing background class."""
        with naming(self):
            check_two_classes(student.cls_channels)
            if self.alpha == 0 and student.cls_channels == 2:
                raise ValueError("alpha is 0, and with two classes the beta term is 0 as well; set alpha > 0")
            if "foreground" not in self.region and student.cls_channels == student.num_classes:
                raise ValueError(
                    f"region={self.region!r} needs a background class, which this head lacks; set "
                    "region='foreground'"
                )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits.
            teacher: outputs with class logits of the same layout.
            context: the batch, with labels.
        """
        assert context.labels_N is not None
        rows = self.rows(student, teacher, context)
        loss = decoupled_kl(
            rows.of(student.flat_cls_logits()),
            rows.of(teacher.flat_cls_logits()),
            rows.of(context.labels_N),
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            weight_N=rows.weight_N,
            avg_factor=rows.divisor,
        )
        return self.loss_weight * loss

    def weights(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The region's weights, 0 for rows without a class."""
        assert context.labels_N is not None
        is_class = (context.labels_N >= 0) & (context.labels_N < student.spec.cls_channels)
        return super().weights(student, teacher, context) * is_class
