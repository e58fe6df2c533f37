from __future__ import annotations

import argparse
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.errors import UserError
from mmkd.sweeps.overrides import ALIASES, KeepingDictAction, check_overrides, resolve_aliases


def parse(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=KeepingDictAction)
    return parser.parse_args(["--cfg-options", *words]).cfg_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("True", True),
        ("true", True),
        ("None", None),
        ("plain", "plain"),
        ("with a space", "with a space"),
        ("'quoted, with comma'", "quoted, with comma"),
        ("1,2", [1, 2]),
        ("a,b", ["a", "b"]),
        ("[1, 2]", [1, 2]),
        ("[a, b]", ["a", "b"]),
        ("(1, 2)", (1, 2)),
        ("['a b', True]", ["a b", True]),
        ("{'lr': 0.1}", {"lr": 0.1}),
        ("[(1, 2), x]", [(1, 2), "x"]),
        ("path/to=odd", "path/to=odd"),
    ],
)
def test_values_survive(text: str, value: Any) -> None:
    found = parse(f"key={text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.fixture
def cfg() -> Config:
    return Config.fromfile("configs/bccd/kd.py")


def test_aliases_name_what_is_there(cfg: Config) -> None:
    resolved = resolve_aliases(cfg, {"lr": 1, "kd_loss_weight": 2, "model.x": 3})
    assert resolved == {"optim_wrapper.optimizer.lr": 1, "model.distill.cls.loss_weight": 2, "model.x": 3}
    assert resolve_aliases(Config({"seed": 1}), {"seed": 2}) == {"seed": 2}
    check_overrides(cfg, dict.fromkeys((k for k in ALIASES.values() if "distill" not in k), 1), strict=True)


def test_parameters_of_a_loss_that_are_left_to_their_default_may_be_searched(cfg: Config) -> None:
    check_overrides(cfg, {"model.distill.cls.temperature": 2, "model.distill.cls.share": 0.2}, strict=True)
    check_overrides(cfg, {"train_dataloader.dataset.indices": 0.1}, strict=True)
    check_overrides(cfg, {"optim_wrapper.optimizer.betas": (0.9, 0.99)}, strict=True)
    with pytest.raises(UserError, match=r"no model\.distill\.box\.temperature"):
        check_overrides(cfg, {"model.distill.box.temperature": 2}, strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_a_dict_does_not_replace_a_part(cfg: Config, strict: bool) -> None:
    with pytest.raises(
        UserError, match=r"This would replace all of optim_wrapper.*\n.*optim_wrapper\.optimizer="
    ) as error:
        check_overrides(cfg, {"optim_wrapper": {"optimizer": {"lr": 1}}}, strict)
    assert "full dotted key" in str(error.value)
    assert "optim_wrapper._delete_=true" in str(error.value)
    check_overrides(cfg, {"model.test_cfg.new": {"a": 1}}, strict=False)


def test_unknown_keys_are_errors_in_a_sweep_only(cfg: Config) -> None:
    check_overrides(cfg, {"optim_wrapper.optimizer.learning_rate": 1}, strict=False)
    with pytest.raises(
        UserError, match=r"no optim_wrapper\.optimizer\.lrr.*\n.*one of: lr,.*\n.*\n.*sweep file"
    ):
        check_overrides(cfg, {"optim_wrapper.optimizer.lrr": 1}, strict=True)
    with pytest.raises(UserError, match="no nowhere"):
        check_overrides(cfg, {"nowhere": 1}, strict=True)


def test_steps_into_lists(cfg: Config) -> None:
    check_overrides(cfg, {"param_scheduler.0.end": 1, "randomness.seed": 3}, strict=True)
    with pytest.raises(UserError):
        check_overrides(cfg, {"param_scheduler.7.end": 1}, strict=True)
