"""Reproducible training: the same numbers after resuming and with any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import IterableDataset

from mmkd.hooks.seeded_data import KeyedBatches, SeededDataset, seed_everything
from mmkd.registry import HOOKS


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Make random numbers depend only on the seed and the position in the training.

    The augmentation of a sample depends on the seed, the pass over the data and the sample's position in it;
    the model's random numbers depend on the seed, the iteration and the process. So no generator state has to
    be saved: a resumed run uses the same numbers as an uninterrupted one, and the number of data loader
    workers does not matter.

    This does not cover transforms that mix in earlier samples, like mmdet's `CachedMosaic` and `CachedMixUp`:
    each worker has its own memory, and a resumed run starts with empty ones. The log names them.

    The seed is the Runner's: from ``randomness``, or a random one, which mmengine saves in checkpoints.
    mmkd's train tool adds this hook.
    """

    priority = "VERY_HIGH"  # other hooks use these random numbers

    def before_train(self, runner: Runner) -> None:
        """Key the samples; by now the seed is known, also after a resume."""
        loop, loader = runner.train_loop, runner.train_dataloader
        if isinstance(loader.dataset, IterableDataset):  # it has no indices to key
            return
        remembering = transforms_with_memory(loader.dataset)
        if remembering:
            runner.logger.warning(
                f"{', '.join(remembering)} mixes in earlier samples, cached per worker: this run is "
                "reproducible only with the same num_workers, and not after resuming"
            )
        if isinstance(loop, EpochBasedTrainLoop):
            for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
                if sampler is not None and hasattr(sampler, "seed"):
                    sampler.seed = runner.seed  # built before the resume restored the seed
            _key(runner, loader, lambda: int(runner.epoch))
        elif isinstance(runner._train_dataloader, dict):
            # This loop has already started to load, from a sampler that cannot restart.
            dataset = loader.dataset
            cfg = {**runner._train_dataloader, "dataset": {"type": lambda: dataset}}
            loop.dataloader = Runner.build_dataloader(
                cfg, runner.seed, runner._randomness_cfg.get("diff_rank_seed", False)
            )
            loop.dataloader.worker_init_fn = loader.worker_init_fn
            sampler, size = loop.dataloader.sampler, loop.dataloader.batch_size
            # onedl-mmengine resumes by this method of the sampler, mmengine by loading and discarding
            # batches.
            skips = hasattr(sampler, "skip") and size is not None
            _key(runner, loop.dataloader, None, (lambda: int(runner.iter) * size) if skips else None)
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the model's random numbers for this step."""
        seed_everything(runner.seed, runner.iter, get_rank())


def transforms_with_memory(dataset: Any) -> list[str]:
    """The names of a data set's transforms that keep samples from call to call."""
    found: dict[str, None] = {}
    seen: set[int] = set()

    def look(part: Any) -> None:
        if isinstance(part, (list, tuple)):
            for one in part:
                look(one)
        elif hasattr(part, "__dict__") and id(part) not in seen:
            seen.add(id(part))
            if isinstance(getattr(part, "results_cache", None), list):
                found[type(part).__name__] = None
            for name in ("dataset", "datasets", "pipeline", "transforms", "pipeline_transforms"):
                look(vars(part).get(name))

    look(dataset)
    return list(found)


def _key(
    runner: Runner, loader: Any, number: Callable[[], int] | None, passed: Callable[[], int] | None = None
) -> None:
    keyed = KeyedBatches(loader.batch_sampler, runner.seed, get_rank(), get_world_size(), number, passed)
    # A DataLoader does not allow setting these, and loads only what they yield.
    vars(loader).update(batch_sampler=keyed, dataset=SeededDataset(loader.dataset))
