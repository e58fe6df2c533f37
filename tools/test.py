"""Evaluate a student, or the teacher in its config. See --help."""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

from mmkd.cli.main import test as main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
