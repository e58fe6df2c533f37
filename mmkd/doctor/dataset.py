"""Check the data: what training checks first, boxes, images, overlap of train and val."""

from __future__ import annotations

from collections.abc import Iterator

from mmkd.doctor.boxes import examine_boxes
from mmkd.doctor.findings import Finding, collect
from mmkd.doctor.images import examine_images, examine_overlap
from mmkd.doctor.preconditions import examine_preconditions
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.unlabelled import examine_leaks, examine_readable


def examine_dataset(setup: TrainingSetup) -> Iterator[Finding]:
    """Check what training checks first, then boxes and images, then training and validation together."""
    yield from examine_preconditions(setup)
    train, val = (setup.sources.get(which, []) for which in ("train", "val"))
    for source in [*train, *val]:
        yield from collect(f"{source.which}: boxes", examine_boxes, source.which, source.coco)
        images = source.folder, source.coco["images"], setup.images
        yield from collect(f"{source.which}: image files", examine_images, source.which, *images)
    if setup.unlabelled:
        yield from collect("train: unlabelled", examine_readable, setup.unlabelled, setup.images)
        known = [
            [one.folder / str(image.get("file_name")) for one in found for image in one.coco["images"]]
            for found in (train, val)
        ]
        yield from collect("unlabelled and val", examine_leaks, setup.unlabelled, *known)
    if train and val:
        pairs = [
            [(one.folder, image) for one in found for image in one.coco["images"]] for found in (train, val)
        ]
        yield from collect("train and val", examine_overlap, *pairs)
