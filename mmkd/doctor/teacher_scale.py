"""Check that the teacher sees objects at the scale it was trained at."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import Resize

from mmkd.compat import load_config
from mmkd.datasets import innermost, without_annotations
from mmkd.doctor.agreement import clearly_better
from mmkd.doctor.findings import Finding
from mmkd.doctor.pipeline import FAR, object_sizes, transforms_of
from mmkd.doctor.teacher_predictions import load_images
from mmkd.doctor.trial import Trial
from mmkd.registry import TRANSFORMS, is_kind

# Two scales may differ this much by rounding.
_SAME = 0.05
# The longest side of enlarged images.
_LONGEST = 1400


def examine_scale(trial: Trial) -> Iterator[Finding]:
    """Check the scale of the teacher's config, or other scales if unknown; and that of training."""
    setup, what = trial.setup, "teacher: scale"
    transforms = transforms_of(setup.cfg, "val")
    own = own_pipeline(trial.teacher.entry)
    ways: dict[str, dict[str, Any]] = {}
    if own is not None:
        ratio = _ratio(trial, own)
        text = "its config uses the same image size as the student's validation"
        if abs(ratio - 1) > _SAME:
            text = f"its config uses {ratio:.2g} times the image size of the student's validation"
            ways["at the scale of its config"] = {"pipeline": own}
    else:
        text = "its config does not state its training scale"
        for factor in (0.5, 2.0, 4.0):
            larger = rescaled(transforms, factor)
            if larger is not None and _longest(larger) <= _LONGEST:
                ways[f"at {factor:g} times the scale"] = {"pipeline": larger}
    best = trial.best(ways)
    if best is not None:
        name, before, after = best
        pipeline = ways[name]["pipeline"]
        trial.adopt(pipeline=pipeline)
        yield Finding.error(
            what,
            f"{text}; {name} its AP is {after.ap_best:.3f}, as configured {before.ap_best:.3f} "
            f"({len(trial.many)} images)",
            f"set the scale of Resize to {_scale(pipeline)} in the training and test pipelines",
        )
        return
    yield Finding.ok(what, text + ("; other scales are not clearly better" if ways else ""))
    yield from _training_scale(trial, transforms)


def _training_scale(trial: Trial, transforms: Sequence[Any]) -> Iterator[Finding]:
    """Check the scale in training too: it may be wrong there even if validation's is right."""
    train, val = (object_sizes(trial.setup, which) for which in ("train", "val"))
    if not (len(train) and len(val)):
        return
    factor = float(train.median() / val.median())
    shrunk = rescaled(transforms, factor)
    if 1 / FAR < factor < FAR or shrunk is None or _longest(shrunk) > _LONGEST:
        return
    there, here = trial.ask(trial.many, pipeline=shrunk), trial.ask(trial.many)
    if clearly_better(here.ap_best, there.ap_best):
        yield Finding.error(
            "teacher: scale",
            f"objects in training are {factor:.2g} times their size in validation; at that scale "
            f"its AP is {there.ap_best:.3f} instead of {here.ap_best:.3f}",
            f"set the scale of Resize in the training pipeline to {_scale(transforms)}",
        )


def own_pipeline(entry: Mapping[str, Any]) -> Sequence[Any] | None:
    """The test pipeline of a teacher's whole config, if it has one."""
    config = entry.get("config")
    if isinstance(config, (str, Path)):
        config = load_config(config)
    for name in ("val_dataloader", "test_dataloader"):
        loader = None if config is None else config.get(name)
        for dataset in innermost((loader or {}).get("dataset")):
            if dataset.get("pipeline"):
                # The annotations come from the student's data set and do not pass through the pipeline.
                return without_annotations(dataset["pipeline"])
    return None


def rescaled(transforms: Sequence[Any], factor: float) -> list[Any] | None:
    """A pipeline with its resize scales multiplied; ``None`` if it has no plain resize."""
    changed = copy.deepcopy(list(transforms))
    resizes = [one for one in changed if _is_resize(one)]
    for one in resizes:
        one["scale"] = tuple(max(1, round(side * factor)) for side in one["scale"])
    return changed if resizes else None


def _is_resize(transform: Mapping[str, Any]) -> bool:
    scale = transform.get("scale")
    return (
        _is(transform, Resize)
        and isinstance(scale, (tuple, list))
        and all(isinstance(side, int) for side in scale)
    )


def _is(transform: Mapping[str, Any], kind: type) -> bool:
    return is_kind(transform, kind, registry=TRANSFORMS)


def _scale(transforms: Sequence[Any]) -> Any:
    scales = [tuple(one["scale"]) for one in transforms if _is_resize(one)]
    return scales[0] if scales else "that of its config"


def _longest(transforms: Sequence[Any]) -> int:
    return max(max(one["scale"]) for one in transforms if _is_resize(one))


def _ratio(trial: Trial, pipeline: Sequence[Any]) -> float:
    """How much larger another pipeline makes an image, per side."""

    def side(way: Sequence[Any] | None) -> float:
        sample = load_images(trial.setup, trial.few[:1], way)[0]["data_samples"]
        return float(sample.img_shape[0] * sample.img_shape[1]) ** 0.5

    return side(pipeline) / side(None)
