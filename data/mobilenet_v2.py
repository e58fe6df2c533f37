#!/usr/bin/env python3
"""Write torchvision's ImageNet weights of MobileNetV2 as a file that mmdet's MobileNetV2 can begin with.

    python data/mobilenet_v2.py weights/mobilenet_v2_imagenet_mmdet.pth

Needs torchvision, which downloads them (14 MB, BSD-3-Clause).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmdet.models.backbones import MobileNetV2


def in_mmdets_names(theirs: Any) -> dict[str, Any]:
    """The state of torchvision's ``mobilenet_v2().features``: the same layers in the same order."""
    own = MobileNetV2(out_indices=(7,)).state_dict()
    return dict(zip(own, theirs.state_dict().values(), strict=True))


def main() -> None:
    """Download and write."""
    from torchvision.models import mobilenet_v2

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": in_mmdets_names(mobilenet_v2(weights="IMAGENET1K_V1").features)}, out)
    print(out)


if __name__ == "__main__":
    main()
