from __future__ import annotations

import pytest
import torch

from mmkd.structures import DenseOutputs
from mmkd.teachers.stream import OwnStream

from ..losses.contract import make_case


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_result_waits_for_its_stream() -> None:
    outputs = make_case()[1].map(lambda level: level.cuda())
    x = torch.ones(64, 64, device="cuda")

    def compute() -> DenseOutputs:
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        return outputs.map(lambda level: level + (x @ x).sum() * 0 + 1)

    result = OwnStream().begin(x, compute)()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for found, level in zip(result.levels(), outputs.levels()):
        torch.testing.assert_close(found, level + 1)
