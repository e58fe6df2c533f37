from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.hooks import TrainOnlyHook

from .toy import Call, ToyModel, toy_runner


class TwoLayers(ToyModel):
    """A line after a BatchNorm and a layer, which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.inner = torch.nn.Linear(1, 1)

    def forward(self, sample: Any, mode: str = "tensor") -> Any:
        if mode == "loss":
            self.norm(sample[:, None].float())
            out = self.line(self.inner(sample[:, None].float()))[:, 0]
            return {"loss": (out - 2 * sample).pow(2).mean()}
        return super().forward(sample, mode)


def runner(folder: Path, *hooks: Any, modules: Any = ("line",)) -> Any:
    return toy_runner(folder, TrainOnlyHook(modules), *hooks, model=TwoLayers())


def test_the_rest_stays_to_the_bit(tmp_path: Path) -> None:
    run = runner(tmp_path)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    after = run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"line.weight", "line.bias"}, "BatchNorm's statistics have not moved either"


def test_what_changes_all_the_same_is_noticed(tmp_path: Path) -> None:
    def touch(run: Any) -> None:
        run.model.inner.weight.data.add_(1)

    with pytest.raises(RuntimeError, match=r"frozen parts of the model have changed: inner\.weight"):
        runner(tmp_path, Call("after_train_iter", 1, touch)).train()


@pytest.mark.parametrize(
    ("modules", "message"),
    [("line", "must be a list"), ([], "must be a list"), (["lane"], r"no such module with parameters: lane")],
)
def test_mistakes(tmp_path: Path, modules: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        runner(tmp_path, modules=modules).train()
