"""Check data loader options of mmengine and torch, without loading data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.registry import DATA_SAMPLERS
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

from mmkd.build_errors import names_in
from mmkd.doctor.findings import Finding, shortened
from mmkd.errors import instead, type_of
from mmkd.registry import class_of

# Removed from the config by mmengine's Runner; the rest goes to torch.
_OF_RUNNER = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}
_REGISTRIES = {
    "sampler": DATA_SAMPLERS,
    "batch_sampler": DATA_SAMPLERS,
    "collate_fn": FUNCTIONS,
    "worker_init_fn": FUNCTIONS,
}


def examine_loader(which: str, loader: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that a data loader can be built from its options.

    Args:
        which: ``train``, ``val`` or ``test``, for messages.
        loader: the loader's config.
    """
    what, option = f"{which}: loader", f"{which}_dataloader"
    if not isinstance(loader.get("dataset"), Mapping):
        yield Finding.error(what, f"{option} has no dataset", f"give {option}.dataset=dict(type=…)")
        return
    if "sampler" not in loader:
        yield Finding.error(
            what,
            f"{option} has no sampler",
            f"set {option}.sampler=dict(type='DefaultSampler', shuffle={which == 'train'})",
        )
    for name, registry in _REGISTRIES.items():
        part = loader.get(name)
        if isinstance(part, Mapping) and class_of(part, registry) is None:
            found = f"{option}.{name}: unknown type {type_of(part)!r}"
            yield Finding.error(what, found, instead(str(part.get("type")), sorted(names_in(registry))))
    options = {key: value for key, value in loader.items() if key not in _OF_RUNNER}
    valid = set(inspect.signature(DataLoader).parameters) | _OF_RUNNER
    unknown = [key for key in options if key not in valid]
    if unknown:
        found = f"{option} has no option {shortened(unknown)}"
        yield Finding.error(what, found, instead(unknown[0], sorted(valid)))
        return
    batches = loader.get("num_batch_per_epoch")
    if batches is not None and not (isinstance(batches, int) and batches >= 1):
        yield Finding.error(what, f"num_batch_per_epoch={batches!r} is not a number ≥ 1", f"correct {option}")
    if loader.get("batch_sampler"):
        options.pop("batch_size", None)  # the batch sampler uses it
        options["batch_sampler"] = [[0]]
    elif options.get("batch_size", 1) is None:
        yield Finding.error(what, f"{option}.batch_size is None: no batches are formed", "give a number ≥ 1")
        return
    elif "sampler" in loader:
        options["sampler"] = [0]
    try:
        DataLoader([0], **options)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        yield Finding.error(what, f"torch rejects {option}: {error}", f"correct {option}")
