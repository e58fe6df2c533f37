"""Fill the teacher's cache ahead of training."""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from torch.utils.data import ConcatDataset, DataLoader
from tqdm import tqdm

from mmkd.cli import parsers
from mmkd.cli.common import prepare_data, read_config, tool
from mmkd.detectors.views import teachers_view
from mmkd.doctor.preconditions import require
from mmkd.errors import UserError, type_of
from mmkd.registry import DATASETS, MODELS
from mmkd.teachers import CachedTeacher, teacher_entries
from mmkd.teachers.pipeline import base_datasets, recipe_of, variants


def fill(args: argparse.Namespace) -> CachedTeacher:
    """Fill the cache; existing entries are only read.

    Raises:
        UserError: the config has no cached teacher, its pipeline cannot be cached, or the cache is full.
    """
    cfg = read_config(args)
    prepare_data(cfg, ["train_dataloader"])
    require(cfg, ("train",))
    init_default_scope(cfg.get("default_scope") or "mmdet")
    entries = teacher_entries(cfg.model.get("teacher"))
    one = len(entries) == 1 and isinstance(cfg.model.teacher, dict)
    if not one or entries[0].get("cache") is None:
        raise UserError(
            "No teacher cache is configured.",
            expected="a distilled config with one teacher=dict(…, cache=dict(dir='…'))",
            found=f"model.type={type_of(cfg.model)}, "
            + ("no teacher" if not entries else "a teacher without a cache" if one else "several teachers"),
            remedy="add it, or --cfg-options model.teacher.cache.dir=work_dirs/teacher_cache",
        )
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    recipe = recipe_of(dataset)
    model = MODELS.build(cfg.model).to(get_device())
    model.check_class_names(dataset.metainfo)
    model.teacher.for_pipeline(recipe)
    views = [view for base in base_datasets(dataset) for view in _views(base)]
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset(views),
        batch_size=args.batch_size or cfg.train_dataloader.batch_size,
        num_workers=cfg.train_dataloader.get("num_workers", 0) if args.workers is None else args.workers,
        collate_fn=pseudo_collate,
    )
    total = sum(map(len, views))
    with tqdm(total=total, unit="view", disable=not sys.stderr.isatty()) as bar:
        for data in loader:
            batch = model.data_preprocessor(data, training=True)
            samples = batch["data_samples"]
            model.teacher.entries(teachers_view(model, batch["inputs"], samples), samples)
            bar.update(len(batch["data_samples"]))
            store = model.teacher.store
            if store.full:
                each = store.bytes_written / max(1, store.entries_written)
                raise UserError(
                    f"The teacher cache is full after {model.teacher.asked} of {total} views.",
                    expected=f"about {total * each / 1000000000.0:.2g} GB of space",
                    found=f"teacher.cache.max_gb={model.teacher.max_gb}, or a full disk (see above)",
                    remedy="raise max_gb, or store fewer priors with teacher.cache.top",
                )
    print(model.teacher.summary())
    return model.teacher


def _views(dataset: Any) -> list[Any]:
    """A copy of the data set for each variant of its pipeline."""
    views = []
    for pipeline in variants(dataset.pipeline):
        view = copy.copy(dataset)
        view.pipeline = pipeline
        views.append(view)
    return views


parse_args, main = tool(parsers.cache_teacher, fill)

if __name__ == "__main__":
    sys.exit(main())
