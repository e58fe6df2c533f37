"""The training to check: its config and the objects built from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from mmkd.data import UnlabelledImages
from mmkd.data.mixed_batches import counts_of
from mmkd.datasets import annotation_file, innermost, metric_configs, without_workers
from mmkd.doctor.findings import NotExamined
from mmkd.doctor.memory import StepMemory
from mmkd.errors import UserError
from mmkd.hooks.teacher_views import trace
from mmkd.registry import DATASETS, MODELS, is_kind
from mmkd.teachers import is_detector, plain_detector, teacher_entries

# Measure a training step with at most this many images, and scale its memory to the batch.
MOST_IMAGES_OF_A_STEP = 4

T = TypeVar("T")


def has_no_labels(dataset: Any) -> bool:
    """Whether a data set's config, below its wrappers, contains only images without labels."""
    parts = list(innermost(dataset))
    return bool(parts) and all(is_kind(part, UnlabelledImages, registry=DATASETS) for part in parts)


@dataclass(frozen=True)
class Source:
    """One data set of the config, with its annotations read.

    Attributes:
        which: ``train`` or ``val``, for messages.
        file: the annotation file.
        folder: the images' folder.
        classes: the config's, or the data set type's own.
        numbered_by_file: whether mmdet numbers its classes in the file's order, as in `CocoDataset`.
        coco: the file's content.
    """

    which: str
    file: Path
    folder: Path
    classes: tuple[str, ...]
    numbered_by_file: bool
    coco: Mapping[str, Any]

    @property
    def has_none(self) -> bool:
        """Whether the config names classes but the file has none of them."""
        return bool(self.classes) and not {str(one.get("name")) for one in self.coco["categories"]} & {
            *self.classes
        }


@dataclass
class TrainingSetup:
    """A training to check: its config, and its data sets and models, built on first use.

    Nothing is built twice. If an object could not be built, later accesses raise `NotExamined`.

    Attributes:
        cfg: the config, ready for the Runner; not modified.
        images: the number of validation images for the teacher, ≥ 1.
        device: the models' device.
        step_memory: the memory of the training step, once it has run.
        sources: the annotations read, by ``train``, ``val`` or ``test``.
        unlabelled: the paths of the unlabelled training images, each once.
    """

    cfg: Config
    images: int = 200
    device: str = "cpu"
    step_memory: StepMemory | None = None
    sources: dict[str, list[Source]] = field(default_factory=dict)
    unlabelled: dict[str, None] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def teachers(self) -> list[Mapping[str, Any]]:
        """The entries of trained detectors; others, like an average of the student, are not checked."""
        return [entry for entry in teacher_entries(self.cfg.model.get("teacher")) if is_detector(entry)]

    @property
    def is_unlabelled(self) -> bool:
        """Whether training reads no labels: the task's losses have no weight, or the data have no labels."""
        loader = self.cfg.get("train_dataloader") or {}
        weightless = (self.cfg.get("model") or {}).get("task_loss_weight", 1) == 0
        return bool(weightless or has_no_labels(loader.get("dataset")))

    def parts(self, which: str) -> list[Any]:
        """The configs of the data sets below the wrappers of ``train``, ``val`` or ``test``."""
        return list(innermost((self.cfg.get(f"{which}_dataloader") or {}).get("dataset")))

    def evaluators(self, which: str) -> list[Any]:
        """The configs of the metrics of ``val`` or ``test``."""
        return metric_configs(self.cfg.get(f"{which}_evaluator"))

    def only_formats(self, which: str) -> bool:
        """Whether results are only written for a server, so that no annotations are needed."""
        return any(one.get("format_only") for one in self.evaluators(which) if isinstance(one, Mapping))

    def dataset(self, which: str) -> Any:
        """The built data set of ``train`` or ``val``, with its pipeline."""
        loader = self.cfg.get(f"{which}_dataloader")
        if not loader:
            raise NotExamined(f"the config has no {which}_dataloader")
        for cfg in innermost(loader["dataset"]):
            path = annotation_file(cfg)
            if path is not None and not path.is_file():
                raise NotExamined(f"file not found: {path}")
        return self._once(f"the {which} data set", lambda: self._build_dataset(which))

    def _build_dataset(self, which: str) -> Any:
        dataset = DATASETS.build(copy.deepcopy(self.cfg[f"{which}_dataloader"]["dataset"]))
        entries = teacher_entries((self.cfg.get("model") or {}).get("teacher"))
        if which == "train" and any("predictions" in entry for entry in entries):
            with suppress(UserError):  # reported where the teacher is checked
                trace(dataset)
        return dataset

    def batch(self) -> dict[str, Any]:
        """A first training batch from the data loader, with few images."""
        dataset = self.dataset("train")
        return self._once("a training batch", lambda: self._first_batch(dataset))

    def data_preprocessor(self) -> Any:
        """The student's data preprocessor, built."""
        cfg = self.cfg.model.get("data_preprocessor") or self.cfg.get("data_preprocessor")
        cfg = cfg or ConfigDict(type="mmdet.DetDataPreprocessor")
        return self._once("the data preprocessor", lambda: MODELS.build(copy.deepcopy(cfg))).to(self.device)

    def student(self) -> Any:
        """A model that is not trained here: the student without its teacher, for its head."""
        return self._once("the student", lambda: MODELS.build(plain_detector(copy.deepcopy(self.cfg.model))))

    def model(self) -> Any:
        """The model as for training, with its teacher; built but not initialised."""
        self.student()  # so that its errors are not reported twice
        return self._once("the model", self._build_model)

    def _build_model(self) -> Any:
        cfg = copy.deepcopy(self.cfg.model)
        for entry in teacher_entries(cfg.get("teacher")):
            cast(ConfigDict, entry).pop("cache", None)  # the doctor stores nothing
        if cfg.get("data_preprocessor") is None and self.cfg.get("data_preprocessor") is not None:
            cfg.data_preprocessor = copy.deepcopy(self.cfg.data_preprocessor)
        return MODELS.build(cfg)

    def loader(self, which: str, batch_size: int | None) -> dict[str, Any]:
        """A data loader's config without its data set, in this process, with another batch size."""
        cfg = without_workers(self.cfg[f"{which}_dataloader"])
        del cfg["dataset"]
        return cfg if batch_size is None else {**cfg, "batch_size": batch_size}

    def _first_batch(self, dataset: Any) -> dict[str, Any]:
        whole = self.cfg.train_dataloader.get("batch_size", 1)
        size = min(whole, MOST_IMAGES_OF_A_STEP)
        mix = (self.cfg.train_dataloader.get("batch_sampler") or {}).get("source_ratio")
        try:
            size = size if mix is None else sum(counts_of(mix, size))
        except UserError:  # too few images to include all kinds
            size = whole
        loader = {**self.loader("train", size), "dataset": dataset}
        for batch in Runner.build_dataloader(loader, seed=0):
            return dict(batch)
        raise ValueError(f"{len(dataset)} images are fewer than one batch of {size}")

    def _once(self, what: str, make: Callable[[], T]) -> T:
        if what not in self._made:
            self._made[what] = NotExamined(f"cannot build {what}, see above")
            self._made[what] = make()
        made = self._made[what]
        if isinstance(made, NotExamined):
            raise made
        return made
