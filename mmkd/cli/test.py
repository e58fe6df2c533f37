"""Evaluate a student, or the teacher in its config."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_rank

from mmkd.cli import parsers
from mmkd.cli.common import build_runner, prepare_data, read_config, tool
from mmkd.cli.written import tell_of_files
from mmkd.data import listed_images
from mmkd.datasets import innermost
from mmkd.doctor.preconditions import require
from mmkd.errors import UserError, type_of
from mmkd.hooks import ProgressHook
from mmkd.registry import DATASETS, class_of, name_in
from mmkd.teachers import plain_detector, teacher_model_and_checkpoint
from mmkd.teachers.checkpoint import load_strictly
from mmkd.terminal import short_output


def config_of(args: argparse.Namespace) -> tuple[Config, str | None]:
    """The config of a stock detector for the Runner, and its checkpoint.

    Raises:
        UserError: the arguments or the config are invalid.
    """
    cfg = read_config(args)
    if args.teacher:
        if "teacher" not in cfg.model or args.checkpoint is not None:
            raise UserError(
                "--teacher evaluates the teacher of a distilled config with the checkpoint set there.",
                expected="a config with model.teacher, and no checkpoint argument",
                found=f"model.type={type_of(cfg.model)}, checkpoint {args.checkpoint}",
                remedy="leave out one of the two",
            )
        model, checkpoint = teacher_model_and_checkpoint(cfg.model.teacher)
    elif args.checkpoint is None:
        raise UserError(
            "No checkpoint to evaluate.",
            expected="tools/test.py CONFIG CHECKPOINT, or tools/test.py CONFIG --teacher",
            found="no checkpoint",
            remedy="name one",
        )
    else:
        model, checkpoint = plain_detector(cfg.model), args.checkpoint
    cfg.model, cfg.load_from, cfg.resume = model, None, False
    if args.images:
        take_images(cfg, args)
    prepare_data(cfg, ["test_dataloader"])
    if args.show:
        cfg = trigger_visualization_hook(cfg, args)
    elif args.show_dir:
        hook = cfg.setdefault("default_hooks", ConfigDict()).setdefault("visualization", ConfigDict())
        part: Any = next(innermost(cfg.test_dataloader.dataset))
        root = args.images or Path(
            part.get("data_root") or "", (part.get("data_prefix") or {}).get("img", "")
        )
        hook.update(type=name_in(cfg, "PicturesHook"), folder=args.show_dir, root=str(root))
    if args.tta:
        add_test_time_augmentation(cfg)
    return cfg, checkpoint


def take_images(cfg: Config, args: argparse.Namespace) -> None:
    """Replace the test data by a folder of unlabelled images.

    Raises:
        UserError: there are no images, or the other options do not use them.
    """
    if not args.show_dir or args.out is not None:
        raise UserError(
            "--images shows detections, it evaluates nothing.",
            expected="--images FOLDER --show-dir DIR, without --out",
            found="--out" if args.out is not None else "no --show-dir",
            remedy="add --show-dir DIR; for predictions in a file use mmkd-predict",
        )
    listed_images(args.images, what="--images")
    part: Any = next(innermost(cfg.test_dataloader.dataset))
    metainfo = {**(getattr(class_of(part, DATASETS), "METAINFO", None) or {}), **(part.get("metainfo") or {})}
    cfg.test_dataloader.dataset = ConfigDict(
        type=name_in(cfg, "UnlabelledImages"),
        images=args.images,
        metainfo=metainfo,
        pipeline=part.pipeline,
        test_mode=True,
    )
    cfg.test_evaluator = []


def add_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model in the config's ``tta_model``, by default flips with NMS."""
    if "tta_model" not in cfg:
        merging = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
        cfg.tta_model = ConfigDict(type="DetTTAModel", tta_cfg=merging)
    datasets = list(innermost(cfg.test_dataloader.dataset))
    if "tta_pipeline" not in cfg:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
        flips = [{"type": name_in(cfg, "RandomFlip"), "prob": prob} for prob in (1.0, 0.0)]
        packing = {"type": name_in(cfg, "PackDetInputs"), "meta_keys": keys}
        last = {"type": "TestTimeAug", "transforms": [flips, [packing]]}
        cfg.tta_pipeline = [*datasets[0].pipeline[:-1], last]
    model = cfg.tta_model.copy()  # keeps types of pure-Python configs writable
    model.module = cfg.model
    cfg.model = model
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


def test(args: argparse.Namespace) -> dict[str, float]:
    """Build the Runner, load strictly, evaluate; returns the metrics."""
    with short_output(args.verbose) as terminal:
        began = time.time()
        runner, metrics = _test(args)
        if not get_rank():
            told = [f"{name.rpartition('/')[2]} {value:.4g}" for name, value in metrics.items()]
            if not args.images:
                terminal.say(", ".join(told) or "nothing was detected")
            if not args.no_files:
                tell_of_files(terminal, runner, began, predictions=args.out, pictures=args.show_dir)
        return metrics


def _test(args: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    setup_cache_size_limit_of_dynamo()
    cfg, checkpoint = config_of(args)
    require(cfg, ("test",))
    # The config in a work dir names what was trained there (`check_work_dir`); this one goes beside its log.
    object.__setattr__(cfg, "_filename", None)
    runner = build_runner(cfg)
    with suppress(FileNotFoundError):  # only the first process has the file
        written = Path(runner.work_dir, f"{runner.timestamp}.py")
        written.rename(Path(runner.log_dir, written.name))
    if checkpoint is not None:
        model = runner.model
        while hasattr(model, "module"):  # unwrap DistributedDataParallel and test-time augmentation
            model = model.module
        load_strictly(model, checkpoint)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(args.out)))
    runner.register_hook(ProgressHook(), priority="VERY_LOW")
    return runner, runner.test()


parse_args, main = tool(parsers.test, test)

if __name__ == "__main__":
    sys.exit(main())
