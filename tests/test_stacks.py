"""The stacks of tools/stacks.py; that they work is what it finds itself, and writes into docs/stacks.json."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from .conftest import ROOT

FEW_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist", "PYTEST_ADDOPTS": ""}


@pytest.fixture(scope="module")
def stacks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stacks", ROOT / "tools/stacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(stacks: ModuleType) -> dict[str, Any]:
    return stacks.read_record()


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> dict[str, Requirement]:
    """What setup.py asks for, by name."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    spec = importlib.util.spec_from_file_location("mmkd_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    lines = [*given["install_requires"], *given["extras_require"]["openmmlab"]]
    return {found.name: found for found in map(Requirement, lines)}


def test_page_shows_the_record(stacks: ModuleType, record: dict[str, Any], tmp_path: Path) -> None:
    page = stacks.PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "stacks.md"
    copy.write_text(page, encoding="utf-8")
    stacks.write_page(record, copy)
    assert copy.read_text(encoding="utf-8") == page, "run `python tools/stacks.py --table`"


def test_page_names_every_stack_and_pin(stacks: ModuleType) -> None:
    page = stacks.PAGE.read_text(encoding="utf-8").replace(stacks.MARKS[0], "|||")
    by_hand = page.split("|||")[0] + page.split(stacks.MARKS[1])[1]
    for name, stack in stacks.STACKS.items():
        assert f"| `{name}` |" in by_hand
        for variable, value in stacks.settings(stack, Path("x")).items():
            known = value in (installer_default(variable), "x", "x/constraints.txt")
            assert known or f"{variable}={value}" in by_hand, (name, variable)


def installer_default(variable: str) -> str | None:
    found = re.search(rf"^{variable}=\$\{{{variable}:-([^}}]*)\}}", installer(), re.MULTILINE)
    return found and found[1]


def installer() -> str:
    return (ROOT / "tools/install.sh").read_text()


def test_record_is_of_these_pins(stacks: ModuleType, record: dict[str, Any]) -> None:
    assert set(record) <= set(stacks.STACKS)
    for name, entry in record.items():
        if "versions" in entry:
            assert stacks.unmet(stacks.STACKS[name], entry["versions"]) == [], f"run stack {name} again"


def test_pins_are_supported(stacks: ModuleType, requirements: dict[str, Requirement]) -> None:
    for stack in stacks.STACKS.values():
        for name, pin in stack.pins.items():
            if name in requirements:  # the forks are not
                assert requirements[name].specifier.contains(pin), (name, pin)
    for variable in ("TORCH", "MMENGINE", "MMCV", "MMDET"):
        default = Requirement(installer_default(variable) or "")
        (pin,) = default.specifier
        assert requirements[default.name].specifier.contains(pin.version)


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_oldest_supported_is_a_stack(
    stacks: ModuleType, requirements: dict[str, Requirement], name: str
) -> None:
    (lowest,) = (s.version for s in requirements[name].specifier if s.operator == ">=")
    pinned = [Version(stack.pins[name]) for stack in stacks.STACKS.values() if name in stack.pins]
    assert min(pinned).release[:2] == Version(lowest).release[:2]


def test_settings_are_the_installers(stacks: ModuleType) -> None:
    for stack in stacks.STACKS.values():
        for variable in stacks.settings(stack, Path("x")):
            assert variable == "PIP_CONSTRAINT" or f"${{{variable}:-" in installer(), variable
    default = stacks.settings(stacks.STACKS["default"], Path("x"))
    assert default == {"VENV": "x"}
    forks = stacks.settings(stacks.Stack("", {"onedl-mmcv": "2.3.6", "numpy": "2.0.0"}), Path("x"))
    assert forks == {"VENV": "x", "MMCV": "onedl-mmcv==2.3.6", "PIP_CONSTRAINT": "x/constraints.txt"}


def test_unmet(stacks: ModuleType) -> None:
    stack = stacks.Stack("", {"torch": "2.1.2", "numpy": "1.26.4"})
    assert stacks.unmet(stack, {"torch": "2.1.2+cpu", "numpy": "1.26.4", "mmcv": "2.1.0"}) == []
    missed = stacks.unmet(stack, {"torch": "2.1.20"})
    assert missed == ["torch==2.1.2 (found 2.1.20)", "numpy==1.26.4 (found none)"]


def test_counts_are_pytests(stacks: ModuleType, tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_bad(n): assert n == 2\n"
        "def test_left(): pytest.skip('why')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_error(broken): pass\n"
    )
    (tmp_path / "pytest.ini").touch()
    report = tmp_path / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", tests],
        cwd=tmp_path,
        env={**os.environ, **FEW_PLUGINS},
        capture_output=True,
    )
    assert stacks.counts(report) == {
        "passed": 2,
        "failed": 2,
        "skipped": 1,
        "failures": ["test_some::test_bad[1]", "test_some::test_error"],
    }


def test_table(stacks: ModuleType) -> None:
    found = stacks.table(
        {
            "default": {
                "tests": "all",
                "commit": "1234567",
                "date": "2026-01-02",
                "python": "3.11.7",
                "platform": "Linux x86_64, CPU",
                "versions": {"torch": "2.13.0", "numpy": "2.4.6", "mmcv": "2.1.0"},
                "passed": 8,
                "failed": 1,
                "skipped": 0,
                "failures": ["tests.test_x::test_y"],
            },
            "torch21": {"tests": "all", "commit": "c", "date": "d", "error": "not installed: no compiler"},
        }
    ).splitlines()
    assert found[2] == (
        "| `default` | 2.13.0 | 2.4.6 | mmcv 2.1.0 | all | 8 | 1 | 0 "
        "| Python 3.11.7, Linux x86_64, CPU, 1234567, 2026-01-02 |"
    )
    assert found[3].startswith("| `torch21` | – | – | – | all | – | – | – | c, d |")
    assert found[4].startswith("| `onedl` | not run yet |")
    assert found[5:] == [
        "",
        "- `default` failed: `tests.test_x::test_y`",
        "- `torch21`: not installed: no compiler",
    ]
    assert {line.count("|") for line in found[:5]} == {10}


@pytest.fixture
def elsewhere(stacks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository with two tests, whose installer knows one stack and fails for the others."""
    files = {
        "tools/install.sh": "#!/usr/bin/env bash\n"
        '[ "${VENV##*/}" = default ] || { echo "mmkd: error: no $MMDET" >&2; exit 1; }\n'
        f"echo {sys.executable}\n",
        "test_one.py": "def test_one(): pass\ndef test_two(): assert not 1\n",
        "pytest.ini": "",
        "torch.py": "class cuda:\n    is_available = bool\n",  # the real one takes seconds
        "stacks.md": f"# Above\n{''.join(stacks.MARKS)}below\n",
    }
    (tmp_path / "tools").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tools/install.sh").chmod(0o755)
    names = {"ROOT": "", "PLACE": ".stacks", "RECORD": "stacks.json", "PAGE": "stacks.md"}
    for constant, place in names.items():
        monkeypatch.setattr(stacks, constant, tmp_path / place)
    for name, value in FEW_PLUGINS.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def run(stacks: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["stacks.py", *arguments])
    return stacks.main()


def test_one_that_fails_does_not_stop_the_next(
    stacks: ModuleType, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    assert run(stacks, monkeypatch, "onedl", "default", "--workers", "0") == 1
    record = json.loads((elsewhere / "stacks.json").read_text())
    assert record["onedl"]["error"] == "not installed: no onedl-mmdetection==3.5.1"
    assert (record["default"]["passed"], record["default"]["failed"]) == (1, 1)
    assert record["default"]["failures"] == ["test_one::test_two"]
    page = (elsewhere / "stacks.md").read_text()
    assert page == f"# Above\n{stacks.MARKS[0]}{stacks.table(record)}{stacks.MARKS[1]}below\n"


def test_chosen_tests_are_not_written_down(
    stacks: ModuleType, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    assert run(stacks, monkeypatch, "default", "--workers", "0", "--", "-k", "test_one and not two") == 0
    assert not (elsewhere / "stacks.json").exists()
    assert run(stacks, monkeypatch, "default", "--workers", "0", "--", "-k", "nothing_of_that_name") == 1


def test_unknown_stack(
    stacks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(stacks, monkeypatch, "torch20")
    assert "unknown stack torch20; there are default, torch21, onedl" in capsys.readouterr().err
