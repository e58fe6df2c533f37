"""`QualityLoss`: pulls centerness, IoU or objectness to the teacher's."""

from __future__ import annotations

from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.kl import kl_divergence
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need, Valid


@MODELS.register_module()
class QualityLoss(RowLoss):
    r"""Binary cross-entropy on the quality output of a head, minus the teacher's entropy.

    With :math:`q = \sigma(z)` for the logit z of e.g. the centerness,

    .. math:: \lambda \, \frac{\sum_i w_i \, \mathrm{KL}(\mathrm{Bern}(q^t_i) \,\|\, \mathrm{Bern}(q^s_i))}
        {\sum_i w_i}

    over the priors i of the batch outside the padding; the divisor is averaged over processes, like
    gradients. KL is the cross-entropy :math:`-q^t \log q^s - (1 - q^t) \log (1 - q^s)` minus a constant, the
    entropy of :math:`q^t`: it has the gradient of the cross-entropy and is 0 where both agree.

    Source: the centerness part of CrossKD, Wang et al., 2024 (https://arxiv.org/abs/2306.11369), in its
    implementation (jbwang1997/CrossKD, ``loss_center_kd`` of ``crosskd_atss.py``): cross-entropy over the
    assigned priors, divided by their number, with λ = 1.

    Args:
        loss_weight: λ ≥ 0.
        name: the output, e.g. ``'centerness'``; by default the only one that both heads have.
        region: :math:`w_i`, see `RowLoss`. ``'all'`` suits objectness, which is trained on the background too
            (centerness is not: on the background it is noise).
        normalizer: the divisor, see `RowLoss`.
        valid: which priors count, see `RowLoss`.

    Raises:
        UserError: an option is out of its range; in the first iteration, the heads do not have the output.
    """

    reads: frozenset[Need] = frozenset({"extra"})

    def __init__(
        self,
        loss_weight: float = 1.0,
        name: str | None = None,
        region: Region = "foreground",
        normalizer: Normalizer = "region",
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, region, normalizer, valid)
        if name is not None and not isinstance(name, str):
            raise UserError(f"QualityLoss: name must be a string or None, found {name!r}")
        self.name = name

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with the quality output.
            teacher: outputs with the same one, and class logits if the region is ``'teacher'``.
            context: the batch.

        Raises:
            UserError: a head lacks the output, or no name is set and the heads do not share exactly one.
        """
        name = self._name(student, teacher)
        rows = self.rows(student, teacher, context)
        return self.loss_weight * kl_divergence(
            rows.of(student.flat_extra(name))[:, None],
            rows.of(teacher.flat_extra(name))[:, None],
            activation="sigmoid",
            weight_N=rows.weight_N,
            avg_factor=rows.divisor,
        )

    def _name(self, student: DenseOutputs, teacher: DenseOutputs) -> str:
        common = [name for name in student.extra if name in teacher.extra]
        if self.name in common:
            return self.name
        if self.name is None and len(common) == 1:
            return common[0]
        if self.name is not None:
            problem = f"the heads do not both have an output {self.name!r}."
        elif common:
            problem = "both heads have several further outputs; set `name` to choose one."
        else:
            problem = "the heads have no common further output."
        own, taught = (", ".join(outputs.extra) or "none" for outputs in (student, teacher))
        raise UserError(
            f"QualityLoss: {problem}",
            expected=f"name, one of: {', '.join(common)}"
            if common
            else "a centerness or similar output in both heads",
            found=f"the student's: {own}; the teacher's: {taught}",
            remedy="correct `name`"
            if common
            else "remove QualityLoss, or use heads with such an output, e.g. ATSSHead or FCOSHead",
        )
