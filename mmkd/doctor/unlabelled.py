"""Check unlabelled images: batch mix, readable files, overlap with validation."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv
from mmdet.datasets.samplers import MultiSourceSampler
from PIL import Image

from mmkd.data import MixedBatchSampler
from mmkd.data.mixed_batches import counts_of
from mmkd.datasets import below, innermost
from mmkd.doctor.findings import Finding, shortened
from mmkd.doctor.images import digest
from mmkd.doctor.setup import TrainingSetup, has_no_labels
from mmkd.registry import DATA_SAMPLERS, DATASETS, class_of, is_kind
from mmkd.teachers import distills

# The number of headers to read, evenly spaced, and how many of these images to decode.
_HEADERS = 2000
_DECODED = 20


def examine_mixing(setup: TrainingSetup) -> Iterator[Finding]:
    """Check that unlabelled images have a teacher, and how they are mixed into batches."""
    loader, what = setup.cfg.get("train_dataloader") or {}, "train: mix"
    dataset = loader.get("dataset") or {}
    if not any(has_no_labels(part) for part in innermost(dataset)):
        return
    if not distills(setup.cfg.get("model") or {}):
        yield Finding.error(
            what,
            "the data includes UnlabelledImages but there is no teacher: they would be trained as background",
            "add a teacher (--teacher CONFIG --teacher-checkpoint FILE), or remove them",
        )
        return
    if has_no_labels(dataset):
        yield Finding.ok(what, "no image has labels: the student learns only from its teacher")
        return
    kinds = [has_no_labels(part) for part in below(dataset)]
    sampler, batches = loader.get("sampler") or {}, loader.get("batch_sampler") or {}
    size = loader.get("batch_size", 1)
    if is_kind(batches, MixedBatchSampler, registry=DATA_SAMPLERS):
        yield from _mixed_batches(what, kinds, batches, size)
    elif is_kind(sampler, MultiSourceSampler, registry=DATA_SAMPLERS):
        yield from _multi_source(
            what, kinds, sampler, loader.get("batch_size", 1), setup.cfg.get("train_cfg")
        )
    else:
        yield Finding.warning(
            what,
            "batches are sampled without regard to labels: some have no labels",
            "set train_dataloader.batch_sampler=dict(type='MixedBatchSampler', source_ratio=[1, "
            "3]) with a ConcatDataset, labelled data first",
        )


def _mixed_batches(
    what: str, kinds: list[bool], batches: Mapping[str, Any], batch_size: int
) -> Iterator[Finding]:
    counts = counts_of(batches.get("source_ratio") or [], batch_size)
    if kinds and kinds[0]:
        yield Finding.error(
            what,
            "the first data set has no labels, but defines the epoch length",
            "put the labelled data set first, also in source_ratio",
        )
        return
    without = sum(count for count, unlabelled in zip(counts, kinds) if unlabelled)
    yield Finding.ok(
        what,
        f"each batch has {sum(counts) - without} labelled and {without} unlabelled images; an "
        "epoch is one pass over the first data set",
    )


def _multi_source(
    what: str, kinds: list[bool], sampler: Mapping[str, Any], batch_size: int, train_cfg: Any
) -> Iterator[Finding]:
    remedy = "use batch_sampler=dict(type='MixedBatchSampler', source_ratio=[…]) with a DefaultSampler"
    loop = (train_cfg or {}).get("type")
    by_epoch = (train_cfg or {}).get("by_epoch", True) if loop is None else "Epoch" in str(loop)
    if by_epoch:
        yield Finding.error(
            what, "MultiSourceSampler is infinite: an epoch-based loop never finishes its first epoch", remedy
        )
    if sampler.get("batch_size") != batch_size:
        found = f"MultiSourceSampler.batch_size is {sampler.get('batch_size')}, the loader's is {batch_size}"
        yield Finding.error(what, found, f"make them equal, or {remedy}")
    counts = counts_of(sampler.get("source_ratio") or [], batch_size)
    if 0 in counts:  # mmdet's sampler then never finds an end
        yield Finding.error(what, f"MultiSourceSampler hangs with {counts} images in a batch", remedy)
    elif not by_epoch:
        without = sum(count for count, unlabelled in zip(counts, kinds) if unlabelled)
        text = f"each batch has {sum(counts) - without} labelled and {without} unlabelled images"
        yield Finding.ok(what, text)


def examine_unlabelled(setup: TrainingSetup, part: Mapping[str, Any]) -> Iterator[Finding]:
    """Count the images; stores their paths in ``setup.unlabelled``."""
    options = {name: value for name, value in part.items() if name not in ("type", "_scope_", "indices")}
    dataset = class_of(part, DATASETS)(**{**options, "pipeline": [], "serialize_data": False})
    paths = [info["img_path"] for info in dataset.data_list]
    setup.unlabelled.update(dict.fromkeys(paths))
    yield Finding.ok("train: unlabelled", f"{len(paths)} unlabelled images")


def examine_readable(paths: Iterable[str], decoded: int) -> Iterator[Finding]:
    """Check that the images can be read.

    Args:
        paths: paths of the files; up to two thousand headers are read.
        decoded: the maximum number to decode.
    """
    what, paths = "train: unlabelled", list(paths)
    chosen = paths[:: max(1, len(paths) // _HEADERS)]
    step = max(1, len(chosen) // min(decoded, _DECODED))
    broken = [path for index, path in enumerate(chosen) if not _readable(path, index % step == 0)]
    if broken:
        yield Finding.error(
            what,
            f"{len(broken)} of {len(chosen)} unreadable: {shortened(broken, 3)}",
            "copy them again, or list them in leave_out",
        )
    else:
        yield Finding.ok(what, f"{len(chosen)} headers read, {len(chosen[::step])} images opened")


def _readable(path: str, decode: bool) -> bool:
    try:
        if decode:
            return mmcv.imread(path) is not None
        with Image.open(path) as image:
            return min(image.size) > 0
    except Exception:
        return False


def examine_leaks(
    unlabelled: Iterable[str], labelled: Iterable[Path], val: Iterable[Path]
) -> Iterator[Finding]:
    """Check by content that no validation image is among the unlabelled ones.

    Args:
        unlabelled: paths of the unlabelled images.
        labelled: paths of the labelled training images.
        val: paths of the validation images.
    """
    what, val, unlabelled = "unlabelled and val", list(val), list(unlabelled)
    found = _same_content(unlabelled, val)
    if found:
        yield Finding.warning(
            what,
            f"{len(found)} validation images are in the unlabelled training data: "
            f"{shortened((path.name for path in found), 3)}" + " (all of them)" * (len(found) == len(val)),
            "list them in leave_out: results on training images are meaningless",
        )
    elif val:
        yield Finding.ok(what, "no common images, by content")
    twice = _same_content(unlabelled, labelled)
    if twice:
        yield Finding.ok(
            "unlabelled and labelled",
            f"{len(twice)} images are in both, by content; leave_out removes them from the unlabelled ones",
        )


def _same_content(paths: Iterable[str], others: Iterable[Path]) -> list[Path]:
    """Those of the others with the content of one of these files; only files of equal length are read."""
    by_length = defaultdict(list)
    for path in paths:
        by_length[_length(path)].append(path)
    digests: dict[int, set[bytes | None]] = {}
    same = []
    for other in others:
        length = _length(other)
        if length < 0 or length not in by_length:
            continue
        if length not in digests:
            digests[length] = {digest(path) for path in by_length[length]} - {None}
        if digest(other) in digests[length]:
            same.append(other)
    return same


def _length(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
