"""What of the installation can be tested without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the installer and no environment."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/install.sh", tmp_path / "tools/install.sh")
    return tmp_path


def install(clone: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/install.sh", *arguments],
        cwd=clone,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_prepared_environment_is_kept(clone: Path) -> None:
    prepared = Path(sys.executable).parent
    done = install(clone, "test", PATH=f"{prepared}{os.pathsep}{os.environ['PATH']}", PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == prepared
    assert "which has mmdet" in done.stderr
    assert not (clone / ".venv").exists()


def test_unfit_python_is_named(clone: Path) -> None:
    bare = clone / "bin"
    bare.mkdir()
    for name in ("bash", "dirname", "env"):
        (bare / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    fake = bare / "python3"
    fake.write_text('#!/usr/bin/env bash\n[ "$1" = --version ] && echo Python 3.8.1 && exit\nexit 1\n')
    fake.chmod(0o755)
    done = install(clone, PATH=str(bare))
    assert done.returncode == 1
    assert "expected Python 3.10, 3.11 or 3.12; found Python 3.8.1" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("index", ["https://index", ""])
def test_torchvision_is_that_of_the_installed_torch(clone: Path, runs: bool, index: str) -> None:
    """By a Python that installs nothing, and says what it was asked to."""
    (clone / "fake/torch").mkdir(parents=True)
    (clone / "fake/torch/__init__.py").write_text('__version__ = "2.5.1+cpu"')
    (clone / "setup.py").touch()
    python, asked, there = clone / "env/bin/python", clone / "asked.txt", clone / "there"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/usr/bin/env bash
        case "$*" in
            *"-m pip"*torchvision==*) echo "$*" >> {asked}; [ {int(runs)} = 1 ] && touch {there} ;;
            *"-m pip"*) echo "$*" >> {asked} ;;
            *"import torchvision"*) [ -e {there} ] ;;
            *mmcv.ops* | *"import mmkd"*) ;;
            *) PYTHONPATH={clone}/fake exec {sys.executable} "$@" ;;
        esac
        """
    )
    python.chmod(0o755)
    done = install(clone, VENV=str(clone / "env"), TORCH_INDEX_URL=index)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(python)
    lines = asked.read_text().splitlines()
    (wanted,) = [line for line in lines if "torchvision==" in line]
    assert wanted.endswith(
        f"--index-url {index or 'https://download.pytorch.org/whl/cpu'} torchvision==0.20.1"
    )
    assert ("none runs with this torch" in done.stderr) != runs
    assert any("uninstall -q -y torchvision" in line for line in lines) != runs


def test_the_dockerfile_sets_what_the_installer_reads() -> None:
    text = (ROOT / "Dockerfile").read_text()
    arguments = set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE)) - {"BASE", "NUMPY"}
    installer = (ROOT / "tools/install.sh").read_text()
    assert {"TORCH", "TORCH_INDEX_URL", "PIP_FIND_LINKS"} == arguments
    assert all(re.search(rf"^#   {name} ", installer, re.MULTILINE) for name in arguments)
    default = re.search(r"^TORCH=\$\{TORCH:-(.+)\}$", installer, re.MULTILINE)
    assert default
    assert f"ARG TORCH={default[1]}\n" in text
    page = (ROOT / "docs/stacks.md").read_text()
    assert set(re.findall(r"--build-arg '?(\w+)=", page)) == {*arguments, "BASE", "NUMPY"}
