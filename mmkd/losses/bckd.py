"""`BCKDLoss`: binary classification distillation of dense detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.losses.base import DistillLoss
from mmkd.losses.functional_logits import check_exponent, modulated_bce
from mmkd.losses.functional_relations import image_of_prior
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec


@MODELS.register_module()
class BCKDLoss(DistillLoss):
    r"""Each class of each prior as a binary problem, weighted by the disagreement.

    .. math:: \frac{\lambda}{n} \sum_i \sum_c
        |\sigma(z^t_{ic}) - \sigma(z^s_{ic})|^\beta \; \mathrm{BCE}(\sigma(z^s_{ic}), \sigma(z^t_{ic}))

    over the priors i outside the padding, background as well as objects; see
    :func:`mmkd.losses.functional_logits.modulated_bce`. n is the number of priors to which the student's
    assigner gives an object, at least one for each image, averaged over processes: the divisor of the
    student's own classification loss.

    Source: Yang et al., ICCV 2023 (https://arxiv.org/abs/2308.14286), its classification part. Reference
    implementation: ``LDHead`` and ``NovelKDLoss`` of https://github.com/TinyTigerPan/BCKD, from which this
    differs in one thing: there a level of the pyramid on which no image of the process has an object gives no
    loss, which would make the value depend on how images are put into batches.

    Args:
        loss_weight: λ ≥ 0; the published 1.
        beta: exponent ≥ 1; the published 1.

    Raises:
        UserError: an option is out of its range, or a head's scores are no sigmoids.
    """

    needs = frozenset({"cls_logits", "labels"})

    def __init__(self, loss_weight: float = 1.0, beta: float = 1.0) -> None:
        super().__init__(loss_weight)
        try:
            check_exponent(beta)
        except ValueError as error:
            raise UserError(f"BCKDLoss: {error}") from None
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
        assert student.cls_logits is not None
        assert context.labels_N is not None
        is_object_N = (context.labels_N >= 0) & (context.labels_N < student.spec.num_classes)
        image_N = image_of_prior(student.cls_logits, student.spec.num_base_priors)
        objects = image_N[is_object_N].bincount(minlength=context.num_images)
        loss = modulated_bce(
            student.flat_cls_logits(),
            teacher.flat_cls_logits(),
            beta=self.beta,
            weight_N=context.valid_N.float(),
            # No image on any process: the sum above it is zero as well.
            avg_factor=context.mean_over_processes(objects.clamp(min=1).sum()).clamp(
                min=torch.finfo(torch.float32).eps
            ),
        )
        return self.loss_weight * loss
