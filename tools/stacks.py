#!/usr/bin/env python3
"""Build each supported stack in its own environment, run the tests in it, and record the results.

    python tools/stacks.py                    every stack, all tests
    python tools/stacks.py torch21 --fast     one stack, without the slow tests
    python tools/stacks.py torch21 -- tests/losses -x     some tests; not recorded
    python tools/stacks.py --table            only regenerate docs/stacks.md from docs/stacks.json

tools/install.sh makes the environments, .stacks/<name>; its settings (PYTHON, TORCH_INDEX_URL,
PIP_FIND_LINKS) apply here too, and existing environments are reused. Results go to docs/stacks.json and into
the table of docs/stacks.md. A failing stack does not stop the next one; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".stacks"
RECORD = ROOT / "docs/stacks.json"
PAGE = ROOT / "docs/stacks.md"
MARKS = ("<!-- stacks -->\n", "<!-- end of stacks -->\n")


class Stack(NamedTuple):
    """A stack's purpose and its pins: package name → version."""

    title: str
    pins: dict[str, str]


STACKS = {
    "default": Stack("what `make install` and `make test` set up", {}),
    "torch21": Stack(
        "the oldest that is supported, as OpenMMLab's own mmcv wheels pair it",
        {"torch": "2.1.2", "numpy": "1.26.4", "mmengine": "0.10.7", "mmcv": "2.1.0", "mmdet": "3.3.0"},
    ),
    "onedl": Stack(
        "the maintained forks",
        {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"},
    ),
}
# Pin → setting of tools/install.sh; the other pins are only constraints.
SETTINGS = {
    "torch": "TORCH",
    "mmengine": "MMENGINE",
    "mmcv": "MMCV",
    "mmdet": "MMDET",
    "onedl-mmengine": "MMENGINE",
    "onedl-mmcv": "MMCV",
    "onedl-mmdetection": "MMDET",
}
INSPECT = """
import importlib.metadata as metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
import torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(json.dumps({"python": platform.python_version(), "versions": found,
                  "platform": f"{platform.system()} {platform.machine()}, {device}"}))
"""


class StackError(Exception):
    """A stack could not be built, or its tests could not run; the message is one line."""


def settings(stack: Stack, folder: Path) -> dict[str, str]:
    """The environment variables for tools/install.sh to make the stack in ``folder``."""
    chosen = {SETTINGS[name]: f"{name}=={pin}" for name, pin in stack.pins.items() if name in SETTINGS}
    if stack.pins:
        chosen["PIP_CONSTRAINT"] = str(folder / "constraints.txt")
    return {**chosen, "VENV": str(folder)}


def unmet(stack: Stack, versions: dict[str, str]) -> list[str]:
    """The pins that an environment does not meet; a local version (``+cpu``) is fine."""
    return [
        f"{name}=={pin} (found {versions.get(name, 'none')})"
        for name, pin in stack.pins.items()
        if versions.get(name, "").split("+")[0] != pin
    ]


def install(stack: Stack, folder: Path) -> tuple[str, dict[str, Any]]:
    """Make or complete the environment.

    Returns:
        The environment's Python, and a description of its content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    constraints = "".join(f"{name}=={pin}\n" for name, pin in stack.pins.items())
    (folder / "constraints.txt").write_text(constraints)
    said = ["tools/install.sh ended without output"]
    with subprocess.Popen(
        ["tools/install.sh", "test"],
        cwd=ROOT,
        env={**os.environ, **settings(stack, folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:  # stdout has only one path, at the end
            sys.stderr.write(line)
            said.append(line.strip() or said[-1])
        python = process.stdout.read().strip()
    if process.returncode:
        raise StackError(f"not installed: {said[-1].removeprefix('mmkd: error: ')}")
    names = ["torch", "numpy", *(name for name in SETTINGS if name != "torch")]
    inside: dict[str, Any] = json.loads(
        subprocess.check_output([python, "-c", INSPECT, *names], cwd=ROOT, text=True)
    )
    if missed := unmet(stack, inside["versions"]):
        raise StackError(f"the environment differs: {', '.join(missed)}; recreate it with --fresh")
    return python, inside


def counts(report: Path) -> dict[str, Any]:
    """Numbers of passed, failed (or broken) and skipped tests in a JUnit file, and names of the failed."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ET.parse(report).getroot().iter("testcase"):
        ends = {child.tag for child in case}
        outcome = "failed" if ends & {"failure", "error"} else "skipped" if "skipped" in ends else "passed"
        found[outcome] += 1
        if outcome == "failed":
            found["failures"].append(f"{case.get('classname')}::{case.get('name')}")
    found["failures"].sort()
    return found


def run_tests(python: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run pytest in a stack and count the results."""
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [python, "-m", "pytest", f"--junitxml={report}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if not report.is_file():
        raise StackError(f"pytest ended with code {done.returncode} and no report")
    found = counts(report)
    if done.returncode not in (0, 1):
        found["error"] = f"pytest ended early, with code {done.returncode}"
    return found


def commit() -> str:
    """The commit under test, with `+` if files differ from it."""

    def git(*arguments: str) -> str:
        quiet = subprocess.DEVNULL
        return subprocess.check_output(["git", *arguments], cwd=ROOT, stderr=quiet, text=True).strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/stacks.*")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions_cell(entry: dict[str, Any]) -> str:
    """All versions except torch and numpy, which have their own columns."""
    others = {k: v for k, v in entry.get("versions", {}).items() if k not in ("torch", "numpy")}
    return ", ".join(f"{name} {version}" for name, version in others.items()) or "–"


def table(record: dict[str, dict[str, Any]]) -> str:
    """The generated part of docs/stacks.md: a row per stack, and the failures."""
    lines = [
        "| stack | torch | numpy | detection libraries | tests | passed | failed | skipped | where |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name in STACKS:
        entry = record.get(name)
        if entry is None:
            lines.append(f"| `{name}` | not run yet | | | | | | | |")
            continue
        versions = entry.get("versions", {})
        numbers = (str(entry.get(key, "–")) for key in ("passed", "failed", "skipped"))
        where = (entry.get("python") and f"Python {entry['python']}", entry.get("platform"))
        cells = [
            f"`{name}`",
            versions.get("torch", "–"),
            versions.get("numpy", "–"),
            versions_cell(entry),
            entry["tests"],
            *numbers,
            ", ".join(filter(None, (*where, entry["commit"], entry["date"]))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        notes += [f"- `{name}`: {entry['error']}"] if "error" in entry else []
        notes += [f"- `{name}` failed: `{failure}`" for failure in entry.get("failures", [])]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def read_record() -> dict[str, dict[str, Any]]:
    """The content of docs/stacks.json, by stack."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def write_page(record: dict[str, dict[str, Any]], page: Path) -> None:
    """Insert the table between the marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}{table(record)}{MARKS[1]}{after}", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line; arguments after `--` go to pytest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="stack", help=f"of {', '.join(STACKS)} (default: all)")
    parser.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("--fresh", action="store_true", help="recreate the environments")
    parser.add_argument("--workers", type=int, default=2, help="test processes (default: 2)")
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    given = sys.argv[1:]
    own = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:own])
    options.chosen = given[own + 1 :]
    if unknown := [name for name in options.names if name not in STACKS]:
        parser.error(f"unknown stack {', '.join(unknown)}; there are {', '.join(STACKS)}")
    return options


def main() -> int:
    """Test the chosen stacks."""
    options = parse()
    if options.table:
        write_page(read_record(), PAGE)
        return 0
    arguments = [f"--numprocesses={options.workers}", "--dist=loadfile"]
    arguments += ["-m", "not slow"] if options.fast else []
    failed = []
    for name in options.names or STACKS:
        folder = PLACE / name
        if options.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        entry: dict[str, Any] = {
            "tests": "all but slow" if options.fast else "all",
            "command": shlex.join(["pytest", *arguments]),
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
        }
        print(f"stacks: {name}, {STACKS[name].title}", file=sys.stderr, flush=True)
        try:
            python, inside = install(STACKS[name], folder)
            entry |= inside
            entry |= run_tests(python, folder, [*arguments, *options.chosen])
        except StackError as error:
            entry["error"] = str(error)
        if entry.get("failed") or "error" in entry:
            failed.append(name)
            print(f"stacks: {name}: {entry.get('error', 'tests failed')}", file=sys.stderr)
        if not options.chosen:
            record = read_record() | {name: entry}  # another process may have written meanwhile
            RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            write_page(record, PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
