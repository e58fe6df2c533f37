from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.teachers import checkpoint as module
from mmkd.teachers.checkpoint import load_strictly, own_keys, read_checkpoint

from ..conftest import build, tiny_atss


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return build(tiny_atss(), seed=3).state_dict()


def save(path: Path, content: Any) -> str:
    torch.save(content, path / "c.pth")
    return str(path / "c.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "architecture.", "module.architecture."])
def test_loads_every_key(
    tmp_path: Path, weights: dict[str, torch.Tensor], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(module, "print_log", lambda text, logger: notes.append(text))
    wrapped = {prefix + key: value for key, value in weights.items()}
    model = build(tiny_atss())
    meta = load_strictly(model, save(tmp_path, {"meta": {"epoch": 1}, "state_dict": wrapped}))
    assert len(notes) == prefix.count("."), "each prefix taken off is said"
    assert meta == {"epoch": 1}
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_bare_state_dict_and_half_precision(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    model = build(tiny_atss())
    assert load_strictly(model, save(tmp_path, half)) == {}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_mmrazor_file_keeps_its_student_only(weights: dict[str, torch.Tensor]) -> None:
    both = {f"architecture.{key}": value for key, value in weights.items()}
    both["teacher.backbone.conv1.weight"] = torch.zeros(1)
    assert own_keys(both, "f").keys() == weights.keys()


@pytest.mark.parametrize(
    ("overrides", "found", "cause"),
    [
        ({"bbox_head__num_classes": 80}, "2 misshapen: bbox_head.atss_cls.weight", "num_classes"),
        ({"backbone__depth": 34}, "missing: .*backbone.layer1.2", "the backbone differs"),
        (
            {"backbone__base_channels": 16, "neck__in_channels": [16, 32, 64, 128]},
            "misshapen",
            "backbone differs",
        ),
        ({"bbox_head__stacked_convs": 2}, "missing: bbox_head.cls_convs.1", "different models"),
    ],
)
def test_another_architecture(
    tmp_path: Path, weights: dict[str, torch.Tensor], overrides: dict[str, Any], found: str, cause: str
) -> None:
    model = build(tiny_atss(**overrides))
    with pytest.raises(UserError, match=rf"does not fit the model ATSS[\s\S]*{found}[\s\S]*remedy:.*{cause}"):
        load_strictly(model, save(tmp_path, {"state_dict": weights}))


def test_first_ten_of_many_are_listed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    renamed = {f"net.{key}": value for key, value in weights.items()}
    with pytest.raises(UserError, match="none of its keys match the model") as error:
        load_strictly(build(tiny_atss()), save(tmp_path, renamed))
    assert f"{len(renamed)} unexpected: " in str(error.value)
    assert f"… {len(renamed) - 10} more" in str(error.value)


def test_not_a_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no named weights.*\n.*\n.*list"):
        read_checkpoint(save(tmp_path, [1, 2]))


def test_not_a_number(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["bbox_head.atss_cls.bias"][0] = float("nan")
    with pytest.raises(UserError, match=r"contains NaN weights.*\n.*\n.*1 tensors: bbox_head.atss_cls.bias"):
        read_checkpoint(save(tmp_path, {"state_dict": weights}))


@pytest.mark.parametrize(
    ("key", "dtype"),
    [("bbox_head.atss_cls.bias", torch.int64), ("backbone.bn1.num_batches_tracked", torch.half)],
)
def test_numbers_of_another_kind(
    tmp_path: Path, weights: dict[str, torch.Tensor], key: str, dtype: torch.dtype
) -> None:
    weights[key] = weights[key].to(dtype)
    with pytest.raises(UserError, match=rf"do not match ATSS.*\n.*\n.*{key} \({dtype}\)"):
        load_strictly(build(tiny_atss()), save(tmp_path, weights))


def test_weights_that_are_no_tensors(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    content = {**weights, "bbox_head.atss_cls.bias": [1.0]}
    with pytest.raises(UserError, match="does not fit the model"):
        load_strictly(build(tiny_atss()), save(tmp_path, content))


def test_unreachable_url(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(module.CheckpointLoader, "load_checkpoint", refuse)
    with pytest.raises(UserError, match=r"Cannot get https://x/t\.pth.*\n.*\n.*OSError: no route"):
        read_checkpoint("https://x/t.pth")
