from __future__ import annotations

from typing import Any

import pytest

from mmkd.build_errors import explained, names_in
from mmkd.cli.common import run
from mmkd.registry import METRICS, MODELS

from .conftest import build, tiny_atss


def error_of(cfg: Any) -> Any:
    with pytest.raises((KeyError, TypeError)) as raised:
        build(cfg)
    return explained(raised.value)


def test_an_unknown_type() -> None:
    error = error_of(tiny_atss(backbone__type="ResNett"))
    assert error.what == "Unknown model 'ResNett'."
    assert error.found.endswith("while building ATSS → ResNett")
    assert error.remedy == "did you mean ResNet?"
    assert "custom_imports" in error_of({"type": "Xyzzy"}).remedy


def test_no_type() -> None:
    cfg = tiny_atss()
    del cfg.neck["type"]
    error = error_of(cfg)
    assert error.what == "A model in the config has no type."
    assert "in_channels" in error.found


def test_an_option_that_the_class_does_not_take() -> None:
    error = error_of(tiny_atss(neck__out_chanels=8))
    assert error.what == "FPN has no option out_chanels."
    assert error.remedy == "did you mean out_channels?"
    assert "num_outs" in error.expected
    passed_on = error_of(tiny_atss(bbox_head__colour="red"))
    assert (passed_on.what, passed_on.remedy) == ("ATSSHead has no option colour.", "correct or remove it")


def test_an_option_that_is_lacking() -> None:
    cfg = tiny_atss()
    del cfg.bbox_head["num_classes"]
    error = error_of(cfg)
    assert (error.what, error.remedy) == ("ATSSHead lacks num_classes.", "add it")
    assert "while building ATSS → ATSSHead" in error.found


class FromDeepInside:
    def __init__(self, number: int) -> None:
        max([number], number=1)  # type: ignore[call-overload]


def test_other_errors_are_not_taken_for_the_configs() -> None:
    assert explained(KeyError("x")) is None
    assert explained(TypeError("got an unexpected keyword argument 'x'")) is None
    with pytest.raises(TypeError) as raised:
        MODELS.build({"type": FromDeepInside, "number": 1})
    assert explained(raised.value) is None


def test_a_tool_says_it_in_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: build(tiny_atss(neck__out_chanels=8))) == 2
    told = capsys.readouterr().err
    assert "mmkd: error: FPN has no option out_chanels." in told
    assert "Traceback" not in told


def test_names_of_parents_count() -> None:
    assert {"CocoMetric", "DumpResults"} <= names_in(METRICS)
    assert names_in(None) == set()
