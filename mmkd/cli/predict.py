"""Write a detector's predictions for use as a teacher."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from mmkd.cli import parsers
from mmkd.cli.common import prepare_data, read_config, tool
from mmkd.cli.test import add_test_time_augmentation
from mmkd.data import PredictionsWriter, listed_images
from mmkd.datasets import images_below, innermost, without_annotations
from mmkd.doctor.annotations import classes_of
from mmkd.errors import UserError
from mmkd.registry import DATASETS, MODELS
from mmkd.teachers import plain_detector, weights_digest
from mmkd.teachers.building import class_names_of
from mmkd.teachers.checkpoint import load_strictly

Images = Mapping[str, tuple[str, Any]]  # name in the predictions → path and image id


def predict(args: argparse.Namespace) -> None:
    """Predict the images that are not yet in ``--out``.

    Raises:
        UserError: an argument is wrong, the detector does not load, an image cannot be read, or ``--out``
            already contains another detector's predictions.
    """
    cfg = read_config(args)
    init_default_scope(cfg.get("default_scope") or "mmdet")
    images = _named(_listed(args) if args.data else _of_training(cfg))
    model, classes, about = _detector(cfg, args)
    data = _Images([path for path, _ in images.values()], _pipeline(cfg), classes)
    names = list(images)
    with PredictionsWriter(args.out, classes, about, args.every) as writer:
        left = [i for i, name in enumerate(names) if name not in writer]
        loading = cfg.test_dataloader
        loader: DataLoader[Any] = DataLoader(
            Subset(data, left),
            batch_size=args.batch_size or loading.get("batch_size") or 1,
            num_workers=loading.get("num_workers", 0) if args.workers is None else args.workers,
            collate_fn=list,
        )
        done = len(names) - len(left)
        bar = tqdm(total=len(names), initial=done, unit="image", disable=not sys.stderr.isatty())
        try:
            with bar:
                for i, sample in zip(left, _predicted(model, loader)):
                    found = sample.pred_instances.cpu().numpy()
                    boxes_M4 = getattr(found.bboxes, "tensor", found.bboxes)  # mmdet's HorizontalBoxes
                    kept_M = found.scores >= args.min_score
                    height, width = sample.ori_shape[:2]
                    said = boxes_M4[kept_M], found.scores[kept_M], found.labels[kept_M]
                    writer.add(names[i], (width, height), *said, image_id=images[names[i]][1])
                    bar.update()
        except KeyboardInterrupt:
            told = f"{len(writer)} images are in {writer.folder}; rerun the same command to continue"
            raise KeyboardInterrupt(told) from None
    print(f"{args.out}: {len(writer)} images, {len(left)} of them predicted now")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.images and not args.data:
        parser.error("--images requires --data")


def _listed(args: argparse.Namespace) -> list[tuple[str, str, Any]]:
    """The (path, root folder, image id) of each image in ``--data``."""
    folder = args.images or ""
    if args.data.endswith(".json") and not args.images:
        folder = str(Path(args.data).parent)
    found = listed_images(args.data, folder=folder, what="--data")
    missing = next((path for path in found if "://" not in path and not os.path.isfile(path)), None)
    if missing is not None:
        raise UserError(
            "Image of --data not found.",
            expected="image files",
            found=f"no file {missing}",
            remedy="give the root folder of the file names: --images DIR",
        )
    root = args.data if os.path.isdir(args.data) else folder
    return [(path, root, about.get("id")) for path, about in found.items()]


def _of_training(cfg: Config) -> list[tuple[str, str, Any]]:
    if cfg.get("train_dataloader") is None:
        raise UserError(
            "No images to predict.",
            expected="--data, or a config with train_dataloader",
            found="neither",
            remedy="give --data: a folder, a list or a COCO file",
        )
    prepare_data(cfg, ["train_dataloader"])
    return [
        (str(info["img_path"]), str(getattr(base, "data_root", None) or ""), info.get("img_id"))
        for base, info in images_below(DATASETS.build(cfg.train_dataloader.dataset))
    ]


def _named(found: Iterable[tuple[str, str, Any]]) -> Images:
    """The images by name relative to their data set's root; by full path if these names repeat."""
    once = list({os.path.normpath(path): (path, root, key) for path, root, key in found}.values())
    names = [_below(path, root) for path, root, _ in once]
    if len(set(names)) < len(names):
        names = [_below(path, "") for path, _, _ in once]
    return {name: (path, key) for name, (path, _, key) in zip(names, once)}


def _below(path: str, root: str) -> str:
    path, root = path.replace("\\", "/"), root.replace("\\", "/")
    for start in (root, os.path.normpath(root)):
        if path.startswith(start.rstrip("/") + "/"):
            return path[len(start) :].lstrip("/")
    return path.lstrip("/")


def _detector(cfg: Config, args: argparse.Namespace) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """The detector, its class names, and a record of what its predictions depend on."""
    cfg.model = plain_detector(cfg.model)
    if cfg.get("data_preprocessor") is not None:  # as the Runner does
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    if cfg.get("test_dataloader") is None:
        cfg.test_dataloader = cfg.get("val_dataloader")
    if cfg.test_dataloader is None:
        raise UserError(
            "The config has no test pipeline.",
            expected="test_dataloader or val_dataloader with its pipeline",
            found="neither",
            remedy="use the config that the detector was trained with",
        )
    if args.tta:
        add_test_time_augmentation(cfg)
    model = MODELS.build(cfg.model)
    detector = model.module if args.tta else model
    classes = class_names_of(load_strictly(detector, args.checkpoint))
    if classes is None:  # mmdet's training did not write this checkpoint
        part: Any = next(innermost((cfg.get("train_dataloader") or cfg.test_dataloader).dataset))
        classes = classes_of(part)
    if not classes:
        raise UserError(
            "The detector has no class names.",
            expected="meta['dataset_meta']['classes'] in the checkpoint, or metainfo.classes in the config",
            found="neither",
            remedy="add train_dataloader.dataset.metainfo=dict(classes=(…)) in the order of its labels",
        )
    how = json.dumps([cfg.model, _pipeline(cfg)], sort_keys=True, default=str)
    about = {
        "weights": weights_digest(detector)[:16],
        "model and pipeline": hashlib.sha256(how.encode()).hexdigest()[:16],
        "min_score": args.min_score,
        "tta": args.tta,
    }
    return model.to(get_device()).eval(), classes, about


def _pipeline(cfg: Config) -> list[Any]:
    return without_annotations(next(innermost(cfg.test_dataloader.dataset)).pipeline)


class _Images(Dataset[Any]):
    """Samples of image files by index; an error text if one cannot be loaded.

    Args:
        paths: paths of the image files.
        pipeline: the test pipeline.
        classes: class names, for detectors with text prompts.
    """

    def __init__(self, paths: Sequence[str], pipeline: Sequence[Any], classes: Sequence[str]) -> None:
        self.paths, self.pipeline = paths, Compose(pipeline)
        self.text = {"text": tuple(classes), "custom_entities": True}  # like mmdet's `return_classes`

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        path = self.paths[number]
        try:
            sample = self.pipeline({"img_path": path, "img_id": number, **self.text})
        except Exception as error:  # libraries raise anything for a damaged file
            return f"{path} ({type(error).__name__}: {error})"
        return f"{path}, which the pipeline drops" if sample is None else sample


@torch.inference_mode()
def _predicted(model: Any, loader: Iterable[list[Any]]) -> Iterator[Any]:
    """Data samples with predictions, one for each image.

    Raises:
        UserError: an image cannot be read; the images before it are yielded first.
    """
    for samples in loader:
        good = list(itertools.takewhile(lambda sample: not isinstance(sample, str), samples))
        if good:
            yield from model.test_step(pseudo_collate(good))
        if len(good) < len(samples):
            raise UserError(
                "Cannot read image.",
                expected="an image file",
                found=samples[len(good)],
                remedy="restore it or remove it from the data, then rerun the same command to continue",
            )


parse_args, main = tool(parsers.predict, predict, _check)

if __name__ == "__main__":
    sys.exit(main())
