"""``python -m mmkd TOOL …`` is ``mmkd TOOL …``."""

import sys

from mmkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
