"""Extract a network from a checkpoint of MMRazor, FGD, MGD, CrossKD or LD. See --help."""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

from mmkd.cli.main import convert as main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
