"""Check that the teacher was trained with the normalisation in its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmkd.doctor.findings import Finding
from mmkd.doctor.trial import Trial

_RGB = [123.675, 116.28, 103.53]
_BGR = _RGB[::-1]
# Keyed by where they are common.
NORMALISATIONS: Mapping[str, tuple[Sequence[float], Sequence[float], bool]] = {
    "torchvision": (_RGB, [58.395, 57.12, 57.375], True),
    "Caffe": (_BGR, [1.0, 1.0, 1.0], False),
    "RTMDet": (_BGR, [57.375, 57.12, 58.395], False),
    "SSD": (_RGB, [1.0, 1.0, 1.0], True),
    "0 to 1": ([0.0] * 3, [255.0] * 3, True),
    "0 to 255": ([0.0] * 3, [1.0] * 3, False),
}


def examine_pixels(trial: Trial) -> Iterator[Finding]:
    """Check for swapped red and blue, and for other common normalisations."""
    if trial.teacher.channels != 3:
        found = f"images with {trial.teacher.channels} channels have no other common normalisation"
        yield Finding.ok("teacher: pixels", found)
        return
    what, now = "teacher: pixels", trial.preprocessor
    ways: dict[str, dict[str, Any]] = {"exchanged": {"preprocessor": _swapped(now)}}
    for name, (mean, std, rgb) in NORMALISATIONS.items():
        way = {**now, "mean": mean, "std": std, "bgr_to_rgb": rgb, "rgb_to_bgr": False}
        if not any(same_pixels(way, other) for other in (now, ways["exchanged"]["preprocessor"])):
            ways[name] = {"preprocessor": way}
    best = trial.best(ways)
    if best is None:
        yield Finding.ok(
            what, f"none of {len(ways)} other normalisations is clearly better ({len(trial.few)} images)"
        )
        return
    name, before, after = best
    way = ways[name]["preprocessor"]
    trial.adopt(preprocessor=way)
    if name == "exchanged":
        cause, options = "with red and blue swapped", ["bgr_to_rgb"]
    else:
        cause, options = f"normalised as for {name}", ["mean", "std", "bgr_to_rgb"]
    settings = ", ".join(f"{option}={way.get(option, False)}" for option in options)
    yield Finding.error(
        what,
        f"{cause} its AP is {after.ap_best:.3f}, as configured {before.ap_best:.3f} "
        f"({len(trial.many)} images): it was trained on other pixels",
        f"set model.data_preprocessor=dict({settings}) in the teacher's config; keep the student's",
    )


def _swapped(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    swaps = bool(preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr"))
    return {**preprocessor, "bgr_to_rgb": not swaps, "rgb_to_bgr": False}


def same_pixels(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two data preprocessor configs produce the same pixels."""

    def key(way: Mapping[str, Any]) -> tuple[Any, ...]:
        swaps = bool(way.get("bgr_to_rgb") or way.get("rgb_to_bgr"))
        return (*(tuple(way.get(name) or ()) for name in ("mean", "std")), swaps)

    return key(one) == key(other)
