"""`BCKDLoss`: binary classification distillation of dense detectors."""

from __future__ import annotations

from torch import Tensor

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_number
from mmkd.functional.logits import modulated_bce
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


@MODELS.register_module()
class BCKDLoss(RowLoss):
    r"""Each class of each prior as a binary problem, weighted by the disagreement.

    .. math:: \frac{\lambda}{n} \sum_i \sum_c
        |\sigma(z^t_{ic}) - \sigma(z^s_{ic})|^\beta \; \mathrm{BCE}(\sigma(z^s_{ic}), \sigma(z^t_{ic}))

    over the priors i outside the padding, background as well as objects; see
    :func:`mmkd.functional.modulated_bce`. n is the number of priors that the student's assigner matches to an
    object, at least one per image, averaged over processes: the same divisor as in the student's own
    classification loss.

    Source: the classification part of Yang et al., ICCV 2023 (https://arxiv.org/abs/2308.14286). Reference
    implementation: ``LDHead`` and ``NovelKDLoss`` of https://github.com/TinyTigerPan/BCKD. It counts priors
    up to the padded size and skips pyramid levels on which no image of the process has an object, so its
    value depends on how images are batched; ``valid='pad', every_level=False`` reproduces it. Its box term is
    `BoxIoULoss` with ``region='disagreement'``.

    Args:
        loss_weight: λ ≥ 0; 1 as published.
        beta: exponent ≥ 1; 1 as published.
        normalizer: n, see `RowLoss`; ``'centerness'`` is CrossKD's for FCOS.
        every_level: also count levels on which no image of the process has an object.
        valid: which priors count, see `RowLoss`.
        region: a factor for each prior, see `RowLoss`; 1 by default.

    Raises:
        UserError: an option is out of its range, or a head does not use sigmoid scores.
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
            check_number("[1, inf)", beta=beta)
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
