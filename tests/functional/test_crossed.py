from __future__ import annotations

import pytest
import torch

from mmkd.functional.crossed import match_statistics


def test_statistics_become_the_teachers() -> None:
    student = (torch.randn(2, 5, 4, 6, dtype=torch.float64) * 3 + 1).requires_grad_()
    teacher = torch.randn(2, 5, 8, 3, dtype=torch.float64, requires_grad=True)
    found = match_statistics(student, teacher)
    for channel in range(5):
        values, taught = student[:, channel].flatten(), teacher[:, channel].flatten()
        mean = sum(values) / 48
        deviation = (sum((v - mean) ** 2 for v in values) / 47) ** 0.5
        wanted = (values - mean) / (deviation + 1e-6) * taught.std() + taught.mean()
        torch.testing.assert_close(found[:, channel].flatten(), wanted)
    found.square().sum().backward()
    assert teacher.grad is None
    assert torch.isfinite(match_statistics(torch.ones(1, 2, 1, 1), torch.randn(1, 2, 1, 1))).all()
    assert torch.isfinite(match_statistics(torch.zeros(1, 2, 3, 3), torch.randn(1, 2, 3, 3))).all()
    with pytest.raises(ValueError, match="equal width"):
        match_statistics(torch.randn(1, 2, 3, 3), torch.randn(1, 3, 3, 3))
