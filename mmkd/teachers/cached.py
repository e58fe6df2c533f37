"""`CachedTeacher`: a frozen teacher that runs once per view of an image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd.errors import UserError, check_options, naming
from mmkd.functional.checks import check_choice, check_number, check_whole
from mmkd.structures import DenseOutputs, Need
from mmkd.teachers.entries import assemble, pack
from mmkd.teachers.fitted import FittedTeacher
from mmkd.teachers.protocol import Teacher, TeacherAround
from mmkd.teachers.store import EntryStore

_FORMAT = 1  # of the entries; another format uses another folder
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


_OF_BOXES: frozenset[Need] = frozenset({"detections"})


class _Detecting(TeacherAround):
    """A teacher used only for its detections."""

    needs = _OF_BOXES

    @property
    def identity(self) -> list[Any]:
        return [*(self.inner.identity or ()), "detections"]

    @property
    def class_index(self) -> list[int] | None:
        return cast(Any, self.inner).detected_classes

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        return DenseOutputs(self.inner.spec, (), detections=self.inner.detect(inputs_BCHW, data_samples))

    def complete(self, outputs: DenseOutputs) -> DenseOutputs:
        return outputs


class CachedTeacher(TeacherAround):
    """Caches a teacher's outputs on disk, for reuse across epochs, runs and sweeps.

    An entry is identified by the teacher (its `Teacher.identity` and precision), the image file, and size and
    flip from the sample's metadata; everything else in the training pipeline must be deterministic, see
    `mmkd.teachers.pipeline`. It is the answer for the image alone, padded to the student's
    ``pad_size_divisor``: if all images of a batch have the same size, it equals the live teacher's up to
    storage precision. Otherwise the live teacher also sees the batch's padding, near the border of smaller
    images and in GroupNorm. Answers are rounded to storage precision before their first use.

    Args:
        inner: the teacher that computes missing entries; it provides their `identity`.
        options: ``dir``, the folder; ``max_gb`` > 0, its size limit; ``dtype``, ``'fp16'`` or ``'fp32'``;
            ``top``, the number of priors to keep per image, those with the teacher's highest scores; no loss
            uses the others. ``None`` keeps all.
        needs: the parts of `DenseOutputs` that the losses read.
        student: the student; its data preprocessor defines how images are padded.

    Raises:
        UserError: an option is wrong, the folder cannot be written, or the student resizes whole batches.
    """

    def __init__(
        self, inner: FittedTeacher, options: Mapping[str, Any], needs: frozenset[Need], student: Any
    ) -> None:
        super().__init__(cast(Teacher, inner))
        check_options("teacher.cache", options, ["dir", "max_gb", "top", "dtype"])
        self.root = Path(options.get("dir", "work_dirs/teacher_cache"))
        self.max_gb = options.get("max_gb", 50)
        self.top = options.get("top")
        dtype = options.get("dtype", "fp16")
        with naming("teacher.cache."):
            check_number("(0, inf]", max_gb=self.max_gb)
            if self.top is not None:
                check_whole(1, top=self.top)
            check_choice("dtype", dtype, tuple(_DTYPES))
        if self.top is not None and inner.needs - {"feats"} and "cls_logits" not in inner.needs:
            raise UserError(
                "teacher.cache.top selects priors by class score, but no loss reads class scores.",
                expected="a loss on class logits, or top=None",
                found=f"losses that read {', '.join(sorted(inner.needs))}",
                remedy="remove teacher.cache.top",
            )
        if needs & {"towers", "places"}:
            raise UserError(
                "Cannot cache the teacher: a loss needs its head's intermediate layers (CrossKD).",
                expected="losses on features or outputs when caching",
                found="a loss that needs the teacher's head towers or cascade heads",
                remedy="remove teacher.cache or that loss",
            )
        if getattr(student.data_preprocessor, "batch_augments", None):
            raise UserError(
                "Cannot cache the teacher: the data preprocessor augments whole batches.",
                expected="model.data_preprocessor without batch_augments",
                found="batch_augments",
                remedy="remove them, or remove teacher.cache",
            )
        self._options, self._student = options, student
        self.dtype = _DTYPES[dtype]
        self.divisor = int(getattr(student.data_preprocessor, "pad_size_divisor", 1))
        if inner.identity is None:
            raise UserError(
                "Cannot cache the teacher: it has no `identity`.",
                expected="a teacher with an `identity`",
                found=str(inner.facts["detector"]),
                remedy="remove teacher.cache, or give the class an `identity`",
            )
        self.identity = [_FORMAT, *inner.identity, self.divisor, self.top, dtype]
        self.read = self.computed = 0
        self._recipe: str | None = None
        self._store: EntryStore | None = None
        self.facts = {**inner.facts, "cache": {"dir": str(self.root), "top": self.top, "dtype": dtype}}

    def find_classes(self, dataset_meta: Any) -> None:
        """As `Teacher.find_classes`; other classes need other entries."""
        self.inner.find_classes(dataset_meta)
        self._store = None
        vars(self).pop("_boxes", None)

    @property
    def store(self) -> EntryStore | None:
        """The entries' store, once the teacher was asked."""
        return self._store

    @property
    def asked(self) -> int:
        """The number of images so far."""
        return self.read + self.computed

    def for_pipeline(self, recipe: str) -> None:
        """Set the recipe of the pipeline that makes the samples; see `mmkd.teachers.pipeline.recipe_of`."""
        if recipe != self._recipe:
            self._recipe, self._store = recipe, None

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """As `FrozenTeacher.ask`; the samples need the metadata of their images."""
        return lambda: self(inputs_BCHW, data_samples)

    def __call__(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """The teacher's outputs for a batch, read from the cache.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: with the metadata from `PackDetInputs`.

        Returns:
            As `FrozenTeacher`; ``known_N`` says which priors were kept.

        Raises:
            UserError: the pipeline is unknown, or a sample does not identify its image.
        """
        with torch.autocast(inputs_BCHW.device.type, enabled=False):
            outputs = assemble(self.entries(inputs_BCHW, data_samples), self.spec, inputs_BCHW.device)
            return self.inner.complete(outputs)

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`; stored in the entries if these have boxes, otherwise separately."""
        if "detections" in self.needs:
            found = self(inputs_BCHW, data_samples).detections
        else:
            if self._recipe is not None:
                self._boxes.for_pipeline(self._recipe)
            found = self._boxes(inputs_BCHW, data_samples).detections
        assert found is not None
        return list(found)

    @cached_property
    def _boxes(self) -> CachedTeacher:
        """A cache of the teacher's detections."""
        options = {name: value for name, value in self._options.items() if name != "top"}
        return CachedTeacher(cast(Any, _Detecting(self.inner)), options, _OF_BOXES, self._student)

    def entries(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[dict[str, Tensor]]:
        """The stored outputs for a batch; missing ones are computed first."""
        store = self._opened(inputs_BCHW.device)
        keys = [self._key(sample) for sample in data_samples]
        found = [store.get(key) for key in keys]
        shapes = [tuple(sample.img_shape[:2]) for sample in data_samples]
        padded = [tuple(-(-side // self.divisor) * self.divisor for side in shape) for shape in shapes]
        missing = [i for i, entry in enumerate(found) if entry is None]
        self.read += len(keys) - len(missing)
        self.computed += len(missing)
        for height, width in sorted({padded[i] for i in missing}):
            group = [i for i in missing if padded[i] == (height, width)]
            cut_BCHW = inputs_BCHW[group, :, :height, :width]
            self.inner.apply_(lambda tensor: tensor.to(inputs_BCHW.device))
            outputs = self.inner.answer(cut_BCHW, [data_samples[i] for i in group])
            for place, i in enumerate(group):
                entry = pack(outputs, place, self.dtype, self.top)
                store.put(keys[i], entry)
                found[i] = entry
        return [entry for entry in found if entry is not None]

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: the teacher moves to the student's device when it is used."""

    def summary(self) -> str:
        """What was read and computed so far, in one line."""
        text = f"teacher cache: {self.read} of {self.asked} outputs read, {self.computed} computed"
        if self._store is None:
            return text
        written, size = self._store.entries_written, self._store.bytes_written
        if written:
            text += f", {written} stored at {size / written / 1024:.1f} KiB per image"
        if "_boxes" in vars(self):
            text += f"; boxes: {self._boxes.read} of {self._boxes.asked} read"
        return f"{text}, in {self._store.folder}"

    def _opened(self, device: torch.device) -> EntryStore:
        if self._store is not None:
            return self._store
        if self._recipe is None:
            raise UserError(
                "The teacher cache does not know the training pipeline.",
                expected="the hook that sets it",
                found="none",
                remedy="add custom_hooks=[dict(type='TeacherCacheHook')], or train with mmkd's "
                "tools/train.py",
            )
        identity = [
            *self.identity,
            self.levels,
            self.class_index,
            self._recipe,
            str(self.inner.dtype_on(device)),
        ]
        name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self._store = EntryStore(self.root, name, int(self.max_gb * 1e9))
        facts = {**self.facts, "pipeline": self._recipe, "needs": sorted(self.needs)}
        self._store.describe(json.dumps(facts, indent=2, default=str))
        print_log(f"the teacher's outputs are cached in {self._store.folder}", "current")
        return self._store

    def _key(self, sample: Any) -> str:
        meta = sample.metainfo
        if not meta.get("img_path"):
            raise UserError(
                "The teacher cache cannot identify the image of a sample.",
                expected="img_path in the sample's metadata",
                found=", ".join(sorted(meta)) or "no metadata",
                remedy="add it to meta_keys of PackDetInputs",
            )
        path = str(meta["img_path"])
        state = None
        if "://" not in path:  # so that a replaced image is computed again
            path = os.path.abspath(path)
            about = os.stat(path)
            state = [about.st_size, about.st_mtime_ns]
        view = [meta.get(name) for name in ("img_id", "ori_shape", "img_shape", "flip", "flip_direction")]
        scale = [float(factor) for factor in meta.get("scale_factor") or ()]
        key = json.dumps([path, state, _plain(view), scale], default=str)
        return hashlib.sha256(key.encode()).hexdigest()[:40]


def _plain(value: Any) -> Any:
    """Convert to lists and Python numbers, whatever types the pipeline used."""
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value
