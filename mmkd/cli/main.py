"""The commands ``mmkd-train``, ``mmkd train`` and so on: help and version at once, then the tool.

Nothing here imports torch, so ``--help`` takes no time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from mmkd.cli import parsers
from mmkd.cli.console import nobody_reads, print_anything
from mmkd.version import __version__

TOOLS = {
    "init": "create a project for your data",
    "train": "train a detector, alone or with a teacher",
    "test": "evaluate a checkpoint",
    "doctor": "check a config before training",
    "compare": "train student and variants over several seeds and report the gains",
    "sweep": "search hyperparameters",
    "cache-teacher": "cache the teacher's outputs before training",
    "predict": "write a detector's predictions for use as a teacher",
    "publish": "export weights and a config that work without mmkd",
    "export": "write a student as ONNX, with decoding and NMS",
    "convert": "convert checkpoints of other distillation code bases",
}


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a tool; returns its exit code. Option errors are reported before any import."""
    print_anything()
    module = name.replace("-", "_")
    getattr(parsers, module)().parse_known_args(argv)
    code: int = importlib.import_module(f"mmkd.cli.{module}").main(argv)
    return code


init, train, test, doctor, compare, sweep, cache_teacher, predict, publish, export, convert = (
    partial(run_tool, x) for x in TOOLS
)


def main(argv: Sequence[str] | None = None) -> int:
    """``mmkd TOOL …``; returns the tool's exit code."""
    print_anything()
    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words else "--help"
    if name in TOOLS:
        sys.argv[0] = f"mmkd {name}"  # shown in messages
        return run_tool(name, words[1:])
    if name == "--version":
        return _tell(f"mmkd {__version__}")
    usage = ["usage: mmkd TOOL …", "", *(f"  {tool:<15}{about}" for tool, about in TOOLS.items())]
    usage += ["", "mmkd TOOL --help lists a tool's options; mmkd-TOOL is the same command."]
    if name in ("-h", "--help"):
        return _tell("\n".join(usage))
    print("\n".join([*usage, "", f"mmkd: error: unknown tool {name!r}"]), file=sys.stderr)
    return 2


def _tell(text: str) -> int:
    try:
        print(text)
    except BrokenPipeError:  # like `| head`
        nobody_reads()
    return 0


if __name__ == "__main__":
    sys.exit(main())
