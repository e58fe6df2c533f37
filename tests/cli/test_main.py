"""The commands, from outside: help and versions without torch, exit codes, modules that are programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkd.cli import main, parsers
from mmkd.version import __version__

from ..conftest import ROOT, run_tool

LIGHT = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path({argv[0]!r}, run_name='__main__')
except SystemExit as end:
    assert not end.code, end.code
heavy = {{'torch', 'numpy', 'mmengine', 'mmdet'}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("tool", main.TOOLS)
def test_help_and_version_import_nothing_heavy(tool: str, option: str) -> None:
    argv = [f"tools/{tool.replace('-', '_')}.py", option]
    done = run_tool("-c", LIGHT.format(argv=argv))
    assert done.returncode == 0, done.stderr
    assert ("--version" if option == "--help" else f"mmkd {__version__}") in done.stdout


def umbrella(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_tool("-W", "ignore", "-m", "mmkd", *arguments)


@pytest.mark.slow
def test_umbrella() -> None:
    assert all(f"  {tool} " in umbrella().stdout for tool in main.TOOLS)
    assert umbrella("--version").stdout == f"mmkd {__version__}\n"
    assert umbrella("train", "--help").stdout.startswith("usage: mmkd train ")
    wrong = umbrella("trian")
    assert (wrong.returncode, "unknown tool 'trian'" in wrong.stderr) == (2, True)
    missing = umbrella("train", "nowhere.py")
    assert (missing.returncode, "nowhere.py" in missing.stderr) == (2, True)


@pytest.mark.parametrize("tool", main.TOOLS)
def test_the_module_of_each_tool_is_a_program(tool: str) -> None:
    source = (ROOT / f"mmkd/cli/{tool.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert source.rstrip().endswith('if __name__ == "__main__":\n    sys.exit(main())')
    assert hasattr(parsers, tool.replace("-", "_"))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_module_run_as_a_program_tells_of_itself_at_once(option: str) -> None:
    done = run_tool("-X", "importtime", "-m", "mmkd.cli.cache_teacher", option)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: cache_teacher.py" if option == "--help" else f"mmkd {__version__}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mmkd.cli" in imported
    assert not imported & {"torch", "numpy", "mmengine", "mmdet"}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_nobody_reads_the_help(words: list[str], unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "mmkd", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", "PYTHONUNBUFFERED": unbuffered},
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_module_run_as_a_program_fails_like_the_tool() -> None:
    done = run_tool("-W", "ignore", "-m", "mmkd.cli.train", "nowhere.py")
    assert (done.returncode, "mmkd: error" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_without_unicode(encoding: str, tmp_path: Path) -> None:
    """The page of the doctor has arrows and dots in it."""
    arguments = ["tools/doctor.py", "configs/bccd/kd.py", "--images", "2", "--work-dir", str(tmp_path)]
    damage = ["--cfg-options", "model.bbox_head.num_classes=2"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments, *damage],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    assert b"model.bbox_head.num_classes is 2" in done.stdout
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "tools/doctor.py", "configs/bccd/kd.py", "--images", "2"]
    doctor = subprocess.Popen(
        [*words, "--work-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert doctor.stdout is not None
    doctor.stdout.close()
    _, said = doctor.communicate(timeout=200)
    assert doctor.returncode == 0, said
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
