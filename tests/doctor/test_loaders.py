from __future__ import annotations

from typing import Any

import pytest

from .bccd import errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0, "persistent_workers": True}, "torch rejects val_dataloader: persistent_workers"),
        (
            {"num_workers": 0, "persistent_workers": False, "prefetch_factor": 4},
            "torch rejects val_dataloader",
        ),
        ({"batch_size": 0}, "torch rejects val_dataloader: batch_size"),
        ({"batch_size": None}, "val_dataloader.batch_size is None"),
        (
            {"shuffle": True},
            "torch rejects val_dataloader: sampler option is mutually exclusive with shuffle",
        ),
        (
            {"batch_sampler": {"type": "AspectRatioBatchSampler"}, "drop_last": True},
            "torch rejects val_dataloader: batch_sampler option is mutually exclusive",
        ),
        ({"num_batch_per_epoch": 0}, "num_batch_per_epoch=0 is not a number ≥ 1"),
        (
            {"sampler": {"type": "DefaultSamplr"}},
            "val_dataloader.sampler: unknown type 'DefaultSamplr'; did you mean DefaultSampler?",
        ),
        (
            {"batch_sampler": {"type": "AspectRatio"}},
            "val_dataloader.batch_sampler: unknown type 'AspectRatio'",
        ),
        ({"collate_fn": {"type": "pseudo_colate"}}, "did you mean pseudo_collate?"),
        ({"worker_init_fn": {"type": "nobody"}}, "val_dataloader.worker_init_fn: unknown type 'nobody'"),
        ({"num_worker": 2}, "no option num_worker; did you mean num_workers"),
    ],
)
def test_a_loader_that_torch_refuses(options: dict[str, Any], message: str) -> None:
    (found,) = errors(lambda cfg: cfg.val_dataloader.update(options))
    assert message in found


def test_a_loader_without_its_parts() -> None:
    assert "no sampler" in errors(lambda cfg: cfg.train_dataloader.pop("sampler"))[0]
    assert "no dataset" in errors(lambda cfg: cfg.train_dataloader.pop("dataset"))[0]


def test_options_of_stock_configs() -> None:
    def damage(cfg: Any) -> None:
        cfg.train_dataloader.update(batch_sampler={"type": "AspectRatioBatchSampler"}, num_batch_per_epoch=3)
        cfg.val_dataloader.update(num_workers=2, multiprocessing_context="spawn", collate_fn=print)

    assert errors(damage) == []
