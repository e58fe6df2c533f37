from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from mmkd.doctor import examine as package_function
from mmkd.doctor.examine import EXAMINATIONS, examine
from mmkd.doctor.findings import Finding

SETUP: Any = SimpleNamespace(cfg=Config({"randomness": {"seed": 3}}))


def draws(_: Any) -> Iterator[Finding]:
    print("noise of a library")
    yield Finding.ok("number", str(np.random.randint(1000)))


def fails(_: Any) -> Iterator[Finding]:
    yield Finding.ok("before", "seen")
    raise RuntimeError("broken")


def test_the_others_go_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert package_function is examine
    for title, examination in {"fails": fails, "draws": draws}.items():
        monkeypatch.setitem(EXAMINATIONS, title, examination)
    begun: list[str] = []
    first, second = examine(SETUP, ["fails", "draws"], begun.append)
    assert [one.level for one in first.findings] == ["ok", "error"]
    assert "RuntimeError: broken" in first.findings[1].found
    assert begun == ["fails", "draws"]
    assert capsys.readouterr().out == ""
    (again,) = examine(SETUP, ["draws"])
    assert again.findings == second.findings, "each begins with the config's seed"
