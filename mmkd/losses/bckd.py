"""`BCKDLoss`: binary classification distillation of dense detectors."""

from __future__ import annotations

from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.logits import check_exponent, modulated_bce
from mmkd.losses.base import naming
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


@MODELS.register_module()
class BCKDLoss(RowLoss):
    r"""Each class of each prior as a binary problem, weighted by the disagreement.

    .. math:: \frac{\lambda}{n} \sum_i \sum_c
        |\sigma(z^t_{ic}) - \sigma(z^s_{ic})|^\beta \; \mathrm{BCE}(\sigma(z^s_{ic}), \sigma(z^t_{ic}))

    over the priors i outside the padding, background as well as objects; see
    :func:`mmkd.functional.modulated_bce`. n is the number of priors to which the student's
    assigner gives an object, at least one for each image, averaged over processes: the divisor of the
    student's own classification loss.

    Source: Yang et al., ICCV 2023 (https://arxiv.org/abs/2308.14286), its classification part. Reference
    implementation: ``LDHead`` and ``NovelKDLoss`` of https://github.com/TinyTigerPan/BCKD. There priors count
    up to the padded size, and a level of the pyramid on which no image of the process has an object gives no
    loss, which makes the value depend on how images are put into batches; ``valid='pad', every_level=False``
    is its value. Its box term is `BoxIoULoss` with ``region='disagreement'``.

    Args:
        loss_weight: λ ≥ 0; the published 1.
        beta: exponent ≥ 1; the published 1.
        normalizer: n, see `RowLoss`; ``'centerness'`` is CrossKD's for FCOS.
        every_level: count the levels on which no image of the process has an object.
        valid: which priors count, see `RowLoss`.
        region: a factor of each prior, see `RowLoss`; by default 1.

    Raises:
        UserError: an option is out of its range, or a head's scores are no sigmoids.
    """

    reads: frozenset[Need] = frozenset({"cls_logits"})

    def __init__(
        self,
        loss_weight: float = 1.0,
        beta: float = 1.0,
        normalizer: Normalizer = "foreground",
        every_level: bool = True,
        valid: Valid = "image",
        region: Region = "all",
    ) -> None:
        super().__init__(loss_weight, region, normalizer, valid, every_level=every_level)
        with naming(self):
            check_exponent(beta)
        self.beta = beta

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse heads with softmax scores."""
        for whose, spec in (("student", student), ("teacher", teacher)):
            if not spec.use_sigmoid:
                raise UserError(
                    f"BCKDLoss: the {whose}'s class scores are a softmax, not one sigmoid per class; "
                    "use DistillationLoss with activation='softmax'"
                )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits.
            teacher: outputs with class logits of the same layout.
            context: the batch, with labels.
        """
        rows = self.rows(student, teacher, context)
        loss = modulated_bce(
            rows.of(student.flat_cls_logits()),
            rows.of(teacher.flat_cls_logits()),
            beta=self.beta,
            weight_N=rows.weight_N,
            avg_factor=rows.divisor,
        )
        return self.loss_weight * loss
