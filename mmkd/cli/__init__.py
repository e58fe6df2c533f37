"""The command-line tools: argument parsing and one call each."""

import sys
from pathlib import Path


def _tell_of_itself() -> None:
    """Answer ``python -m mmkd.cli.train --help`` at once: Python imports this package before the tool."""
    asked = not {"-h", "--help", "--version"}.isdisjoint(sys.argv[1:])
    if sys.argv[0] != "-m" or not asked or "-m" not in sys.orig_argv:
        return
    package, _, tool = sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")
    if package == __name__:
        from mmkd.cli import parsers

        sys.argv[0] = str(Path(__file__).with_name(f"{tool}.py"))  # shown in the usage line
        if hasattr(parsers, tool):
            getattr(parsers, tool)().parse_known_args()


_tell_of_itself()
