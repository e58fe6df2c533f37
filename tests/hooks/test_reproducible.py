from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmkd.hooks import ReproducibleHook, ResumeHook, StopHook, TrainingStopped
from mmkd.hooks.reproducible import transforms_with_memory
from mmkd.registry import DATASETS

from .toy import Call, ToyModel, toy_runner


class Noisy:
    """Samples that are augmented at random."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, float]:
        return {"sample": index + float(np.random.rand()) + float(torch.rand(()))}


class Dropping(ToyModel):
    """Draws random numbers of its own in every step."""

    def forward(self, sample: Any, mode: str = "tensor") -> Any:
        return super().forward(sample + torch.rand(()) if mode == "loss" else sample, mode)


def runner(folder: Path, *hooks: Any, workers: int = 0, **options: Any) -> Any:
    loader = {
        "batch_size": 2,
        "dataset": Noisy(),
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
        "num_workers": workers,
        "persistent_workers": workers > 0,
    }
    if "train_cfg" in options:
        loader["sampler"] = {"type": "InfiniteSampler", "shuffle": True}
    return toy_runner(
        folder, *hooks, ReproducibleHook(), **{"model": Dropping(), "train_dataloader": loader, **options}
    )


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


BY_ITERATION = {"train_cfg": {"by_epoch": False, "max_iters": 15, "val_interval": 5}}


@pytest.mark.parametrize("options", [{}, BY_ITERATION], ids=["epochs", "iterations"])
def test_the_number_of_workers_does_not_matter(tmp_path: Path, options: dict[str, Any]) -> None:
    runs = [runner(tmp_path / str(n), StopHook(), workers=n, **options) for n in (0, 0, 2)]
    for run in runs:
        run.train()
    assert runs[0].model.seen == runs[1].model.seen == runs[2].model.seen
    assert equal(runs[0].model, runs[2].model)
    drawn = {value % 1 for batch in runs[0].model.seen for value in batch}
    assert len(drawn) == 30, "every pass over the data draws its own numbers"


def test_another_seed_is_another_training(tmp_path: Path) -> None:
    runs = [runner(tmp_path / str(seed), randomness={"seed": seed}, epochs=1) for seed in (0, 1)]
    for run in runs:
        run.train()
    assert runs[0].model.seen[0] != runs[1].model.seen[0]


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize(
    ("options", "at", "workers"), [({}, 5, 2), ({}, 7, 0), (BY_ITERATION, 7, 2)], ids=["epoch", "mid", "iter"]
)
def test_a_resumed_run_draws_what_the_whole_one_would(
    tmp_path: Path, options: dict[str, Any], at: int, workers: int, seed: int | None
) -> None:
    """Also where the seed is a random one, which only the checkpoint tells."""
    stop = Call("after_train_iter", at, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    first = runner(tmp_path / "a", stop, StopHook(), workers=workers, randomness={"seed": seed}, **options)
    with pytest.raises(TrainingStopped):
        first.train()
    torch.manual_seed(123)
    second = runner(
        tmp_path / "a", StopHook(), ResumeHook(), resume=True, randomness={"seed": None}, **options
    )
    second.train()
    whole = runner(tmp_path / "whole", randomness={"seed": first.seed}, **options)
    whole.train()
    assert first.model.seen + second.model.seen == whole.model.seen
    assert equal(second.model, whole.model)


def test_iterable_data_is_left_alone(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[dict[str, int]]):
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Any:
            return iter([{"sample": index} for index in range(4)])

    loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    run = runner(
        tmp_path,
        model=ToyModel(),
        train_dataloader=loader,
        train_cfg={"by_epoch": False, "max_iters": 2, "val_interval": 2},
    )
    run.train()
    assert run.model.seen == [[0, 1], [2, 3]]


def cells(*transforms: dict[str, Any]) -> Any:
    """Blood cells behind two wrappers, with these transforms."""
    loads = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]
    inner = {
        "type": "CocoDataset",
        "data_root": "data/bccd/",
        "ann_file": "annotations/val.json",
        "data_prefix": {"img": "images/val/"},
        "metainfo": {"classes": ("Platelets", "RBC", "WBC")},
        "indices": 8,
        "pipeline": [*loads, *transforms, {"type": "PackDetInputs"}],
    }
    joined = {"type": "ConcatDataset", "datasets": [inner]}
    return DATASETS.build({"type": "RepeatDataset", "times": 2, "dataset": joined})


def test_transforms_that_remember_samples_are_named() -> None:
    assert transforms_with_memory(cells()) == []
    mosaic = {"type": "CachedMosaic", "img_scale": (64, 64), "max_cached_images": 4}
    mixup = {"type": "CachedMixUp", "img_scale": (64, 64), "max_cached_images": 4}
    assert transforms_with_memory(cells(mosaic, {"type": "RandomApply", "transforms": [mixup]})) == [
        "CachedMosaic",
        "CachedMixUp",
    ]


def test_the_log_says_what_is_not_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    told: list[str] = []
    monkeypatch.setattr(run.logger, "warning", lambda text, *_: told.append(str(text)))
    run.train_dataloader.dataset.results_cache = []
    ReproducibleHook().before_train(run)
    assert "Noisy mixes in earlier samples" in told[0]
