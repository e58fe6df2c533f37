"""Time of DIST, forward and backward: one group, one group per image, and the published form.

    python benchmarks/relations.py

The forms take turns; the figures are medians of ratios in this run.
"""

from __future__ import annotations

import torch
from common import Loss, loss_step, paired_ratios, take_turns
from torch import Tensor

from mmkd.functional.relations import relation_distances, relation_loss

SIZES = [(400, 80), (4_000, 80), (44_000, 3)]
ROUNDS = 101


def published(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """1 − cosine of the centred scores, over rows and over columns."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return 1 - ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)).mean()

    a, b = student_NK.softmax(1), teacher_NK.softmax(1)
    return distance(a, b) + distance(a.t(), b.t())


def by_image(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """DIST within each of four images."""
    image_N = torch.arange(len(student_NK)) % 4
    between_N, within_G = relation_distances(student_NK, teacher_NK, group_N=image_N, groups=4)
    return between_N.mean() + within_G.mean()


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    forms: dict[str, Loss] = {"published": published, "one": relation_loss, "by image": by_image}
    print("| N | K | one group / published | by image / published |\n|---|---|---|---|")
    for N, K in SIZES:
        student_NK, teacher_NK = torch.randn(N, K, requires_grad=True), torch.randn(N, K)
        steps = {name: loss_step(form, student_NK, teacher_NK) for name, form in forms.items()}
        ratios = paired_ratios(take_turns(steps, ROUNDS), "published")
        print(f"| {N} | {K} | {ratios['one']:.2f} | {ratios['by image']:.2f} |")


if __name__ == "__main__":
    main()
