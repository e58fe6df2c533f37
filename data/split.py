#!/usr/bin/env python3
"""Split the images of a COCO file in two: to choose by one part what the test images shall judge.

    python data/split.py data/bccd/annotations/train.json --every 4 --into tune_train.json tune_val.json

The rule is `mmkd.data.split.split_by_hash`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone needs no installation

from mmkd.data.split import main

if __name__ == "__main__":
    sys.exit(main())
