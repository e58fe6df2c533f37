"""Train teacher, student alone and distilled student on the bundled data. See --help."""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
sys.path.insert(0, str(ROOT))  # a clone needs no installation
os.chdir(ROOT)

from mmkd.cli.main import run_tool  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_tool("demo"))
