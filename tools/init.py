"""Make a project for a data set. See --help."""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

try:
    from mmkd.cli.main import init as main
except ImportError as error:  # the message names the missing package and how to install it
    print(f"mmkd: error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
