"""Convert a checkpoint of another distillation code base for MMDetection 3.x."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint
from torch import Tensor

from mmkd.cli import parsers
from mmkd.cli.common import read_config, tool
from mmkd.datasets import common_metainfo
from mmkd.deployment import check_out_name
from mmkd.errors import UserError, type_of
from mmkd.registry import MODELS, class_of
from mmkd.teachers import plain_detector
from mmkd.teachers.building import class_names_of
from mmkd.teachers.checkpoint import load_weights, read_checkpoint

# Key prefixes of each network, longer ones first. `student.` and `teacher.`: DetectionDistiller of FGD, MGD
# and similar, mmdet's semi-supervised detectors; `architecture.` and `teacher.`: MMRazor 1.x; the others:
# MMRazor 0.x. The distilling detectors of CrossKD, LD and mmdet save only the student, without a prefix.
PREFIXES = {
    "student": ("architecture.model.", "architecture.", "student."),
    "teacher": ("distiller.teacher.", "teacher."),
}


def convert(args: argparse.Namespace) -> None:
    """Write the weights of one network and the class names.

    Raises:
        UserError: the checkpoint or config cannot be read, the checkpoint does not contain the network, the
            network does not fit the config, or the file cannot be written.
    """
    check_out_name(args.out)
    if Path(args.checkpoint).resolve() == args.out.resolve():
        raise UserError(
            "The checkpoint would be overwritten.",
            expected="a new output file",
            found=f"{args.out} twice",
            remedy="choose another file",
        )
    cfg = read_config(args)
    content = read_checkpoint(args.checkpoint)
    weights, left_out = part_of(content.get("state_dict", content), args.part, args.checkpoint)
    init_default_scope(cfg.get("default_scope") or "mmdet")
    if "model" not in cfg or class_of(cfg.model) is None:
        raise UserError(
            "The model of --config is not registered.",
            expected="the stock config of the target network, e.g. mmdet::gfl/gfl_r50_fpn_1x_coco.py",
            found=f"model.type={type_of(cfg.model)}" if "model" in cfg else ", ".join(cfg),
            remedy="give that config; the config of the other code base cannot be built here",
        )
    load_weights(MODELS.build(plain_detector(cfg.model)), weights, args.checkpoint)
    given = content.get("meta")
    meta = dict(given) if isinstance(given, Mapping) else {}
    names = class_names_of(meta)
    dataset_meta = common_metainfo(meta.get("dataset_meta"), names) if names else {}
    save_checkpoint({"meta": {"dataset_meta": dataset_meta}, "state_dict": weights}, str(args.out))
    told = f"classes {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "no class names"
    print(f"{args.out}: the {args.part}'s {len(weights)} tensors, {told}")
    if left_out:
        print(f"left out: {', '.join(f'{count} of {name}' for name, count in left_out.most_common(8))}")


def part_of(weights: Mapping[str, Any], part: str, filename: str) -> tuple[dict[str, Tensor], Counter[str]]:
    """One network's weights under its own keys.

    Args:
        weights: the ``state_dict`` of a whole distiller.
        part: ``'student'`` or ``'teacher'``.
        filename: name of the checkpoint for the error message.

    Returns:
        The weights, and the number of other weights by the first word of their keys.

    Raises:
        UserError: the checkpoint does not contain this part.
    """
    keys = {key.removeprefix("module."): key for key in weights}
    parts = {
        name: next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in keys)), None)
        for name, prefixes in PREFIXES.items()
    }
    prefix = parts[part]
    if prefix is None and (part == "teacher" or parts["teacher"]):
        words = sorted({f"{key.partition('.')[0]}." for key in keys})
        raise UserError(
            f"No {part} found in {filename}.",
            expected=f"keys starting with {' or '.join(PREFIXES[part])}",
            found=f"keys starting with {', '.join(words[:10])}",
            remedy="use the checkpoint that the teacher was loaded from: training does not save the "
            "teacher again"
            if part == "teacher"
            else "give the checkpoint written by training",
        )
    inner = prefix or ""
    # mmdet 2.x saves a running average along with the weights, as `ema_backbone_…`.
    taken = {
        key.removeprefix(inner): weights[own]
        for key, own in keys.items()
        if key.startswith(inner) and ("." in key or not key.startswith("ema_"))
    }
    left_out = Counter(
        f"{key.partition('.')[0]}." if "." in key else "single tensors"
        for key in keys
        if not (key.startswith(inner) and key.removeprefix(inner) in taken)
    )
    return taken, left_out


parse_args, main = tool(parsers.convert, convert)

if __name__ == "__main__":
    sys.exit(main())
