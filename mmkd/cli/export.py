"""Write a student as one ONNX file, with decoding and NMS."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from mmkd.cli import parsers
from mmkd.cli.common import tool
from mmkd.data import listed_images
from mmkd.errors import UserError
from mmkd.export import (
    OnnxDetector,
    Precision,
    evaluate,
    export_onnx,
    image_size,
    images_of,
    load_student,
    torch_detector,
    training_images,
)


def export(args: argparse.Namespace) -> None:
    """Write the file; with ``--evaluate``, print the metrics of PyTorch and of the file.

    Raises:
        UserError: as for `load_student` and `export_onnx`, or the config has no test data for
            ``--evaluate``.
    """
    out = args.onnx or Path(args.checkpoint).with_suffix(".onnx")
    model, cfg, classes = load_student(args.checkpoint, args.config)
    _check_test_data(cfg, args.evaluate)
    precision: Precision = "int8" if args.int8 else "fp16" if args.fp16 else "fp32"
    export_onnx(
        model,
        out,
        classes,
        image_size=image_size(cfg),
        pixels=args.pixels,
        precision=precision,
        calibration=_calibration(cfg, args) if args.int8 else (),
    )
    print(f"{out}: {precision}, {len(classes)} classes, {out.stat().st_size / 2**20:.1f} MiB")
    if args.evaluate:
        before, after = evaluate(cfg, torch_detector(model)), evaluate(cfg, OnnxDetector(out))
        for name in before:
            print(f"{name}: {before[name]:.3f} in PyTorch, {after[name]:.3f} in {out.name}")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.images and not args.int8:
        parser.error("--images are for calibration: add --int8")


def _calibration(cfg: Config, args: argparse.Namespace) -> Iterable[Tensor]:
    paths = list(
        listed_images(args.images, folder="", what="--images") if args.images else training_images(cfg)
    )
    step = max(len(paths) // args.calibrate, 1)  # spread evenly over all images
    return images_of(cfg, paths[::step][: args.calibrate])


def _check_test_data(cfg: Config, wanted: bool) -> None:
    if wanted and (cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None):
        raise UserError(
            "Cannot evaluate without test data.",
            expected="test_dataloader and test_evaluator in the config",
            found="a config without",
            remedy="name the config of the training by --config",
        )


parse_args, main = tool(parsers.export, export, _check)

if __name__ == "__main__":
    sys.exit(main())
